// The maximum of |#{x <= t} - #{y <= t}| over a range of keys, by zooming in on the buckets that can hide it.
//
// Buckets are equal ranges of keys, so every level takes another 10 bits off the range: at most 4 levels for
// 32-bit keys and 7 for 64-bit keys, each linear in the keys that are still in question. This is the
// guarantee behind the fast first look: whatever the data, no row costs more than a radix sort of it.
#pragma once

#include <cstdint>

namespace ksl {

// What is asked about a row: its h if that is above `floor`, else just `floor`; and from `stop` on any value
// that h reaches is as good as h. {0, INT64_MAX} asks for h itself, {t - 1, t} whether h >= t.
struct Goal {
    int64_t floor, stop;
};

// Looks at one range of keys: x holds nx of them and y ny, in any order, and before the range the difference
// is `before`. Returns the larger of `best` and the largest absolute difference inside the range; its end is
// the caller's, who knows the difference there. From `stop` on it may return early. x_scratch and y_scratch
// have room for as many keys; all four are overwritten.
int64_t zoom(uint32_t *x, int64_t nx, uint32_t *y, int64_t ny, uint32_t *x_scratch, uint32_t *y_scratch,
             int64_t before, int64_t best, int64_t stop);
int64_t zoom(uint64_t *x, int64_t nx, uint64_t *y, int64_t ny, uint64_t *x_scratch, uint64_t *y_scratch,
             int64_t before, int64_t best, int64_t stop);

}  // namespace ksl
