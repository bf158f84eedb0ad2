// The maximum of |#{x <= t} - #{y <= t}| over a range of keys, by zooming in on the buckets that can hide it.
//
// Buckets are equal ranges of keys. Their number is a power of two near half the number of keys, up to 2^kZoomBits. So
// every level takes 6 to 10 bits off the range. There are at most 6 levels for 32-bit keys and 11 for 64-bit keys, each
// linear in the keys that are still in question. This is the guarantee behind the fast first look: whatever the data, a
// row costs at most about as much as its radix sort.
//
// Included by one source file per instruction set; KSL_ISA is the namespace of its copy.
#pragma once

#include "../ks_keys.h"
#include "ks_kernels.h"

namespace ksl {
namespace KSL_ISA {
namespace {

constexpr int64_t kZoomBuckets = int64_t{1} << kZoomBits;
constexpr int64_t kZoomFrom = 96;  // from this number of keys on, counting beats comparing all with all

// As in <algorithm>, which this may not use: see Workspace.
template <typename N>
N larger(N a, N b) {
    return a > b ? a : b;
}

template <typename N>
N smaller(N a, N b) {
    return a < b ? a : b;
}

inline int64_t size_of(int64_t difference) { return difference < 0 ? -difference : difference; }

// Counts in four tables by turns. Ranges that get here often have many keys in one bucket, and increments of one
// counter have to wait for each other.
template <typename Key>
void count_keys(const Key *keys, int64_t n, Key low, int shift, int64_t buckets, int32_t *count,
                int32_t (&tables)[4][kZoomBuckets]) {
    constexpr int kTables = 4;
    for (auto &table : tables) std::memset(table, 0, static_cast<size_t>(buckets) * sizeof *table);
    int64_t i = 0;
    for (; i + kTables <= n; i += kTables) {
        for (int k = 0; k < kTables; ++k) ++tables[k][(keys[i + k] - low) >> shift];
    }
    for (; i < n; ++i) ++tables[0][(keys[i] - low) >> shift];
    for (int64_t b = 0; b < buckets; ++b) count[b] = tables[0][b] + tables[1][b] + tables[2][b] + tables[3][b];
}

// Copies the keys of the wanted buckets to where those buckets begin.
template <typename Key>
void gather_wanted(const Key *from, int64_t n, Key low, int shift, int64_t *begin, Key *to) {
    for (int64_t i = 0; i < n; ++i) {
        int64_t &at = begin[(from[i] - low) >> shift];
        if (at >= 0) to[at++] = from[i];
    }
}

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

}  // namespace
}  // namespace KSL_ISA
}  // namespace ksl
