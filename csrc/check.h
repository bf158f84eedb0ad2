// KSL_CHECK(condition, pieces...) throws std::invalid_argument with the pieces as its message unless the condition
// holds.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace ksl {

template <typename... Pieces>
[[noreturn]] void fail(const Pieces &...pieces) {
    std::ostringstream message;
    (message << ... << pieces);
    throw std::invalid_argument(message.str());
}

}  // namespace ksl

#define KSL_CHECK(condition, ...)                   \
    do {                                            \
        if (!(condition)) ::ksl::fail(__VA_ARGS__); \
    } while (false)
