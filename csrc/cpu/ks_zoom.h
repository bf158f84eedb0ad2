// The maximum of |#{x <= t} - #{y <= t}| over a range of keys, by zooming in on the buckets that can hide it.
//
// Buckets are equal ranges of keys, so every level takes kZoomBits bits off the range: there are at most 4
// levels for 32-bit keys and 7 for 64-bit keys, each linear in the keys that are still in question. This is
// the guarantee behind the fast first look: whatever the data, no row costs more than a radix sort of it.
//
// Included by one source file per instruction set; KSL_ISA is the namespace of its copy.
#pragma once

#include "ks_kernels.h"
#include "ks_keys.h"

namespace ksl {
namespace KSL_ISA {
namespace {

constexpr int kZoomBits = 10;
constexpr int64_t kZoomBuckets = int64_t{1} << kZoomBits;
constexpr int64_t kSortBelow = 48;  // keys in all; from here on counting beats comparing

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

template <typename Key>
void insertion_sort(Key *keys, int64_t n) {
    for (int64_t i = 1; i < n; ++i) {
        const Key key = keys[i];
        int64_t j = i;
        for (; j > 0 && keys[j - 1] > key; --j) keys[j] = keys[j - 1];
        keys[j] = key;
    }
}

template <typename Key>
int64_t zoom_by_sorting(Key *x, int64_t nx, Key *y, int64_t ny, int64_t before, int64_t best) {
    insertion_sort(x, nx);
    insertion_sort(y, ny);
    for (int64_t i = 0, j = 0;
         i < nx && j < ny;) {  // once one side is used up, only the end of the range is left
        const Key at = smaller(x[i], y[j]);
        while (i < nx && x[i] == at) ++i;
        while (j < ny && y[j] == at) ++j;
        best = larger(best, size_of(before + i - j));
    }
    return best;
}

template <typename Key>
struct Range {
    Key low, high;
};

template <typename Key>
Range<Key> range_of(const Key *x, int64_t nx, const Key *y, int64_t ny) {
    Range<Key> range{x[0], x[0]};
    for (int64_t i = 0; i < nx; ++i) range = {smaller(range.low, x[i]), larger(range.high, x[i])};
    for (int64_t j = 0; j < ny; ++j) range = {smaller(range.low, y[j]), larger(range.high, y[j])};
    return range;
}

// Counts in four tables by turns: what comes here often has many keys in one bucket, and increments of one
// counter have to wait for each other.
template <typename Key>
void count_keys(const Key *keys, int64_t n, Key low, int shift, int64_t buckets, int32_t *count) {
    constexpr int kTables = 4;
    int32_t tables[kTables][kZoomBuckets];
    for (auto &table : tables) std::memset(table, 0, static_cast<size_t>(buckets) * sizeof *table);
    int64_t i = 0;
    for (; i + kTables <= n; i += kTables) {
        for (int k = 0; k < kTables; ++k) ++tables[k][(keys[i + k] - low) >> shift];
    }
    for (; i < n; ++i) ++tables[0][(keys[i] - low) >> shift];
    for (int64_t b = 0; b < buckets; ++b)
        count[b] = tables[0][b] + tables[1][b] + tables[2][b] + tables[3][b];
}

// Copies the keys of the wanted buckets to where those buckets begin.
template <typename Key>
void gather_wanted(const Key *from, int64_t n, Key low, int shift, int32_t *begin, Key *to) {
    for (int64_t i = 0; i < n; ++i) {
        int32_t &at = begin[(from[i] - low) >> shift];
        if (at >= 0) to[at++] = from[i];
    }
}

// Looks at one range of keys: x holds nx of them and y ny, in any order, and before the range the difference
// is `before`. Returns the larger of `best` and the largest absolute difference inside the range; its end is
// the caller's, who knows the difference there. From `stop` on it may return early. x_scratch and y_scratch
// have room for as many keys; all four are overwritten.
template <typename Key>
int64_t zoom(Key *x, int64_t nx, Key *y, int64_t ny, Key *x_scratch, Key *y_scratch, int64_t before,
             int64_t best, int64_t stop) {
    // With one sample alone the difference moves one way, to the end of the range.
    if (nx == 0 || ny == 0 || best >= stop || reach(before, nx, ny) <= best) return best;
    if (nx + ny < kSortBelow) return zoom_by_sorting(x, nx, y, ny, before, best);
    const auto [low, high] = range_of(x, nx, y, ny);
    int shift = 0, bits = 5;
    while (bits < kZoomBits && int64_t{2} << bits < nx + ny) ++bits;
    while ((high - low) >> shift >> bits != 0) ++shift;

    int32_t x_count[kZoomBuckets], y_count[kZoomBuckets];
    const int64_t buckets = static_cast<int64_t>((high - low) >> shift) + 1;
    count_keys(x, nx, low, shift, buckets, x_count);
    count_keys(y, ny, low, shift, buckets, y_count);

    int64_t at = before;
    for (int64_t b = 0; b < buckets; ++b) {
        at += x_count[b] - y_count[b];
        best = larger(best, size_of(at));
    }
    if (shift == 0 || best >= stop)
        return best;  // with one key to a bucket there is nothing between the edges

    // Buckets to look into; begins of -1 mark the others. Their keys move to the scratch, each bucket
    // together.
    struct Part {
        int64_t before;
        int32_t x_begin, nx, y_begin, ny;
    };
    Part parts[kZoomBuckets];
    int64_t count = 0;
    int32_t x_end = 0, y_end = 0;
    at = before;
    for (int64_t b = 0; b < buckets; ++b) {
        const int32_t cx = x_count[b], cy = y_count[b];
        const bool wanted = cx > 0 && cy > 0 && reach(at, cx, cy) > best;
        x_count[b] = wanted ? x_end : -1;
        y_count[b] = wanted ? y_end : -1;
        if (wanted) {
            parts[count++] = {at, x_end, cx, y_end, cy};
            x_end += cx;
            y_end += cy;
        }
        at += cx - cy;
    }
    if (count == 0) return best;
    gather_wanted(x, nx, low, shift, x_count, x_scratch);
    gather_wanted(y, ny, low, shift, y_count, y_scratch);
    for (int64_t k = 0; k < count; ++k) {
        const Part &part = parts[k];
        best = zoom(x_scratch + part.x_begin, part.nx, y_scratch + part.y_begin, part.ny, x + part.x_begin,
                    y + part.y_begin, part.before, best, stop);
    }
    return best;
}

// The whole row by its keys alone: for rows with NaN or infinities, short ones, and where no good map can be
// made.
template <typename T>
Outcome zoom_row(const T *x, const T *y, int64_t n, Goal goal, Workspace &workspace) {
    using Key = key_t<T>;
    Key *x_keys = workspace.key_buffer<Key>(0, n), *y_keys = workspace.key_buffer<Key>(1, n);
    const uint8_t flags = ordered_keys(x, n, x_keys) | ordered_keys(y, n, y_keys);
    if (flags & kHasNaN) return {-1, flags};
    const int64_t best = larger<int64_t>(goal.floor, 0);
    return {zoom(x_keys, n, y_keys, n, workspace.key_buffer<Key>(2, n), workspace.key_buffer<Key>(3, n), 0,
                 best, goal.stop),
            flags};
}

}  // namespace
}  // namespace KSL_ISA
}  // namespace ksl
