// Stands in for CUB's header of this name: as much of cub::BlockScan as csrc/cuda/ks_counts.cuh uses.
//
// As in CUB there is no barrier at the end: whoever uses the storage again without one has a race, which a seed shows.
#pragma once

#include "cuda_runtime.h"

namespace cub {

template <typename T, int kThreads>
class BlockScan {
  public:
    struct TempStorage {
        T values[kThreads], total;
    };

    explicit BlockScan(TempStorage &storage) : storage_(storage) {}

    void ExclusiveSum(T value, T &before, T &total) {
        const unsigned me = threadIdx.x;
        storage_.values[me] = value;
        __syncthreads();
        if (me == 0) {
            T sum{};
            for (T &each : storage_.values) {
                const T own = each;
                each = sum;
                sum = static_cast<T>(sum + own);
            }
            storage_.total = sum;
        }
        __syncthreads();
        before = storage_.values[me];
        total = storage_.total;
    }

  private:
    TempStorage &storage_;
};

}  // namespace cub
