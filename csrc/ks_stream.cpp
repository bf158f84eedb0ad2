// Counting of values by ranges of their ordered keys: what the KS test of samples in chunks does with every value.
//
// Where values come in random order, a branch that depends on one costs more than all the rest. So a block of values is
// first placed without branches, and those that are in an interval are moved together. Then they are counted.
#include <algorithm>
#include <cstdint>

#include "check.h"
#include "ieee_mode.h"
#include "ks_keys.h"
#include "ksl.h"

namespace ksl {
namespace {

constexpr int64_t kBlock = 512;  // the placed values of a block stay in the first-level cache

// ordered_key of ks_buckets.h, without a branch on the sign.
inline uint64_t branchless_key(uint64_t bits) {
    const uint64_t negative = uint64_t{0} - (bits >> 63);  // all ones, or 0
    return (uint64_t{1} << 63) + (((bits & kMagnitude<double>)^negative) - negative);
}

struct Placed {
    int64_t bucket;
    bool inside;
};

// Which bucket a key is in, where a single interval holds all keys.
struct WholeLine {
    int shift;
    Placed operator()(uint64_t key) const { return {static_cast<int64_t>(key >> shift), true}; }
};

// The same for any sorted intervals. Most cells of the grid touch one interval at most, and then nothing is searched.
struct Search {
    KeyIntervals to;
    uint64_t first, span;
    explicit Search(const KeyIntervals &intervals)
        : to(intervals),
          first(intervals.starts[0]),
          span(intervals.starts[intervals.count - 1] + intervals.lasts[intervals.count - 1] - first) {}

    Placed operator()(uint64_t key) const {
        // A key outside all intervals lands in the last cell and is outside of the last interval too.
        const uint64_t cell = std::min(key - first, span) >> to.cell_shift;
        int64_t low = to.cells[2 * cell], high = to.cells[2 * cell + 1];
        while (low < high) {
            const int64_t middle = (low + high + 1) / 2;
            if (to.starts[middle] <= key) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        const uint64_t inside = key - to.starts[low];
        return {to.bases[low] + static_cast<int64_t>(inside >> to.shifts[low]), inside <= to.lasts[low]};
    }
};

// f(buckets, keys, count) for the values in the intervals, block by block. Returns how many of all values are NaN.
template <typename T, typename Place, typename F>
int64_t for_placed(const T *values, int64_t n, const Place &place, F &&f) {
    IeeeMode ieee;  // else a subnormal float may become a zero on its way to double
    int64_t nans = 0;
    int64_t buckets[kBlock];
    uint64_t keys[kBlock];
    for (int64_t begin = 0; begin < n; begin += kBlock) {
        const int64_t end = std::min(begin + kBlock, n);
        int64_t count = 0;
        for (int64_t i = begin; i < end; ++i) {
            const uint64_t bits = bits_of(static_cast<double>(values[i]));
            const bool nan = (bits & kMagnitude<double>) > BitsOf<double>::kInfinity;
            const uint64_t key = branchless_key(bits);
            const Placed placed = place(key);
            buckets[count] = placed.bucket;
            keys[count] = key;
            nans += nan;
            count += placed.inside & !nan;
        }
        f(buckets, keys, count);
    }
    return nans;
}

template <typename F>
int64_t dispatch_placed(const void *values, int64_t n, DType dtype, const KeyIntervals &intervals, F &&f) {
    KSL_CHECK(dtype == DType::kFloat64 || dtype == DType::kFloat32, "values in chunks are float64 or float32");
    KSL_CHECK(intervals.count > 0, "there are no intervals");
    const auto with_place = [&](const auto &place) {
        return dtype == DType::kFloat64 ? for_placed(static_cast<const double *>(values), n, place, f)
                                        : for_placed(static_cast<const float *>(values), n, place, f);
    };
    const bool whole = intervals.starts[0] == 0 && intervals.lasts[0] == ~uint64_t{0};
    return whole ? with_place(WholeLine{intervals.shifts[0]}) : with_place(Search{intervals});
}

}  // namespace

int64_t ks_stream_count(const void *values, int64_t n, DType dtype, const KeyIntervals &intervals, int64_t *counts,
                        uint64_t *first_keys, uint8_t *states) {
    const auto count_block = [&](const int64_t *buckets, const uint64_t *keys, int64_t count) {
        for (int64_t i = 0; i < count; ++i) {
            const int64_t bucket = buckets[i];
            ++counts[bucket];
            uint8_t &state = states[bucket];
            if (state == kSeveralKeys) continue;
            if (state == kNoKey) {
                first_keys[bucket] = keys[i];
                state = kOneKey;
            } else if (first_keys[bucket] != keys[i]) {
                state = kSeveralKeys;
            }
        }
    };
    return dispatch_placed(values, n, dtype, intervals, count_block);
}

int64_t ks_stream_collect(const void *values, int64_t n, DType dtype, const KeyIntervals &intervals, uint64_t *keys,
                          int64_t *collected) {
    uint64_t *to = keys;
    const auto keep = [&](const int64_t *, const uint64_t *from, int64_t count) { to = std::copy_n(from, count, to); };
    const int64_t nans = dispatch_placed(values, n, dtype, intervals, keep);
    *collected = to - keys;
    return nans;
}

}  // namespace ksl
