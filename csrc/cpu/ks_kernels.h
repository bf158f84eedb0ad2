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
#include "ks_workspace.h"

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

// A sample that is the same for all rows: its sorted keys, and its counts by a map that is kept.
template <typename T>
struct SharedSide {
    bool is_x;
    int64_t size;
    const element_key_t<T> *sorted;
    const int32_t *counts;
    SideMap map;
};

// The steps of a row, see ks_sides.h. A row on one thread is `row`. ks_long.h cuts a long row over threads.
template <typename T>
struct SideKernels {
    using Key = element_key_t<T>;
    uint8_t (*row)(const T *x, const T *y, Search<Key> &search, SideWorkspace &w);
    bool (*shared_row)(const SharedSide<T> &shared, const T *other, Search<Key> &search, SideWorkspace &w);
    bool (*fit)(const T *x, int64_t n, const T *y, int64_t m, SideMap &map);
    bool (*count)(const SideMap &map, const T *values, int64_t n, uint16_t *block, int32_t *counts);
    void (*plan)(Search<Key> &search, SideTables &tables);
    void (*gather)(const SideMap &map, const SideTables &plan, const T *values, int64_t n, const int64_t *begin,
                   int32_t *done, SideScratch &scratch, Key *keys);
    void (*look)(const SidePart *parts, int64_t count, KeyBuffers<Key> buffers, Search<Key> &search,
                 ZoomMemory<SidePart>::Room room);
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
