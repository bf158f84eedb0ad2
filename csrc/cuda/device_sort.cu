// Sorting in the memory of the device, by CUB. It is a file of its own because this header alone takes seconds to
// compile, and each kind of pair takes many more.
#include <cub/device/device_radix_sort.cuh>

#include "device.cuh"

namespace ksl {
namespace cuda {

template <typename Key, typename Value>
size_t sort_workspace(uint32_t n, int bits, Stream stream) {
    cub::DoubleBuffer<Key> keys(nullptr, nullptr);
    cub::DoubleBuffer<Value> values(nullptr, nullptr);
    size_t bytes = 0;
    check(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys, values, n, 0, bits,
                                          static_cast<cudaStream_t>(stream.handle)),
          "the size of a sort's workspace");
    return bytes;
}

template <typename Key, typename Value>
void sort_pairs(const char *what, void *workspace, size_t bytes, SortBuffers<Key> &keys, SortBuffers<Value> &values,
                uint32_t n, int bits, Stream stream) {
    cub::DoubleBuffer<Key> key_buffers(keys.data, keys.spare);
    cub::DoubleBuffer<Value> value_buffers(values.data, values.spare);
    check(cub::DeviceRadixSort::SortPairs(workspace, bytes, key_buffers, value_buffers, n, 0, bits,
                                          static_cast<cudaStream_t>(stream.handle)),
          what);
    keys = {key_buffers.Current(), key_buffers.Alternate()};
    values = {value_buffers.Current(), value_buffers.Alternate()};
}

#define KSL_SORT(Key, Value)                                                                                        \
    template size_t sort_workspace<Key, Value>(uint32_t, int, Stream);                                              \
    template void sort_pairs(const char *, void *, size_t, SortBuffers<Key> &, SortBuffers<Value> &, uint32_t, int, \
                             Stream)
KSL_SORT(uint32_t, uint32_t);
KSL_SORT(uint32_t, uint64_t);
KSL_SORT(uint64_t, uint32_t);

}  // namespace cuda
}  // namespace ksl
