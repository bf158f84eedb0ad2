// The kernels for any CPU of the architecture that this is compiled for, and the choice of an instruction set. It is
// made once, at the first call.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>

#include "../check.h"
#include "../ks_keys.h"
#include "../ksl.h"
#include "../platform.h"
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

namespace {

#if defined(KSL_X86_TARGETS)
struct Offered {
    bool avx2, avx512;
};

// What the CPU has and the operating system keeps the registers of. (__builtin_cpu_supports says the same, but clang-cl
// has no library for it.)
Offered offered() {
    struct Registers {
        uint32_t a, b, c, d;
    };
    const auto cpuid = [](uint32_t leaf) {
        Registers r;
        __asm__("cpuid" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "a"(leaf), "c"(0));
        return r;
    };
    const auto has = [](uint32_t bits, std::initializer_list<int> places) {
        return std::all_of(places.begin(), places.end(), [bits](int place) { return bits >> place & 1; });
    };
    constexpr int kFma = 12, kPopcnt = 23, kOsxsave = 27, kAvx = 28;  // in register c of leaf 1
    constexpr int kBmi = 3, kAvx2 = 5, kBmi2 = 8;                     // in register b of leaf 7
    constexpr int kAvx512F = 16, kAvx512Dq = 17, kAvx512Bw = 30, kAvx512Vl = 31;
    if (cpuid(0).a < 7 || !has(cpuid(1).c, {kFma, kPopcnt, kOsxsave, kAvx})) return {false, false};
    uint32_t state, unused;
    __asm__("xgetbv" : "=a"(state), "=d"(unused) : "c"(0));
    const uint32_t leaf7 = cpuid(7).b;
    const bool avx2 = has(state, {1, 2}) && has(leaf7, {kBmi, kAvx2, kBmi2});
    return {avx2, avx2 && has(state, {5, 6, 7}) && has(leaf7, {kAvx512F, kAvx512Dq, kAvx512Bw, kAvx512Vl})};
}
#endif

const Kernels &choose_kernels() {
    const char *wish = std::getenv("KSL_ISA");
    const std::string name = wish ? wish : "";
    const Kernels *best = nullptr;
    bool known = false;
    const auto consider = [&](const Kernels &kernels, bool supported) {
        known |= name == kernels.isa;
        if (supported && !best && (name.empty() || name == kernels.isa)) best = &kernels;
    };
#if defined(KSL_X86_TARGETS)
    const Offered offers = offered();
    consider(kAvx512Kernels, offers.avx512);
    consider(kAvx2Kernels, offers.avx2);
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
