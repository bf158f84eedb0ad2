// The memory floor on a GPU: reads two tables once, 16 bytes a load with eight loads in flight, and does nothing else
// with them. `sink` gets the XOR of all 64-bit words, so that no load can be left out.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kThreads = 256, kLoads = 8;

__device__ uint64_t mixed(ulonglong2 words) { return words.x ^ words.y; }

__global__ void read_kernel(const ulonglong2 *x, const ulonglong2 *y, int64_t count, unsigned long long *sink) {
    const int64_t lane = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const int64_t lanes = static_cast<int64_t>(gridDim.x) * kThreads;
    uint64_t all = 0;
    for (const ulonglong2 *table : {x, y}) {
        int64_t at = lane;
        for (; at + (kLoads - 1) * lanes < count; at += kLoads * lanes) {
            ulonglong2 words[kLoads];
#pragma unroll
            for (int j = 0; j < kLoads; ++j) words[j] = __ldcs(table + at + j * lanes);
#pragma unroll
            for (int j = 0; j < kLoads; ++j) all ^= mixed(words[j]);
        }
        for (; at < count; at += lanes) all ^= mixed(table[at]);
    }
    for (int other = 16; other > 0; other /= 2) all ^= __shfl_xor_sync(0xffffffffu, all, other);
    if (threadIdx.x % 32 == 0) atomicXor(sink, static_cast<unsigned long long>(all));
}

}  // namespace

// `bytes` is the size of each table, a multiple of 16; 0 or a cudaError_t. `sink` is not cleared.
extern "C" int gpu_read(const void *x, const void *y, int64_t bytes, void *sink, int blocks, void *stream) {
    read_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        static_cast<const ulonglong2 *>(x), static_cast<const ulonglong2 *>(y), bytes / 16,
        static_cast<unsigned long long *>(sink));
    return static_cast<int>(cudaGetLastError());
}
