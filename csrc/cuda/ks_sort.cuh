// The plain exact way, for ks_rows. A block sorts the keys of both samples and looks up each value in both. Unlike the
// bucket engine, it gives each side's maximum and its place, and it takes samples of different sizes. Its counterpart,
// csrc/cpu/ks_sort.h, tells which of several places with the same difference is taken.
#pragma once

#include "../ks_keys.h"
#include "device.cuh"

namespace ksl {
namespace cuda {

// Sorts 2^bits keys in place, by Batcher's bitonic network. It needs no other memory, and the same steps for any data.
template <typename Key>
__device__ void sort_keys(Key *keys, int bits) {
    const uint32_t half = (1u << bits) >> 1;
    for (int up = 1; up <= bits; ++up) {  // merges runs into sorted runs of 2^up keys, each second one falling
        for (int step = up - 1; step >= 0; --step) {
            const uint32_t distance = 1u << step;
            for (uint32_t i = threadIdx.x; i < half; i += blockDim.x) {
                const uint32_t low = (i & ~(distance - 1)) * 2 + (i & (distance - 1)), high = low + distance;
                const bool rising = (low >> up & 1) == 0;
                const Key a = keys[low], b = keys[high];
                if ((b < a) == rising) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            __syncthreads();
        }
    }
}

// How many of n sorted keys are at most `key`.
template <typename Key>
__device__ int64_t count_to(const Key *keys, int64_t n, Key key) {
    int64_t low = 0, high = n;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (keys[middle] <= key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// One side of the statistic: the exact maximum, and the place that scipy.stats.ks_2samp reports for it.
template <typename Key>
struct Side {
    int64_t count;
    double difference;
    bool in_x;
    Key at;

    // Of places with the same exact difference, prefers the one with the largest float64 difference, then one whose
    // value is in x, then the smallest value.
    __device__ bool better_than(const Side &other) const {
        if (count != other.count) return count > other.count;
        if (difference != other.difference) return difference > other.difference;
        if (in_x != other.in_x) return in_x;
        return at < other.at;
    }
};

struct BetterSide {
    template <typename Side>
    __device__ Side operator()(const Side &a, const Side &b) const {
        return b.better_than(a) ? b : a;
    }
};

// Sorted samples of n and m values, and the units in which their ranks are counted.
template <typename Key>
struct SortedPair {
    const Key *x, *y;
    int64_t n, m, x_unit, y_unit;

    // The best place that this thread looks at for a side: `sign` is 1 where x is ahead, -1 where y is.
    __device__ Side<Key> best_side(int sign) const {
        Side<Key> best{INT64_MIN, 0, false, 0};
        for (int64_t k = threadIdx.x; k < n + m; k += blockDim.x) {
            const Key at = k < n ? x[k] : y[k - n];
            const int64_t i = count_to(x, n, at), j = count_to(y, m, at);
            const double difference =
                static_cast<double>(i) / static_cast<double>(n) - static_cast<double>(j) / static_cast<double>(m);
            const Side<Key> side{sign * (i * x_unit - j * y_unit), sign * difference, i > 0 && x[i - 1] == at, at};
            if (side.better_than(best)) best = side;
        }
        return best;
    }
};

}  // namespace cuda
}  // namespace ksl
