// The kernels for any CPU of the architecture that this is compiled for.
#include <cstdint>
#include <cstring>

#include "../ks_keys.h"
#include "ks_kernels.h"

#define KSL_ISA baseline
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
const Kernels kBaselineKernels{"baseline",
                               baseline::row_statistic<float>,
                               baseline::row_statistic<double>,
                               baseline::row_statistic<Float16>,
                               baseline::row_statistic<BFloat16>,
                               baseline::adamw_span<float>,
                               baseline::adamw_span<double>,
                               baseline::finite_span<uint16_t>,
                               baseline::finite_span<uint32_t>,
                               baseline::finite_span<uint64_t>};
}  // namespace ksl
