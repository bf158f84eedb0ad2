// The interface between our kernels and CUDA: launches, errors, devices, shared memory, block-wide sums.
//
// It includes two libraries, the CUDA runtime and CUB, and uses few names of each (device_sort.cu has the one that
// takes long to compile). tests/cuda/shim has headers of the same names, so that g++ compiles the same kernels for the
// CPU, where the tests execute them. Two rules keep that possible: kernels are started by launch(), not by <<<>>>, and
// shared memory is declared by the macros below.
#pragma once

#include <cuda_runtime.h>

#include <climits>
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <stdexcept>
#include <string>
#include <utility>

#include "../check.h"
#include "../dtypes.h"
#include "../ksl.h"

#ifndef KSL_SHARED  // the shim has its own: it poisons shared memory and watches its edges
#define KSL_SHARED(name, ...)        \
    using name##_type = __VA_ARGS__; \
    __shared__ name##_type name
#define KSL_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#define KSL_WATCHED(at) (*(at))  // a read of shared memory whose bank conflicts the shim counts
#endif

namespace ksl {
namespace cuda {

constexpr int kWarp = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// Throws std::runtime_error that tells what was being done, and the name and text of the error.
inline void check(cudaError_t status, const char *what) {
    if (status == cudaSuccess) return;
    throw std::runtime_error(std::string("CUDA failed in ") + what + ": " + cudaGetErrorName(status) + ", " +
                             cudaGetErrorString(status));
}

// Whether this process has the primary context of a device, which takes hundreds of megabytes of it.
bool has_context(int device);

// Makes a device the current one in this scope. Nothing happens if it already is. The previous device becomes current
// again only if it has a context, because since CUDA 12 cudaSetDevice makes one where there is none.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&previous_), "cudaGetDevice");
        if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
        changed_ = device != previous_;
    }
    ~DeviceGuard() {
        if (changed_ && has_context(previous_)) cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard &) = delete;
    DeviceGuard &operator=(const DeviceGuard &) = delete;

  private:
    int previous_ = 0;
    bool changed_ = false;
};

inline int device_attribute(cudaDeviceAttr attribute, int device) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
    return value;
}

// Blocks of a launch, their threads, and the bytes of dynamic shared memory of each.
struct Shape {
    int64_t blocks;
    int threads;
    size_t shared = 0;
};

// Without this a kernel gets at most 48 KB of shared memory. The setting holds for the current device and for all
// threads of the process. So it is always the maximum, and no thread takes away what another one is about to use.
template <typename Kernel>
void allow_shared(Kernel *kernel, size_t bytes, int device) {
    if (bytes <= 48 * 1024) return;
    const auto *symbol = reinterpret_cast<const void *>(kernel);
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, symbol), "cudaFuncGetAttributes");
    const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device) -
                     static_cast<int>(attributes.sharedSizeBytes);
    check(cudaFuncSetAttribute(symbol, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "cudaFuncSetAttribute");
}

// How many blocks of this shape the device runs at the same time, asked of CUDA once for each kernel, device and shape.
int64_t resident_blocks(const void *kernel, int threads, size_t shared, int device);

// The same for the device of the stream. This is for kernels whose blocks loop.
template <typename Kernel>
int64_t resident_blocks(Kernel *kernel, int threads, size_t shared, Stream stream) {
    DeviceGuard guard(stream.device);
    allow_shared(kernel, shared, stream.device);
    return resident_blocks(reinterpret_cast<const void *>(kernel), threads, shared, stream.device);
}

// Puts a kernel on the stream and returns at once. Without blocks there is no launch. `what` names the op in errors.
template <typename... Parameters, typename... Arguments>
void launch(const char *what, void (*kernel)(Parameters...), Shape shape, Stream stream, Arguments &&...arguments) {
    if (shape.blocks == 0) return;
    KSL_CHECK(shape.blocks > 0 && shape.blocks <= INT_MAX, what, ": a launch of ", shape.blocks,
              " blocks; CUDA takes 1 to 2^31 - 1");
    DeviceGuard guard(stream.device);
    allow_shared(kernel, shape.shared, stream.device);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(static_cast<unsigned>(shape.threads));
    config.dynamicSmemBytes = shape.shared;
    config.stream = static_cast<cudaStream_t>(stream.handle);
    check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), what);
}

// Returns its argument without the compiler knowing it. So the compiler computes again what depends on the number, and
// does not keep earlier results in registers until here.
__device__ inline int64_t forget(int64_t number) {
#ifdef __CUDA_ARCH__
    asm volatile("" : "+l"(number));
#endif
    return number;
}
__device__ inline uint32_t forget(uint32_t number) {
#ifdef __CUDA_ARCH__
    asm volatile("" : "+r"(number));
#endif
    return number;
}

// Two arrays of one size in the memory of the device. Sorting moves the numbers from one to the other and back, and
// leaves the sorted ones in `data`.
template <typename T>
struct SortBuffers {
    T *data, *spare;
};

// Sorts n keys by their lowest bits, stably, and values along with them. The device of the stream must be the current
// one. The workspace has as many bytes as sort_workspace tells. There are three kinds of pairs: 32 bits with 32 bits,
// 32 with 64 and 64 with 32.
template <typename Key, typename Value>
size_t sort_workspace(uint32_t n, int bits, Stream stream);
template <typename Key, typename Value>
void sort_pairs(const char *what, void *workspace, size_t bytes, SortBuffers<Key> &keys, SortBuffers<Value> &values,
                uint32_t n, int bits, Stream stream);

// Parts of one workspace, one after the other, each aligned to 256 bytes as CUB wants it. With a null workspace it only
// adds up the sizes.
class Parts {
  public:
    explicit Parts(void *workspace) : base_(static_cast<unsigned char *>(workspace)) {}

    template <typename T>
    T *take(size_t count) {
        auto *part = base_ ? reinterpret_cast<T *>(base_ + bytes_) : nullptr;
        bytes_ += (count * sizeof(T) + 255) / 256 * 256;
        return part;
    }
    size_t bytes() const { return bytes_; }

  private:
    unsigned char *base_;
    size_t bytes_ = 0;
};

// Prefix sums over the threads of a block, in the order of their numbers. All threads call it. The storage is shared
// memory. Between two uses of it there must be a __syncthreads().
template <typename T, int kThreads>
struct BlockScan {
    using Scan = cub::BlockScan<T, kThreads>;
    using Storage = typename Scan::TempStorage;

    // The sum of the values of the threads before this one. `total` gets the sum of all, in every thread.
    static __device__ T exclusive_sum(Storage &storage, T value, T &total) {
        T before;
        Scan(storage).ExclusiveSum(value, before, total);
        return before;
    }
};

// Sums and extremes over the threads of a block. Only thread 0 gets the result. Otherwise it is like BlockScan.
template <typename T, int kThreads>
struct BlockReduce {
    using Reduce = cub::BlockReduce<T, kThreads>;
    using Storage = typename Reduce::TempStorage;

    template <typename Operator>
    static __device__ T reduce(Storage &storage, T value, Operator op) {
        return Reduce(storage).Reduce(value, op);
    }
};

// The maximum over the threads of a block of each of a few numbers, for all threads. It takes one barrier and two
// instructions for each number, while CUB's reduction is for any type and any operation. The storage is shared memory.
// Between two uses of it there must be a __syncthreads().
template <int kThreads, int kNumbers>
struct BlockMax {
    static constexpr int kWarps = kThreads / kWarp;
    static_assert(kThreads % kWarp == 0 && kWarps <= kWarp, "whole warps, and one lane for each of them");
    struct Storage {
        int numbers[kNumbers][kWarps];
    };

    static __device__ void reduce(Storage &storage, int (&numbers)[kNumbers]) {
        const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
        for (int k = 0; k < kNumbers; ++k) {
            numbers[k] = __reduce_max_sync(kFullWarp, numbers[k]);
            if (lane == 0) storage.numbers[k][warp] = numbers[k];
        }
        __syncthreads();
        for (int k = 0; k < kNumbers; ++k) {
            numbers[k] = __reduce_max_sync(kFullWarp, storage.numbers[k][lane % kWarps]);
        }
    }
};

}  // namespace cuda
}  // namespace ksl
