// Stands in for CUB's header of this name: a stable sort of pairs by some bits of their keys.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda_runtime.h"

namespace cub {

struct DeviceRadixSort {
    // As CUB: without a workspace it only says how large that has to be, and the inputs keep what they hold.
    template <typename Key, typename Value, typename Count>
    static cudaError_t SortPairs(void *workspace, size_t &bytes, const Key *keys_in, Key *keys_out,
                                 const Value *values_in, Value *values_out, Count count, int begin_bit, int end_bit,
                                 cudaStream_t = nullptr) {
        if (workspace == nullptr) {
            bytes = 1;
            return cudaSuccess;
        }
        const uint64_t bits = end_bit - begin_bit;
        const auto digits = [&](size_t i) { return (uint64_t{keys_in[i]} >> begin_bit) & ((uint64_t{1} << bits) - 1); };
        std::vector<size_t> order(static_cast<size_t>(count));
        std::iota(order.begin(), order.end(), size_t{0});
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return digits(a) < digits(b); });
        for (size_t i = 0; i < order.size(); ++i) {
            keys_out[i] = keys_in[order[i]];
            values_out[i] = values_in[order[i]];
        }
        return cudaSuccess;
    }
};

}  // namespace cub
