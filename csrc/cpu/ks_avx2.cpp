// The kernels for x86 CPUs with AVX2 (Intel since 2013, AMD since 2015).
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>

#include "../ks_keys.h"
#include "ks_kernels.h"

// Only what comes after this line is compiled for AVX2: the functions of the headers above are shared with code that
// must run anywhere.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#endif
#define KSL_ISA avx2
#include "adamw_loop.h"
#include "finite_loop.h"
#include "ks_loops.h"

namespace ksl {
namespace KSL_ISA {
namespace {
using Loops = GenericLoops;
}
}  // namespace KSL_ISA
}  // namespace ksl

#include "ks_engine.h"

namespace ksl {
const Kernels kAvx2Kernels{"avx2",
                           avx2::row_statistic<float>,
                           avx2::row_statistic<double>,
                           avx2::row_statistic<Float16>,
                           avx2::row_statistic<BFloat16>,
                           avx2::adamw_span<float>,
                           avx2::adamw_span<double>,
                           avx2::finite_span<uint16_t>,
                           avx2::finite_span<uint32_t>,
                           avx2::finite_span<uint64_t>};
}  // namespace ksl

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
