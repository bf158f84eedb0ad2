// The interface between the loops over rows (ks_rows.cpp, row_adamw.cpp and finite.cpp, compiled once) and what is
// compiled once for each instruction set: the bucket engine (ks_engine.h), the arithmetic of AdamW (adamw_loop.h), and
// the search for NaN (finite_loop.h).
#pragma once

#include <cstdint>

#include "../adamw.h"
#include "../dtypes.h"
#include "../ksl.h"
#include "../platform.h"
#include "ks_side_kernels.h"

namespace ksl {

constexpr int kMaxBucketBits = 11;
constexpr int kZoomBits = 10;  // see ks_zoom.h

// Buffers for rows of n values, kept from row to row. Its members are plain arrays and pointers. The engine must not
// instantiate templates of the standard library, because the linker keeps one copy of each, which might be AVX-512
// code.
struct Workspace {
    // Vector loops read and write whole blocks, up to kSlack elements beyond the n values.
    explicit Workspace(int64_t n)
        : x_location(new uint16_t[n + kSlack]),
          y_location(new uint16_t[n + kSlack]),
          position(new int32_t[n + kSlack]),
          zoom_memory(new char[kZoomBytes]),
          keys_(new uint64_t[4 * n + kSlack]) {}
    ~Workspace() {
        delete[] x_location;
        delete[] y_location;
        delete[] position;
        delete[] zoom_memory;
        delete[] keys_;
    }
    Workspace(const Workspace &) = delete;
    Workspace &operator=(const Workspace &) = delete;

    // One of four buffers for n keys each. Successive ones are adjacent.
    template <typename Key>
    Key *key_buffer(int64_t which, int64_t n) {
        return reinterpret_cast<Key *>(keys_) + which * n;
    }

    struct Part {  // a bucket that is looked into
        int32_t before, nx, ny;
        int64_t begin;  // of its keys, those of x and then those of y
    };

    static constexpr int64_t kSlack = 64;
    static constexpr int kBuckets = 1 << kMaxBucketBits;
    uint16_t *const x_location, *const y_location;  // the place of each value's bucket in these tables:
    alignas(64) int32_t x_count[kBuckets], y_count[kBuckets];
    alignas(64) int32_t before[kBuckets];          // the difference where a bucket starts
    alignas(64) uint16_t wanted[kBuckets / 16];    // one bit for each bucket: whether it is looked into
    int64_t x_begin[kBuckets], y_begin[kBuckets];  // if so, the places of its keys
    int32_t *const position;                       // of the values in these buckets
    Part parts[kBuckets];

    // What one level of a zoom needs of each of its buckets. It is not on the stack, because a thread of another
    // library may have a small one.
    static constexpr int kZoomBuckets = 1 << kZoomBits;
    static constexpr int64_t kZoomLevel =
        kZoomBuckets * static_cast<int64_t>(2 * sizeof(int32_t) + sizeof(Part) + 2 * sizeof(int64_t));
    static constexpr int kZoomLevels = 12;  // a level takes 6 bits or more off keys of up to 64
    static constexpr int64_t kZoomBytes = kZoomLevels * kZoomLevel;
    char *const zoom_memory;
    int32_t zoom_tables[4][kZoomBuckets];

  private:
    uint64_t *const keys_;  // or 32-bit keys
};

// What is asked about a row: its h if that is above `floor`, else just `floor`. From `stop` on, any value that h
// reaches is as good as h. {0, INT64_MAX} asks for h itself, and {t - 1, t} whether h >= t.
struct Goal {
    int64_t floor, stop;
};

struct Outcome {
    int64_t h;  // as the goal asks; -1 for a row with NaN
    uint8_t flags;
    bool identical;  // both rows hold the same bits, all finite
};

template <typename T>
using Kernel = Outcome (*)(const T *x, const T *y, int64_t n, Goal goal, Workspace &workspace);

template <typename C>
using AdamWSpan = void (*)(const AdamWCoefficients<C> &c, int64_t n, const C *grad, C *param, C *exp_avg,
                           C *exp_avg_sq);

// Whether n numbers are all finite.
template <typename T>
using FiniteSpan = bool (*)(const T *values, int64_t n);

struct Kernels {
    const char *isa;
    Kernel<float> float32;
    Kernel<double> float64;
    Kernel<Float16> float16;
    Kernel<BFloat16> bfloat16;
    SideKernels<float> sides_float32;
    SideKernels<double> sides_float64;
    SideKernels<int64_t> sides_int64;
    AdamWSpan<float> adamw_float32;
    AdamWSpan<double> adamw_float64;
    FiniteSpan<float> finite_float32;
    FiniteSpan<double> finite_float64;
    FiniteSpan<Float16> finite_float16;
    FiniteSpan<BFloat16> finite_bfloat16;
};

// The kernels for this CPU, or those that KSL_ISA in the environment names.
const Kernels &active_kernels();

extern const Kernels kBaselineKernels;
#if defined(KSL_X86_TARGETS)
extern const Kernels kAvx2Kernels, kAvx512Kernels;
#endif

}  // namespace ksl
