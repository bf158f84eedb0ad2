// The search for NaN and infinity in a span of numbers, on every instruction set.
//
// Included by one source file per instruction set, after ks_kernels.h; KSL_ISA is the namespace of its copy.
#pragma once

#include "ks_kernels.h"

namespace ksl {
namespace KSL_ISA {
namespace {

// Numbers that are not finite have all bits of an infinity's exponent. There is no early end, so that the compiler can
// make vector code of it.
template <typename T>
bool finite_span(const T *values, int64_t n) {
    constexpr bits_t<T> kExponent = BitsOf<T>::kInfinity;
    bits_t<T> found = 0;
    for (int64_t i = 0; i < n; ++i) found |= static_cast<bits_t<T>>((bits_of(values[i]) & kExponent) == kExponent);
    return found == 0;
}

}  // namespace
}  // namespace KSL_ISA
}  // namespace ksl
