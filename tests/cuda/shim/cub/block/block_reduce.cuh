// Stands in for CUB's header of this name: as much of cub::BlockReduce as csrc/cuda/ks_sort.cuh uses.
#pragma once

#include "cuda_runtime.h"

namespace cub {

template <typename T, int kThreads>
class BlockReduce {
  public:
    struct TempStorage {
        alignas(T) unsigned char values[kThreads][sizeof(T)];
    };

    explicit BlockReduce(TempStorage &storage) : storage_(storage) {}

    // The result is for thread 0. CUB leaves the others something of its own; here it is their own value.
    template <typename Operator>
    T Reduce(T value, Operator op) {
        const unsigned me = threadIdx.x;
        std::memcpy(storage_.values[me], &value, sizeof value);
        __syncthreads();
        for (int t = 1; me == 0 && t < kThreads; ++t) {
            T other;
            std::memcpy(&other, storage_.values[t], sizeof other);
            value = op(value, other);
        }
        return value;
    }

  private:
    TempStorage &storage_;
};

}  // namespace cub
