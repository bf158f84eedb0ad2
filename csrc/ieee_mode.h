// IEEE arithmetic on the CPU, whatever torch.set_flush_denormal(True) or other code has set in this thread.
//
// Threads keep this mode apart from each other. Without a guard, the bits of a result that comes near the smallest
// numbers would depend on which thread has computed it.
#pragma once

#include <cstdint>

#include "platform.h"

#if defined(KSL_X86_64)
#include <xmmintrin.h>
#endif

namespace ksl {

#if defined(KSL_X86_64)
using FloatMode = unsigned;
inline FloatMode float_mode() { return _mm_getcsr(); }
inline void set_float_mode(FloatMode mode) { _mm_setcsr(mode); }
constexpr FloatMode kIeeeFloatMode = 0x1f80;  // the power-on value: no flushing, nothing trapped
#elif defined(__aarch64__)
using FloatMode = uint64_t;
inline FloatMode float_mode() {
    FloatMode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
inline void set_float_mode(FloatMode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
constexpr FloatMode kIeeeFloatMode = 0;
#else
using FloatMode = int;
inline FloatMode float_mode() { return 0; }
inline void set_float_mode(FloatMode) {}
constexpr FloatMode kIeeeFloatMode = 0;
#endif

// From its beginning to the end of its scope.
class IeeeMode {
  public:
    IeeeMode() : saved_(float_mode()) { set_float_mode(kIeeeFloatMode); }
    ~IeeeMode() { set_float_mode(saved_); }
    IeeeMode(const IeeeMode &) = delete;
    IeeeMode &operator=(const IeeeMode &) = delete;

  private:
    const FloatMode saved_;
};

}  // namespace ksl
