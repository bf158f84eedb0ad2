// The interface between the loops over rows (ks_rows.cpp, ks_long.h, row_adamw.cpp and rows.h, compiled once) and what
// is compiled once for each instruction set: the two bucket engines (ks_engine.h and ks_sides.h), the arithmetic of
// AdamW, and the search for NaN (ks_loops.h).
#pragma once

#include <cstdint>
#include <type_traits>

#include "../adamw.h"
#include "../dtypes.h"
#include "../ks_keys.h"
#include "../ksl.h"
#include "../platform.h"

namespace ksl {

// An element of the engine: float, double, or int64_t. Key is the type of its ordered keys. Compute is the type in
// which its bucket is found. The conversion to it is monotone, which is all that a bucket needs.
template <typename T>
struct Element {
    using Key = key_t<T>;
    using Compute = T;
};
template <>
struct Element<int64_t> {
    using Key = uint64_t;
    using Compute = double;
};
template <typename T>
using element_key_t = typename Element<T>::Key;
template <typename T>
using element_compute_t = typename Element<T>::Compute;

constexpr uint64_t kSignBit = uint64_t{1} << 63;

// One side of the statistic: the exact maximum, and the place that scipy.stats.ks_2samp reports for it.
//
// scipy takes the first largest i / n - j / m, computed in float64, over the sorted x followed by the sorted y. Of
// places with the same exact difference, the one with the largest float64 wins, which rounding decides. After that, a
// value that is in x wins over one that is not, and then the smaller value wins.
template <typename Key>
struct Side {
    int64_t count;
    double difference;
    bool in_x, found;
    Key at;
};

// No difference is as large, because samples of fewer than 2^31 values have a least common multiple below this.
constexpr int64_t kNever = int64_t{1} << 62;

// What is known about a pair of samples. Counts are in units of gcd / (n * m). Places with a difference of `up` or more
// are candidates for plus, and those with -difference >= down for minus.
template <typename Key>
struct Search {
    int64_t n, m, x_unit, y_unit;  // x_unit = m / gcd, y_unit = n / gcd
    int64_t up, down;              // kNever for a side that is not asked for
    bool larger;                   // only the larger side is asked for, so that up = down
    Side<Key> plus, minus;
};

// Not inline functions: each file that includes this has its own, compiled for its own instruction set.
namespace {

template <typename Key>
Search<Key> new_search(int64_t n, int64_t m, int64_t gcd, Sides sides) {
    const Side<Key> nothing{0, 0, false, false, 0};
    const int64_t up = sides == Sides::kMinus ? kNever : 0, down = sides == Sides::kPlus ? kNever : 0;
    return {n, m, m / gcd, n / gcd, up, down, sides == Sides::kLarger, nothing, nothing};
}

// The difference of a place is known to be reached. This raises what is asked for.
template <typename Key>
void reached(Search<Key> &s, int64_t difference) {
    if (s.larger) {
        const int64_t size = difference < 0 ? -difference : difference;
        if (size > s.up) s.up = s.down = size;
    } else {
        if (difference > s.up && s.up != kNever) s.up = difference;
        if (-difference > s.down && s.down != kNever) s.down = -difference;
    }
}

template <typename Key>
void offer(Side<Key> &side, const Side<Key> &place) {
    bool better = !side.found || place.count > side.count;
    if (!better && place.count == side.count) {
        if (place.difference != side.difference) {
            better = place.difference > side.difference;
        } else {
            better = place.in_x != side.in_x ? place.in_x : place.at < side.at;
        }
    }
    if (better) side = place;
}

// A sample value with i values of x and j of y up to it.
template <typename Key>
void consider(Search<Key> &s, int64_t i, int64_t j, bool in_x, Key at) {
    const int64_t count = i * s.x_unit - j * s.y_unit;
    if (count < s.up && -count < s.down) return;
    reached(s, count);
    const double difference =
        static_cast<double>(i) / static_cast<double>(s.n) - static_cast<double>(j) / static_cast<double>(s.m);
    if (count >= s.up) offer(s.plus, {count, difference, in_x, true, at});
    if (-count >= s.down) offer(s.minus, {-count, -difference, in_x, true, at});
}

// Takes over what another search of the same samples has found.
template <typename Key>
void merge(Search<Key> &s, const Search<Key> &other) {
    for (const Side<Key> *side : {&other.plus, &other.minus}) {
        if (side->found) reached(s, side == &other.plus ? side->count : -side->count);
    }
    if (other.plus.found && other.plus.count >= s.up) offer(s.plus, other.plus);
    if (other.minus.found && other.minus.count >= s.down) offer(s.minus, other.minus);
}

}  // namespace

// The first and the last wanted bucket, in the order of the values. first > last if none is wanted.
struct BucketRange {
    int first, last;
};

// Buffers of one thread, kept from row to row. As in ks_kernels.h, there are no templates of the standard library here.
struct SideWorkspace {
    SideWorkspace() : zoom_memory(new char[kZoomBytes]) {}
    ~SideWorkspace() {
        delete[] zoom_memory;
        delete[] keys_;
        delete[] locations_;
    }
    SideWorkspace(const SideWorkspace &) = delete;
    SideWorkspace &operator=(const SideWorkspace &) = delete;

    // Room for this number of keys, and for as many again.
    template <typename Key>
    Key *keys(int64_t count) {
        if (count > capacity_) {
            delete[] keys_;
            keys_ = nullptr;
            keys_ = new uint64_t[2 * count + kSlack];
            capacity_ = count;
        }
        return reinterpret_cast<Key *>(keys_);
    }

    // Room for the locations of this number of values.
    uint16_t *locations(int64_t count) {
        if (count > locations_capacity_) {
            delete[] locations_;
            locations_ = nullptr;
            locations_ = new uint16_t[count + kSlack];
            locations_capacity_ = count;
        }
        return locations_;
    }

    struct Part {              // a bucket that is looked into
        int32_t i, j, nx, ny;  // how many values of x and y come before it, and are in it
        int64_t begin;         // of its keys, those of x and then those of y
    };

    static constexpr int64_t kSlack = 64;               // vector loops read and write whole blocks
    static constexpr int64_t kBlock = 4096;             // values that are located at a time
    static constexpr int64_t kKept = int64_t{1} << 22;  // locations that are kept; of longer rows none are
    static constexpr int kBits = 13, kBuckets = 1 << kBits, kCoarseBits = 11;

    // The map of values to buckets. A float is stored as a double, which holds it exactly.
    double low, scale;
    int bits;

    uint16_t location[kBlock + kSlack];
    int32_t position[kBlock + kSlack];
    alignas(64) int32_t x_count[kBuckets], y_count[kBuckets];    // later the number of keys that are copied already
    alignas(64) int32_t x_before[kBuckets], y_before[kBuckets];  // how many values come before a bucket
    alignas(64) uint16_t wanted[kBuckets / 16];                  // one bit for each bucket: whether it is looked into
    alignas(64) uint16_t coarse[(1 << kCoarseBits) / 16];        // the same for the buckets of a coarser map
    BucketRange range;                                           // of the wanted buckets
    int64_t x_begin[kBuckets], y_begin[kBuckets];                // if so, the places of its keys
    Part parts[kBuckets];

    static constexpr int kZoomBits = 10, kZoomBuckets = 1 << kZoomBits;
    static constexpr int64_t kZoomLevel =
        kZoomBuckets * static_cast<int64_t>(2 * sizeof(int32_t) + sizeof(Part) + 2 * sizeof(int64_t));
    static constexpr int kZoomLevels = 12;  // a level takes 6 bits or more off keys of up to 64
    static constexpr int64_t kZoomBytes = kZoomLevels * kZoomLevel;
    char *const zoom_memory;
    int32_t zoom_tables[4][kZoomBuckets];

  private:
    uint64_t *keys_ = nullptr;  // or 32-bit keys
    uint16_t *locations_ = nullptr;
    int64_t capacity_ = 0, locations_capacity_ = 0;
};

struct Wanted {
    int64_t parts, values;  // their number, and the number of their values
};

// A sample that is the same for all rows: its sorted keys, and its counts by a map that is kept.
template <typename T>
struct SharedSide {
    bool is_x;
    int64_t size;
    const element_key_t<T> *sorted;
    const int32_t *counts;
    double low, scale;
    int bits;
};

// The steps of a row, see ks_sides.h. A row on one thread is `row`. ks_long.h cuts a long row over threads.
template <typename T>
struct SideKernels {
    using Key = element_key_t<T>;
    uint8_t (*row)(const T *x, const T *y, Search<Key> &search, SideWorkspace &w);
    bool (*shared_row)(const SharedSide<T> &shared, const T *other, Search<Key> &search, SideWorkspace &w);
    bool (*fit)(const T *x, int64_t n, const T *y, int64_t m, SideWorkspace &w);
    bool (*count)(const SideWorkspace &map, const T *values, int64_t n, uint16_t *block, int32_t *counts);
    Wanted (*plan)(Search<Key> &search, SideWorkspace &w);
    void (*gather)(const SideWorkspace &plan, const T *values, int64_t n, const int64_t *begin, int32_t *done,
                   SideWorkspace &w, Key *keys);
    void (*look)(const SideWorkspace::Part *parts, int64_t count, Key *keys, Key *scratch, Search<Key> &search,
                 SideWorkspace &w);
};

constexpr int kMaxBucketBits = 11;
constexpr int kZoomBits = 10;  // see ks_engine.h

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
