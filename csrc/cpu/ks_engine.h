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
// The room is for this level and those below.
template <typename Key>
int64_t zoom(Key *keys, int64_t nx, int64_t ny, Key *scratch, int64_t before, int64_t best, int64_t stop,
             ZoomMemory<RowPart>::Room room) {
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
    const ZoomMemory<RowPart>::Level level(room, buckets);
    const int32_t *const x_count = level.x_count, *const y_count = level.y_count;
    count_keys(keys, nx, low, shift, buckets, level.x_count, room.tables());
    count_keys(keys + nx, ny, low, shift, buckets, level.y_count, room.tables());
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
        level.x_begin[b] = wanted ? end : -1;
        level.y_begin[b] = wanted ? end + cx : -1;
        if (wanted) {
            level.parts[count++] = {static_cast<int32_t>(at), cx, cy, end};
            end += int64_t{cx} + cy;
        }
        at += cx - cy;
    }
    if (count == 0) return best;
    gather_wanted(keys, nx, low, shift, level.x_begin, scratch);
    gather_wanted(keys + nx, ny, low, shift, level.y_begin, scratch);
    for (int64_t k = 0; k < count; ++k) {
        const RowPart &part = level.parts[k];
        best = zoom(scratch + part.begin, part.nx, part.ny, keys + part.begin, part.before, best, stop, level.below);
    }
    return best;
}

// The whole row by its keys alone, for short rows, rows with NaN or infinities, and rows without a good map.
template <typename T>
Outcome zoom_row(const T *x, const T *y, int64_t n, Goal goal, Workspace &w) {
    const auto [keys, scratch] = w.template keys<key_t<T>>();
    const uint8_t flags = ordered_keys(x, n, keys) | ordered_keys(y, n, keys + n);
    if (flags & kHasNaN) return {-1, flags, false};
    const int64_t h = zoom(keys, n, n, scratch, 0, larger<int64_t>(goal.floor, 0), goal.stop, w.zoom.room());
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
inline void mark_coarse(const CoarseBuckets &coarse, RowTables &tables, int64_t best) {
    const RowTables::Marks marks = tables.mark();
    std::memset(marks.wanted, 0, static_cast<size_t>(tables.rows()) * sizeof *marks.wanted);
    for (const CoarseBuckets::Bucket &bucket : coarse.buckets) {
        if (bucket.reach <= best) continue;
        marks.wanted[bucket.location / kLanes] |= static_cast<uint16_t>(1u << bucket.location % kLanes);
        marks.before[bucket.location] = bucket.before;
    }
}

// Marks and lists the buckets that reach beyond `best`. Returns the farthest reach.
template <typename T>
int64_t list_wanted(const MapOf<T> &map, const Bounds &bounds, int64_t best, RowTables &tables) {
    const int32_t *const x_count = tables.x_count(), *const y_count = tables.y_count();
    if (map.single_valued()) {
        mark_coarse(map.coarse_buckets(x_count, y_count, bounds), tables, best);
    } else {
        Loops::mark_wanted(tables, bounds, static_cast<int32_t>(best));
    }
    const uint16_t *const wanted = tables.wanted();
    const int rows = tables.rows();
    int64_t farthest = 0;
    for (int s = 0; s < rows; ++s) {
        for (uint32_t bits = wanted[s]; bits != 0; bits &= bits - 1) {
            const int at = s * kLanes + lowest_bit(bits);
            const RowPart part{tables.before()[at], x_count[at], y_count[at], 0};
            farthest = larger(farthest, reach(part.before, part.nx, part.ny));
            tables.list(at, bucket_of(at, map.lane_bits), part);
        }
    }
    return farthest;
}

// The larger of `best` and the differences inside the listed buckets.
template <typename T>
int64_t look_into(const T *x, const T *y, int64_t n, int64_t farthest, Goal goal, int64_t best, Workspace &w) {
    RowTables &tables = w.tables;
    const auto [keys, scratch] = w.template keys<key_t<T>>();
    const auto gather_from = [&, to = keys](const T *values, const uint16_t *locations, int64_t *places) {
        const int64_t found =
            Loops::find_wanted(locations, n, tables.wanted(), tables.range(), tables.lane_bits(), w.positions());
        gather(values, locations, w.positions(), found, places, to);
    };
    gather_from(x, w.x_location(), tables.x_places());
    gather_from(y, w.y_location(), tables.y_places());
    // Buckets that reach farthest come first, as they are likely to raise `best` beyond the reach of most others.
    for (int64_t limit : {(best + farthest) / 2, int64_t{-1}}) {
        for (int64_t k = 0; k < tables.part_count() && best < goal.stop; ++k) {
            RowPart &part = tables.parts()[k];
            const int64_t far = reach(part.before, part.nx, part.ny);
            if (far <= best || far <= limit) continue;
            best = zoom(keys + part.begin, part.nx, part.ny, scratch + part.begin, part.before, best, goal.stop,
                        w.zoom.room());
            part.nx = part.ny = 0;  // done, because nothing inside it can exceed `best` any more
        }
    }
    return best;
}

// Counts both rows. Returns false if NaN or infinity is among their values.
template <typename T>
bool count_row(const MapOf<T> &map, const T *x, const T *y, int64_t n, int bits, Workspace &w) {
    w.tables.begin(bits);
    return locate_and_count_all(Loops::locator(map, x), x, n, w.x_location(), w.tables.x_counters(), x + n) &&
           locate_and_count_all(Loops::locator(map, y), y, n, w.y_location(), w.tables.y_counters(), y + n);
}

// Bounds h by the counts.
template <typename T>
Bounds scan_counts(const MapOf<T> &map, const RowTables &tables) {
    const int32_t *const x_count = tables.x_count(), *const y_count = tables.y_count();
    if (!map.single_valued()) return Loops::template scan<true>(x_count, y_count, tables.rows());
    Bounds bounds = Loops::template scan<false>(x_count, y_count, tables.rows());
    bounds.upper = map.coarse_buckets(x_count, y_count, bounds).upper(bounds.lower);
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
    const int bits = bucket_bits(n);
    if (same == -1 || !map.fit(x, n, y, n, bits)) return zoom_row(x, y, n, goal, w);
    int64_t best = goal.floor;
    for (bool first = true;; first = false) {
        if (!count_row(map, x, y, n, bits, w)) return zoom_row(x, y, n, goal, w);
        const Bounds bounds = scan_counts<T>(map, w.tables);
        best = bounds.lower > best ? bounds.lower : best;
        if (best >= goal.stop || bounds.upper <= best) return {best, 0, false};
        const int64_t farthest = list_wanted<T>(map, bounds, best, w.tables);
        if (first && w.tables.values() > n / 2 && map.refit(x, n, y, n, bits)) continue;
        return {look_into(x, y, n, farthest, goal, best, w), 0, false};
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
