// What stands between the loop over rows (ks_rows.cpp, compiled once) and the bucket engine (ks_engine.h, compiled
// once for each instruction set).
#pragma once

#include <cstdint>
#include <vector>

#include "../dtypes.h"
#include "../ksl.h"
#include "ks_zoom.h"

namespace ksl {

constexpr int kMaxBucketBits = 11;

// Buffers for rows of n values, kept from row to row. Plain pointers: the engine must not instantiate the standard
// library's templates, because the linker keeps only one copy of each, and that copy could be AVX-512 code.
struct Workspace {
    explicit Workspace(int64_t n)
        : locations(static_cast<size_t>(2 * (n + 64))),
          positions(static_cast<size_t>(n + 64)),
          keys(static_cast<size_t>(4 * n + 64)),
          x_location(locations.data()),
          y_location(locations.data() + n + 64),
          position(positions.data()) {}
    Workspace(const Workspace &) = delete;
    Workspace &operator=(const Workspace &) = delete;

  private:
    std::vector<uint16_t> locations;
    std::vector<int32_t> positions;
    std::vector<uint64_t> keys;  // also holds 32-bit keys

  public:
    uint16_t *x_location, *y_location;  // where each value's bucket is in the tables below
    int32_t *position;                  // of the values whose bucket is looked into
    static constexpr int kBuckets = 1 << kMaxBucketBits;
    alignas(64) int32_t x_count[kBuckets], y_count[kBuckets];
    int64_t x_begin[kBuckets], y_begin[kBuckets];  // of the keys of a bucket that is looked into
    alignas(64) int32_t before[kBuckets];        // the difference where a bucket starts
    alignas(64) uint16_t wanted[kBuckets / 16];  // one bit per bucket: is it looked into?
    struct Part {
        int32_t before, nx, ny;
        int64_t begin;  // of its keys, those of x and then those of y
    };
    Part parts[kBuckets];

    template <typename Key>
    Key *key_buffer(int64_t which, int64_t n) {
        return reinterpret_cast<Key *>(keys.data()) + which * n;
    }
};

struct Outcome {
    int64_t h;  // as the goal asks; -1 for a row with NaN
    uint8_t flags;
};

template <typename T>
using Kernel = Outcome (*)(const T *x, const T *y, int64_t n, Goal goal, Workspace &workspace);

struct Kernels {
    const char *isa;
    Kernel<float> float32;
    Kernel<double> float64;
    Kernel<Float16> float16;
    Kernel<BFloat16> bfloat16;
};

extern const Kernels kBaselineKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels, kAvx512Kernels;
#endif

// The whole row by its keys alone: for rows with NaN or infinities, and where no linear map can be made.
template <typename T>
Outcome zoom_row(const T *x, const T *y, int64_t n, Goal goal, Workspace &workspace);

}  // namespace ksl
