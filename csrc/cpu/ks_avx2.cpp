// The kernels for x86 CPUs with AVX2 (Intel since 2013, AMD since 2015).
#include "../platform.h"
#if defined(KSL_X86_TARGETS)
#include <cstdint>
#include <cstring>

#include "../ks_keys.h"
#include "ks_kernels.h"

// Only what comes after this line is compiled for AVX2. The functions of the headers above are shared with code that
// must run anywhere.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#endif
#define KSL_ISA avx2
#include "ks_generic.h"

namespace ksl {
constexpr Kernels kAvx2Kernels = avx2::kernels("avx2");
}  // namespace ksl

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
