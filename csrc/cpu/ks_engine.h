// The bucket engine. A first look at a row decides most rows, and a closer look follows where that is not enough.
//
// Included by ks_avx512.cpp, ks_avx2.cpp and ks_baseline.cpp. Each of them sets the instruction set, and KSL_ISA, which
// is the namespace of its own copy. In this namespace it defines Loops, the vector loops of ks_loops.h or better ones.
//
// A row goes through these steps:
//   1. identical_rows: most rows of a fine-tuned table have not changed at all, and cost one read.
//   2. fit: a map of values to buckets, fitted to a small sample. It is monotone, because each of its operations rounds
//      monotonically. That makes the result right. A good fit only makes it fast.
//   3. count_row: two tables of counts. Most of the time goes into one increment per value.
//   4. scan: the lower and the upper bound of h. ks_decide mostly ends here.
//   5. list_wanted: the buckets that reach beyond the lower bound. If they hold a good part of the row, the map may
//      have been fitted to outliers. Then step 2 is repeated once, with a map that is fitted without them.
//   6. look_into: the values of the wanted buckets, bucket by bucket.
#pragma once

#include "../ks_keys.h"
#include "../platform.h"
#include "ks_loops.h"
#include "ks_sides.h"

namespace ksl {
namespace KSL_ISA {
namespace {

// The zoom: the maximum of |#{x <= t} - #{y <= t}| over a range of keys, by looking into the buckets that can hide it.
//
// Buckets are equal ranges of keys. Their number is a power of two near half the number of keys, up to 2^kZoomBits. So
// every level takes 6 to 10 bits off the range. There are at most 6 levels for 32-bit keys and 11 for 64-bit keys, each
// linear in the keys that are still in question. This is the guarantee behind the fast first look: whatever the data, a
// row costs at most about as much as its radix sort.
//
// Looks at one range of keys. keys holds nx of x and then ny of y, each in any order. Before the range, the difference
// is `before`. Returns the larger of `best` and the largest absolute difference inside the range. The caller knows the
// difference at its end. From `stop` on it may return early. scratch has room for as many keys. Both are overwritten.
// `memory` is the rest of the workspace's memory, for this level and those below.
template <typename Key>
int64_t zoom(Key *keys, int64_t nx, int64_t ny, Key *scratch, int64_t before, int64_t best, int64_t stop, Workspace &w,
             char *memory) {
    // With one sample alone, the difference moves in one direction, to the end of the range.
    if (nx == 0 || ny == 0 || best >= stop || reach(before, nx, ny) <= best) return best;
    if (nx + ny < kZoomFrom) {
        return larger<int64_t>(best, Loops::search(keys, static_cast<int32_t>(nx), static_cast<int32_t>(ny),
                                                   static_cast<int32_t>(before)));
    }
    Key low = keys[0], high = keys[0];
    for (int64_t i = 1; i < nx + ny; ++i) {
        low = smaller(low, keys[i]);
        high = larger(high, keys[i]);
    }
    int shift = 0, bits = 5;
    while (bits < kZoomBits && int64_t{2} << bits < nx + ny) ++bits;
    while ((high - low) >> shift >> bits != 0) ++shift;

    const int64_t buckets = static_cast<int64_t>((high - low) >> shift) + 1;
    auto *parts = reinterpret_cast<Workspace::Part *>(memory);
    auto *x_begin = reinterpret_cast<int64_t *>(parts + buckets), *y_begin = x_begin + buckets;
    auto *x_count = reinterpret_cast<int32_t *>(y_begin + buckets), *y_count = x_count + buckets;
    memory = reinterpret_cast<char *>(y_count + buckets);
    count_keys(keys, nx, low, shift, buckets, x_count, w.zoom_tables);
    count_keys(keys + nx, ny, low, shift, buckets, y_count, w.zoom_tables);
    int64_t at = before;
    for (int64_t b = 0; b < buckets; ++b) {
        at += x_count[b] - y_count[b];
        best = larger(best, size_of(at));
    }
    if (shift == 0 || best >= stop) return best;  // with one key to a bucket there is nothing between the edges

    // The buckets to look into. Their keys move to the scratch, bucket by bucket. -1 marks the other buckets.
    int64_t count = 0, end = 0;
    at = before;
    for (int64_t b = 0; b < buckets; ++b) {
        const int32_t cx = x_count[b], cy = y_count[b];
        const bool wanted = cx > 0 && cy > 0 && reach(at, cx, cy) > best;
        x_begin[b] = wanted ? end : -1;
        y_begin[b] = wanted ? end + cx : -1;
        if (wanted) {
            parts[count++] = {static_cast<int32_t>(at), cx, cy, end};
            end += int64_t{cx} + cy;
        }
        at += cx - cy;
    }
    if (count == 0) return best;
    gather_wanted(keys, nx, low, shift, x_begin, scratch);
    gather_wanted(keys + nx, ny, low, shift, y_begin, scratch);
    for (int64_t k = 0; k < count; ++k) {
        const Workspace::Part &part = parts[k];
        best = zoom(scratch + part.begin, part.nx, part.ny, keys + part.begin, part.before, best, stop, w, memory);
    }
    return best;
}

// The whole row by its keys alone, for short rows, rows with NaN or infinities, and rows without a good map.
template <typename T>
Outcome zoom_row(const T *x, const T *y, int64_t n, Goal goal, Workspace &w) {
    key_t<T> *keys = w.key_buffer<key_t<T>>(0, n), *scratch = w.key_buffer<key_t<T>>(2, n);
    const uint8_t flags = ordered_keys(x, n, keys) | ordered_keys(y, n, keys + n);
    if (flags & kHasNaN) return {-1, flags, false};
    const int64_t h = zoom(keys, n, n, scratch, 0, larger<int64_t>(goal.floor, 0), goal.stop, w, w.zoom_memory);
    return {h, flags, false};
}

// Copies the keys of the values at these positions to the places of their buckets.
template <typename T, typename Key>
void gather(const T *values, const uint16_t *locations, const int32_t *positions, int64_t count, int64_t *begin,
            Key *keys) {
    for (int64_t i = 0; i < count; ++i) {
        keys[begin[locations[positions[i]]]++] = key_of(values[positions[i]]);
    }
}

// Marks those of the coarse buckets that reach beyond `best`.
inline void mark_wanted(const CoarseBuckets &coarse, Workspace &w, int rows, int64_t best) {
    std::memset(w.wanted, 0, static_cast<size_t>(rows) * sizeof *w.wanted);
    for (const CoarseBuckets::Bucket &bucket : coarse.buckets) {
        if (bucket.reach <= best) continue;
        w.wanted[bucket.location / kLanes] |= static_cast<uint16_t>(1u << bucket.location % kLanes);
        w.before[bucket.location] = bucket.before;
    }
}

// The buckets that reach beyond `best`.
struct WantedBuckets {
    int64_t parts, values, farthest;  // their number, the number of their values, and the farthest reach
    BucketRange range;
};

template <typename T>
WantedBuckets list_wanted(const MapOf<T> &map, int rows, const Bounds &bounds, int64_t best, Workspace &w) {
    if (map.single_valued()) {
        mark_wanted(map.coarse_buckets(w.x_count, w.y_count, bounds), w, rows, best);
    } else {
        Loops::mark_wanted(w, rows, bounds, static_cast<int32_t>(best));
    }
    WantedBuckets wanted{0, 0, 0, kNoBuckets};
    for (int s = 0; s < rows; ++s) {
        for (uint32_t bits = w.wanted[s]; bits != 0; bits &= bits - 1) {
            const int at = s * kLanes + lowest_bit(bits);
            const int32_t cx = w.x_count[at], cy = w.y_count[at];
            const int64_t far = reach(w.before[at], cx, cy);
            wanted.farthest = far > wanted.farthest ? far : wanted.farthest;
            wanted.range = widened(wanted.range, bucket_of(at, map.lane_bits));
            w.parts[wanted.parts++] = {w.before[at], cx, cy, wanted.values};
            w.x_begin[at] = wanted.values;
            w.y_begin[at] = wanted.values + cx;
            wanted.values += int64_t{cx} + cy;
        }
    }
    return wanted;
}

// The larger of `best` and the differences inside the wanted buckets.
template <typename T>
int64_t look_into(const WantedBuckets &wanted, const T *x, const T *y, int64_t n, int lane_bits, Goal goal,
                  int64_t best, Workspace &w) {
    using Key = key_t<T>;
    Key *keys = w.key_buffer<Key>(0, n), *scratch = w.key_buffer<Key>(2, n);
    int64_t found = Loops::find_wanted(w.x_location, n, w.wanted, wanted.range, lane_bits, w.position);
    gather(x, w.x_location, w.position, found, w.x_begin, keys);
    found = Loops::find_wanted(w.y_location, n, w.wanted, wanted.range, lane_bits, w.position);
    gather(y, w.y_location, w.position, found, w.y_begin, keys);
    // Buckets that reach farthest come first, as they are likely to raise `best` beyond the reach of most others.
    for (int64_t limit : {(best + wanted.farthest) / 2, int64_t{-1}}) {
        for (int64_t k = 0; k < wanted.parts && best < goal.stop; ++k) {
            Workspace::Part &part = w.parts[k];
            const int64_t far = reach(part.before, part.nx, part.ny);
            if (far <= best || far <= limit) continue;
            best = zoom(keys + part.begin, part.nx, part.ny, scratch + part.begin, part.before, best, goal.stop, w,
                        w.zoom_memory);
            part.nx = part.ny = 0;  // done, because nothing inside it can exceed `best` any more
        }
    }
    return best;
}

// Counts both rows. Returns false if NaN or infinity is among their values.
template <typename T>
bool count_row(const MapOf<T> &map, const T *x, const T *y, int64_t n, int bits, Workspace &w) {
    std::memset(w.x_count, 0, sizeof(int32_t) << bits);
    std::memset(w.y_count, 0, sizeof(int32_t) << bits);
    return locate_and_count_all(Loops::locator(map, x), x, n, w.x_location, w.x_count, x + n) &&
           locate_and_count_all(Loops::locator(map, y), y, n, w.y_location, w.y_count, y + n);
}

// Bounds h by the counts.
template <typename T>
Bounds scan_counts(const MapOf<T> &map, int rows, const Workspace &w) {
    if (!map.single_valued()) return Loops::template scan<true>(w.x_count, w.y_count, rows);
    Bounds bounds = Loops::template scan<false>(w.x_count, w.y_count, rows);
    bounds.upper = map.coarse_buckets(w.x_count, w.y_count, bounds).upper(bounds.lower);
    return bounds;
}

inline int bucket_bits(int64_t n) {
    int bits = 6;
    while (bits < 11 && int64_t{2} << bits < n) ++bits;
    return bits;
}

constexpr int64_t kBucketsFrom = 64;  // shorter rows are not worth the tables

template <typename T>
Outcome row_statistic(const T *x, const T *y, int64_t n, Goal goal, Workspace &w) {
    const int same = Loops::identical_rows(x, y, n);
    if (same == 1) return {goal.floor > 0 ? goal.floor : 0, 0, true};
    if (Loops::constant(x, n) && Loops::constant(y, n)) {  // a sort is quick with these too
        const int64_t h = key_of(x[0]) == key_of(y[0]) ? 0 : n;
        return {h > goal.floor ? h : goal.floor, 0, false};
    }
    if (n < kBucketsFrom) return zoom_row(x, y, n, goal, w);
    MapOf<T> map;
    const int bits = bucket_bits(n), rows = (1 << bits) / kLanes;
    if (same == -1 || !map.fit(x, n, y, n, bits)) return zoom_row(x, y, n, goal, w);
    int64_t best = goal.floor;
    for (bool first = true;; first = false) {
        if (!count_row(map, x, y, n, bits, w)) return zoom_row(x, y, n, goal, w);
        const Bounds bounds = scan_counts<T>(map, rows, w);
        best = bounds.lower > best ? bounds.lower : best;
        if (best >= goal.stop || bounds.upper <= best) return {best, 0, false};
        const WantedBuckets wanted = list_wanted<T>(map, rows, bounds, best, w);
        if (first && wanted.values > n / 2 && map.refit(x, n, y, n, bits)) continue;
        return {look_into(wanted, x, y, n, map.lane_bits, goal, best, w), 0, false};
    }
}

// All kernels of this instruction set. This is a constant, so that its instructions are not used when the module loads.
constexpr Kernels kernels(const char *isa) {
    return {isa,
            row_statistic<float>,
            row_statistic<double>,
            row_statistic<Float16>,
            row_statistic<BFloat16>,
            side_kernels<float>(),
            side_kernels<double>(),
            side_kernels<int64_t>(),
            adamw_span<float>,
            adamw_span<double>,
            finite_span<float>,
            finite_span<double>,
            finite_span<Float16>,
            finite_span<BFloat16>};
}

}  // namespace
}  // namespace KSL_ISA
}  // namespace ksl
