// ksl_driver CALLS RESULTS: makes the calls of functions of ksl.h that one file asks for, and writes what they give to
// another file. Prints the instruction set.
//
// So the native core can be tested where there is no Python: on other systems, under emulators, under sanitizers.
// native_calls.py writes the calls, reads the results, and describes both files.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

#include "ksl.h"

namespace {

class Reader {
  public:
    explicit Reader(const char *path) : file_(path, std::ios::binary) {
        if (!file_) throw std::runtime_error(std::string("cannot read ") + path);
    }

    void read(void *to, int64_t size) {
        if (!file_.read(static_cast<char *>(to), size)) throw std::runtime_error("the file of calls is cut off");
    }

    int64_t integer() {
        int64_t value;
        read(&value, sizeof value);
        return value;
    }

    std::string text() {
        std::string value(static_cast<size_t>(integer()), ' ');
        read(&value[0], static_cast<int64_t>(value.size()));
        return value;
    }

  private:
    std::ifstream file_;
};

class Writer {
  public:
    explicit Writer(const char *path) : file_(path, std::ios::binary) {}

    void write(const void *from, int64_t size) { file_.write(static_cast<const char *>(from), size); }
    void integer(int64_t value) { write(&value, sizeof value); }

    void close() {
        if (!file_.flush()) throw std::runtime_error("cannot write the results");
    }

  private:
    std::ofstream file_;
};

// Memory of exactly the size that is asked for, so that AddressSanitizer sees every step beyond it.
struct Free {
    void operator()(void *memory) const { std::free(memory); }
};
struct Buffer {
    std::unique_ptr<char, Free> memory;
    int64_t size;
};

// The arguments of one call, taken in their order as what the function's parameters are.
class Arguments {
  public:
    struct Argument {
        int64_t kind, value;  // kInteger, kNumber, or a buffer and the place in it
    };
    enum : int64_t { kInteger = 0, kNumber = 1, kFirstBuffer = 2 };

    Arguments(const std::vector<Argument> &arguments, const std::vector<Buffer> &buffers)
        : next_(arguments.begin()), end_(arguments.end()), buffers_(buffers) {}

    template <typename T>
    T take() {
        if constexpr (std::is_same_v<T, ksl::Matrix> || std::is_same_v<T, ksl::MutableMatrix>) {
            return {take<decltype(T::data)>(), take<int64_t>(), take<int64_t>(),
                    take<int64_t>(),           take<int64_t>(), take<ksl::DType>()};
        } else if constexpr (std::is_same_v<T, ksl::AdamW>) {
            return {take<double>(), take<double>(), take<double>(), take<double>(), take<double>(), take<int64_t>()};
        } else if constexpr (std::is_same_v<T, ksl::KeyIntervals>) {
            return {take<const uint64_t *>(),
                    take<const uint64_t *>(),
                    take<const uint8_t *>(),
                    take<const int64_t *>(),
                    take<const int32_t *>(),
                    take<int64_t>(),
                    take<int>()};
        } else {
            const Argument argument = next();
            if constexpr (std::is_pointer_v<T>) {
                return argument.kind == kInteger ? nullptr : static_cast<T>(address(argument));
            } else if constexpr (std::is_same_v<T, double>) {
                check(argument.kind == kNumber);
                double value;
                static_assert(sizeof value == sizeof argument.value);
                std::memcpy(&value, &argument.value, sizeof value);
                return value;
            } else {
                check(argument.kind == kInteger);
                return static_cast<T>(argument.value);
            }
        }
    }

    void check_all_taken() const { check(next_ == end_); }

  private:
    static void check(bool good) {
        if (!good) throw std::runtime_error("the arguments are not those of the function");
    }

    Argument next() {
        check(next_ != end_);
        return *next_++;
    }

    void *address(const Argument &argument) const {
        const int64_t number = argument.kind - kFirstBuffer;
        check(0 <= number && number < static_cast<int64_t>(buffers_.size()));
        return buffers_[static_cast<size_t>(number)].memory.get() + argument.value;
    }

    std::vector<Argument>::const_iterator next_, end_;
    const std::vector<Buffer> &buffers_;
};

using Returned = std::vector<int64_t>;  // nothing or one value
using Function = std::function<Returned(Arguments &)>;

template <typename R, typename... Parameters>
Function caller(R (*function)(Parameters...)) {
    return [function](Arguments &arguments) -> Returned {
        const std::tuple<std::decay_t<Parameters>...> values{arguments.take<std::decay_t<Parameters>>()...};
        arguments.check_all_taken();
        if constexpr (std::is_void_v<R>) {
            std::apply(function, values);
            return {};
        } else {
            return {static_cast<int64_t>(std::apply(function, values))};
        }
    };
}

// As torch.set_flush_denormal, in this thread.
void flush_subnormals(bool flush) {
#if defined(__x86_64__) || defined(_M_X64)
    constexpr unsigned kFlags = 0x8040;
    _mm_setcsr(flush ? _mm_getcsr() | kFlags : _mm_getcsr() & ~kFlags);
#elif defined(__aarch64__)
    constexpr uint64_t kFlag = uint64_t{1} << 24;
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    mode = flush ? mode | kFlag : mode & ~kFlag;
    __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory");
#else
    if (flush) throw std::runtime_error("flush_subnormals is not written for this CPU");
#endif
}

const std::map<std::string, Function> kFunctions = {
    {"ks_rows", caller(ksl::ks_rows)},
    {"ks_statistics", caller(ksl::ks_statistics)},
    {"ks_decide", caller(ksl::ks_decide)},
    {"ks_outside_probability", caller(ksl::ks_outside_probability)},
    {"ks_stream_count", caller(ksl::ks_stream_count)},
    {"ks_stream_collect", caller(ksl::ks_stream_collect)},
    {"row_adamw", caller(ksl::row_adamw)},
    {"row_adamw_if_finite", caller(ksl::row_adamw_if_finite)},
    {"all_finite", caller(ksl::all_finite)},
    {"row_embedding", caller(ksl::row_embedding)},
    {"row_embedding_backward", caller(ksl::row_embedding_backward)},
    {"flush_subnormals", caller(flush_subnormals)},
};

void make_call(Reader &calls, Writer &results) {
    const std::string name = calls.text();
    std::vector<Buffer> buffers(static_cast<size_t>(calls.integer()));
    for (Buffer &buffer : buffers) {
        buffer.size = calls.integer();
        buffer.memory.reset(static_cast<char *>(std::malloc(static_cast<size_t>(buffer.size))));
        calls.read(buffer.memory.get(), buffer.size);
    }
    std::vector<Arguments::Argument> given(static_cast<size_t>(calls.integer()));
    for (Arguments::Argument &argument : given) {
        argument.kind = calls.integer();
        argument.value = calls.integer();
    }
    const auto function = kFunctions.find(name);
    if (function == kFunctions.end()) throw std::runtime_error("there is no function " + name);

    Arguments arguments(given, buffers);
    Returned returned;
    std::string refusal;
    try {
        returned = function->second(arguments);
    } catch (const std::invalid_argument &error) {
        refusal = error.what();
    }
    results.integer(static_cast<int64_t>(returned.size()));
    for (const int64_t value : returned) results.integer(value);
    results.integer(static_cast<int64_t>(refusal.size()));
    results.write(refusal.data(), static_cast<int64_t>(refusal.size()));
    for (const Buffer &buffer : buffers) results.write(buffer.memory.get(), buffer.size);
}

}  // namespace

int main(int argc, char **argv) try {
    if (argc != 3) throw std::runtime_error("usage: ksl_driver CALLS RESULTS");
    std::puts(ksl::active_isa());
    Reader calls(argv[1]);
    Writer results(argv[2]);
    for (int64_t left = calls.integer(); left > 0; --left) make_call(calls, results);
    results.close();
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
}
