#include "ks_zoom.h"

#include <algorithm>

#include "ks_kernels.h"
#include "ks_keys.h"

namespace ksl {
namespace {

constexpr int kZoomBits = 10;
constexpr int64_t kSortBelow = 48;  // keys in all; from here on counting beats comparing

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
        const Key at = std::min(x[i], y[j]);
        while (i < nx && x[i] == at) ++i;
        while (j < ny && y[j] == at) ++j;
        best = std::max(best, std::abs(before + i - j));
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
    for (int64_t i = 0; i < nx; ++i) range = {std::min(range.low, x[i]), std::max(range.high, x[i])};
    for (int64_t j = 0; j < ny; ++j) range = {std::min(range.low, y[j]), std::max(range.high, y[j])};
    return range;
}

// Copies the keys of the wanted buckets to where those buckets begin.
template <typename Key>
void gather(const Key *from, int64_t n, Key low, int shift, int32_t *begin, Key *to) {
    for (int64_t i = 0; i < n; ++i) {
        int32_t &at = begin[(from[i] - low) >> shift];
        if (at >= 0) to[at++] = from[i];
    }
}

template <typename Key>
int64_t zoom_keys(Key *x, int64_t nx, Key *y, int64_t ny, Key *x_scratch, Key *y_scratch, int64_t before,
                  int64_t best, int64_t stop) {
    // With one sample alone the difference moves one way, to the end of the range.
    if (nx == 0 || ny == 0 || best >= stop || reach(before, nx, ny) <= best) return best;
    if (nx + ny < kSortBelow) return zoom_by_sorting(x, nx, y, ny, before, best);
    const auto [low, high] = range_of(x, nx, y, ny);
    int shift = 0, bits = 5;
    while (bits < kZoomBits && int64_t{2} << bits < nx + ny) ++bits;
    while ((high - low) >> shift >> bits != 0) ++shift;

    constexpr int64_t kBuckets = int64_t{1} << kZoomBits;
    int32_t x_count[kBuckets], y_count[kBuckets];
    const int64_t buckets = static_cast<int64_t>((high - low) >> shift) + 1;
    std::fill_n(x_count, buckets, 0);
    std::fill_n(y_count, buckets, 0);
    for (int64_t i = 0; i < nx; ++i) ++x_count[(x[i] - low) >> shift];
    for (int64_t j = 0; j < ny; ++j) ++y_count[(y[j] - low) >> shift];

    int64_t at = before;
    for (int64_t b = 0; b < buckets; ++b) {
        at += x_count[b] - y_count[b];
        best = std::max(best, std::abs(at));
    }
    if (shift == 0 || best >= stop)
        return best;  // with one key to a bucket there is nothing between the edges

    // Buckets to look into; begins of -1 mark the others. Their keys move to the scratch, each bucket
    // together.
    struct Part {
        int64_t before;
        int32_t x_begin, nx, y_begin, ny;
    };
    Part parts[kBuckets];
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
    gather(x, nx, low, shift, x_count, x_scratch);
    gather(y, ny, low, shift, y_count, y_scratch);
    for (int64_t k = 0; k < count; ++k) {
        const Part &part = parts[k];
        best = zoom_keys(x_scratch + part.x_begin, part.nx, y_scratch + part.y_begin, part.ny,
                         x + part.x_begin, y + part.y_begin, part.before, best, stop);
    }
    return best;
}

}  // namespace

int64_t zoom(uint32_t *x, int64_t nx, uint32_t *y, int64_t ny, uint32_t *x_scratch, uint32_t *y_scratch,
             int64_t before, int64_t best, int64_t stop) {
    return zoom_keys(x, nx, y, ny, x_scratch, y_scratch, before, best, stop);
}

int64_t zoom(uint64_t *x, int64_t nx, uint64_t *y, int64_t ny, uint64_t *x_scratch, uint64_t *y_scratch,
             int64_t before, int64_t best, int64_t stop) {
    return zoom_keys(x, nx, y, ny, x_scratch, y_scratch, before, best, stop);
}

template <typename T>
Outcome zoom_row(const T *x, const T *y, int64_t n, Goal goal, Workspace &workspace) {
    using Key = key_t<T>;
    Key *x_keys = workspace.key_buffer<Key>(0, n), *y_keys = workspace.key_buffer<Key>(1, n);
    const uint8_t flags = ordered_keys(x, n, x_keys) | ordered_keys(y, n, y_keys);
    if (flags & kHasNaN) return {-1, flags};
    const int64_t best = std::max<int64_t>(goal.floor, 0);
    return {zoom_keys(x_keys, n, y_keys, n, workspace.key_buffer<Key>(2, n), workspace.key_buffer<Key>(3, n),
                      0, best, goal.stop),
            flags};
}

template Outcome zoom_row(const float *, const float *, int64_t, Goal, Workspace &);
template Outcome zoom_row(const Float16 *, const Float16 *, int64_t, Goal, Workspace &);
template Outcome zoom_row(const BFloat16 *, const BFloat16 *, int64_t, Goal, Workspace &);
template Outcome zoom_row(const double *, const double *, int64_t, Goal, Workspace &);

}  // namespace ksl
