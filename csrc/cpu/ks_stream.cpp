// Counting of values by ranges of their ordered keys: what the KS test of samples in chunks does with every value.
#include <cstdint>

#include "../check.h"
#include "../ks_keys.h"
#include "../ksl.h"
#include "ks_input.h"

namespace ksl {
namespace {

constexpr int64_t kNowhere = -1;

// Which bucket a key is in, where a single interval holds all keys.
struct WholeLine {
    int shift;
    int64_t operator()(uint64_t key) const { return static_cast<int64_t>(key >> shift); }
};

// The same for any sorted intervals. A grid of equal cells over them narrows the search to the few of one cell.
struct Search {
    KeyIntervals to;
    uint64_t first, span;
    explicit Search(const KeyIntervals &intervals)
        : to(intervals),
          first(intervals.starts[0]),
          span(intervals.starts[intervals.count - 1] + intervals.lasts[intervals.count - 1] - first) {}

    int64_t operator()(uint64_t key) const {
        const uint64_t offset = key - first;
        if (offset > span) return kNowhere;
        const uint64_t cell = offset >> to.cell_shift;
        int64_t low = to.cells[cell], high = to.cells[cell + 1];
        while (low < high) {
            const int64_t middle = (low + high + 1) / 2;
            if (to.starts[middle] <= key) {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        const uint64_t inside = key - to.starts[low];
        return inside > to.lasts[low] ? kNowhere : to.bases[low] + static_cast<int64_t>(inside >> to.shifts[low]);
    }
};

// f(bucket, key) for the values in the intervals. Returns how many of all values are NaN.
template <typename T, typename Place, typename F>
int64_t for_placed(const T *values, int64_t n, const Place &place, F &&f) {
    IeeeMode ieee;  // else a subnormal float may become a zero on its way to double
    int64_t nans = 0;
    for (int64_t i = 0; i < n; ++i) {
        if ((bits_of(values[i]) & kMagnitude<T>) > BitsOf<T>::kInfinity) {
            ++nans;
            continue;
        }
        const uint64_t key = key_of(static_cast<double>(values[i]));
        const int64_t bucket = place(key);
        if (bucket != kNowhere) f(bucket, key);
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
    return dispatch_placed(values, n, dtype, intervals, [&](int64_t bucket, uint64_t key) {
        ++counts[bucket];
        uint8_t &state = states[bucket];
        if (state == kSeveralKeys) return;
        if (state == kNoKey) {
            first_keys[bucket] = key;
            state = kOneKey;
        } else if (first_keys[bucket] != key) {
            state = kSeveralKeys;
        }
    });
}

int64_t ks_stream_collect(const void *values, int64_t n, DType dtype, const KeyIntervals &intervals, uint64_t *keys,
                          int64_t *collected) {
    int64_t count = 0;
    const int64_t nans =
        dispatch_placed(values, n, dtype, intervals, [&](int64_t, uint64_t key) { keys[count++] = key; });
    *collected = count;
    return nans;
}

}  // namespace ksl
