// The search for NaN and infinity in a span of numbers, on every instruction set.
//
// Included by one source file per instruction set, after ks_kernels.h; KSL_ISA is the namespace of its copy.
#pragma once

#include "ks_kernels.h"

namespace ksl {
namespace KSL_ISA {
namespace {

// There is no early end, so that the compiler can make vector code of it.
template <typename Bits>
bool finite_span(const Bits *values, int64_t n, Bits exponent) {
    Bits found = 0;
    for (int64_t i = 0; i < n; ++i) found |= static_cast<Bits>((values[i] & exponent) == exponent);
    return found == 0;
}

}  // namespace
}  // namespace KSL_ISA
}  // namespace ksl
