// The kernels for any CPU of the architecture that this is compiled for.
#include <cstdint>
#include <cstring>

#include "../ks_keys.h"
#include "ks_kernels.h"

#define KSL_ISA baseline
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
constexpr Kernels kBaselineKernels = baseline::kernels("baseline");
}  // namespace ksl
