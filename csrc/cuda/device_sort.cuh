// Sorting in the memory of the device, by CUB. It is not in device.cuh because this header alone takes seconds to
// compile.
#pragma once

#include <cub/device/device_radix_sort.cuh>

#include "device.cuh"

namespace ksl {
namespace cuda {

// Sorts n keys by their lowest bits, stably, and values along with them. Without a workspace it only sets `bytes` to
// the size of the workspace that it needs.
inline cudaError_t sort_pairs(void *workspace, size_t &bytes, const uint32_t *keys, uint32_t *sorted_keys,
                              const uint32_t *values, uint32_t *sorted_values, uint32_t n, int bits, Stream stream) {
    return cub::DeviceRadixSort::SortPairs(workspace, bytes, keys, sorted_keys, values, sorted_values, n, 0, bits,
                                           static_cast<cudaStream_t>(stream.handle));
}

}  // namespace cuda
}  // namespace ksl
