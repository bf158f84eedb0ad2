// What differs between compilers and operating systems, apart from the floating-point mode (ieee_mode.h). Everything
// else in csrc/ is C++17 without extensions.
//
// Compilers: GCC, Clang (also as clang-cl) and MSVC. Systems: those of POSIX, and Windows.
#pragma once

#include <cstdint>

#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define KSL_MSVC  // tests/native defines it too
#endif
#if defined(KSL_MSVC)
#include <intrin.h>

#include <cmath>
#pragma fp_contract(off)
#endif

// x86-64 with a compiler that can compile single functions for other instruction sets than the rest of the file. MSVC
// cannot. What its /arch is given for one file also holds for the inline functions of all headers, of which the linker
// keeps any copy. So MSVC makes the baseline kernels alone. clang-cl, its twin in Visual Studio, makes all of them.
#if defined(__x86_64__) || (defined(_M_X64) && !defined(_M_ARM64EC))
#define KSL_X86_64
#if !defined(KSL_MSVC)
#define KSL_X86_TARGETS
#endif
#endif

// For small functions whose call would keep the loop around it from being vectorised.
#if defined(KSL_MSVC)
#define KSL_ALWAYS_INLINE __forceinline
#else
#define KSL_ALWAYS_INLINE __attribute__((always_inline)) inline
#endif

namespace ksl {

// The place of the lowest bit that is set. There has to be one.
inline int lowest_bit(uint32_t bits) {
#if defined(KSL_MSVC)
    unsigned long place;
    _BitScanForward(&place, bits);
    return static_cast<int>(place);
#else
    return __builtin_ctz(bits);
#endif
}

// Asks for a line of memory, to be read soon. The address need not exist.
inline void prefetch(const void *address) {
#if !defined(KSL_MSVC)
    __builtin_prefetch(address, 0, 2);
#elif defined(KSL_X86_64)
    _mm_prefetch(static_cast<const char *>(address), _MM_HINT_T1);
#else
    __prefetch(address);
#endif
}

// One instruction, unlike a call of the C library.
inline float square_root(float value) {
#if defined(KSL_MSVC)
    return std::sqrt(value);
#else
    return __builtin_sqrtf(value);
#endif
}

inline double square_root(double value) {
#if defined(KSL_MSVC)
    return std::sqrt(value);
#else
    return __builtin_sqrt(value);
#endif
}

// The function of this name in what the process has loaded, or null. Windows has no such search over all modules.
inline void *function_of_process(const char *name) {
#if defined(_WIN32)
    static_cast<void>(name);
    return nullptr;
#else
    return dlsym(RTLD_DEFAULT, name);
#endif
}

// Has f called in every child of fork(). Windows has no fork().
inline int call_in_forked_child(void (*f)()) {
#if defined(_WIN32)
    static_cast<void>(f);
    return 0;
#else
    return pthread_atfork(nullptr, nullptr, f);
#endif
}

}  // namespace ksl
