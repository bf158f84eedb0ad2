// The kernels for any CPU of the architecture that this is compiled for.
#include <cstdint>
#include <cstring>

#include "../ks_keys.h"
#include "ks_kernels.h"

#define KSL_ISA baseline
#include "ks_generic.h"

namespace ksl {
constexpr Kernels kBaselineKernels = baseline::kernels("baseline");
}  // namespace ksl
