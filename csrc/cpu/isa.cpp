// Which instruction set the kernels use. This is decided once, at the first call.
#include <cstdlib>
#include <string>

#include "../check.h"
#include "../ksl.h"
#include "ks_kernels.h"

namespace ksl {
namespace {

const Kernels &choose_kernels() {
    const char *wish = std::getenv("KSL_ISA");
    const std::string name = wish ? wish : "";
    const Kernels *best = nullptr;
    bool known = false;
    const auto consider = [&](const Kernels &kernels, bool supported) {
        known |= name == kernels.isa;
        if (supported && !best && (name.empty() || name == kernels.isa)) best = &kernels;
    };
#if defined(__x86_64__)
    __builtin_cpu_init();
    consider(kAvx512Kernels, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                                 __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"));
    consider(kAvx2Kernels,
             __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"));
#endif
    consider(kBaselineKernels, true);
    KSL_CHECK(best, "KSL_ISA=", name,
              known ? ": this CPU does not have it; " : " is not known here; expected avx512, avx2 or baseline, ",
              "unset it to get the best that this CPU has");
    return *best;
}

}  // namespace

const Kernels &active_kernels() {
    static const Kernels &chosen = choose_kernels();  // thread-safe; after a throw, the next call tries again
    return chosen;
}

const char *active_isa() { return active_kernels().isa; }

}  // namespace ksl
