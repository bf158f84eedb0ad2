// Stands in for CUB's header of this name: a stable sort of pairs by some bits of their keys.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda_runtime.h"

namespace cub {

template <typename T>
struct DoubleBuffer {
    T *buffers[2];
    int selector = 0;

    DoubleBuffer(T *current, T *alternate) : buffers{current, alternate} {}
    T *Current() const { return buffers[selector]; }
    T *Alternate() const { return buffers[selector ^ 1]; }
};

struct DeviceRadixSort {
    // As CUB: without a workspace it only says how large that has to be. The result is in either buffer, here by the
    // number of bits, and the other holds what nobody may rely on.
    template <typename Key, typename Value, typename Count>
    static cudaError_t SortPairs(void *workspace, size_t &bytes, DoubleBuffer<Key> &keys, DoubleBuffer<Value> &values,
                                 Count count, int begin_bit, int end_bit, cudaStream_t = nullptr) {
        if (workspace == nullptr) {
            bytes = 1;
            return cudaSuccess;
        }
        const uint64_t mask = end_bit - begin_bit == 64 ? ~uint64_t{0} : (uint64_t{1} << (end_bit - begin_bit)) - 1;
        const auto digits = [&](size_t i) { return (uint64_t{keys.Current()[i]} >> begin_bit) & mask; };
        std::vector<size_t> order(static_cast<size_t>(count));
        std::iota(order.begin(), order.end(), size_t{0});
        std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return digits(a) < digits(b); });
        move(order, keys, end_bit % 2 != 0);
        move(order, values, end_bit % 2 != 0);
        return cudaSuccess;
    }

  private:
    template <typename T>
    static void move(const std::vector<size_t> &order, DoubleBuffer<T> &buffers, bool back) {
        for (size_t i = 0; i < order.size(); ++i) buffers.Alternate()[i] = buffers.Current()[order[i]];
        if (back) {
            std::memcpy(buffers.Current(), buffers.Alternate(), order.size() * sizeof(T));
            std::memset(buffers.Alternate(), 0xa5, order.size() * sizeof(T));
        } else {
            std::memset(buffers.Current(), 0xa5, order.size() * sizeof(T));
            buffers.selector ^= 1;
        }
    }
};

}  // namespace cub
