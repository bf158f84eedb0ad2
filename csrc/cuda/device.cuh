// The interface between our kernels and CUDA: launches, errors, devices, clusters, shared memory, and elements of
// matrices of any dtype and stride.
//
// We use two libraries, the CUDA runtime and CUB, and few names of each. tests/cuda/shim has headers of the same names,
// so that g++ compiles the same kernels for the CPU, where the tests execute them. Two rules keep that possible:
// kernels are started by launch(), not by <<<>>>, and shared memory is declared by the macros below.
#pragma once

#include <cuda_runtime.h>

#include <climits>
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

#ifndef KSL_DEVICE_CHECK  // the shim has its own, which throws
// With NDEBUG no header of the C library declares it.
extern "C" __host__ __device__ void __assert_fail(const char *, const char *, unsigned, const char *) noexcept
    __attribute__((noreturn));
// Ends the kernel as a failed assert does. The next call of CUDA reports "device-side assert triggered". Nothing is
// read or written outside a table, and nothing has to wait for the result of a check.
#define KSL_DEVICE_CHECK(condition, message) \
    ((condition) ? (void)0 : __assert_fail(message, __FILE__, __LINE__, __func__))
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

// Blocks of a launch, their threads, and the bytes of dynamic shared memory of each. So many blocks are a cluster: they
// run at the same time, and can wait for each other.
struct Shape {
    int64_t blocks;
    int threads;
    size_t shared = 0;
    int cluster = 1;
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

// How many blocks of so many threads a cluster has at most: 16 or 8, or 0 where there are none. Asked of CUDA once for
// each kernel, device and number of threads.
int64_t cluster_blocks(const void *kernel, int threads, int device);

template <typename Kernel>
int64_t cluster_blocks(Kernel *kernel, int threads, Stream stream) {
    DeviceGuard guard(stream.device);
    return cluster_blocks(reinterpret_cast<const void *>(kernel), threads, stream.device);
}

// Makes a launch one of clusters. The attribute must live as long as the configuration.
inline void set_cluster(cudaLaunchConfig_t &config, cudaLaunchAttribute &attribute, int blocks) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    config.attrs = &attribute;
    config.numAttrs = 1;
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
    cudaLaunchAttribute attribute{};
    if (shape.cluster > 1) set_cluster(config, attribute, shape.cluster);
    check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), what);
}

// Whether this architecture has clusters. A kernel for them needs no body where it does not: cluster_blocks tells the
// host, which then does not launch it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr bool kHasClusters = false;
#else
constexpr bool kHasClusters = true;
#endif

// Waits until all threads of all blocks of the cluster are here. What they wrote before is visible to all of them.
__device__ inline void cluster_barrier() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
#endif
}

// Asks memory for what is at an address, and does not wait for it.
__device__ inline void prefetch([[maybe_unused]] const void *at) {
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" : : "l"(at));
#endif
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

// ---- elements: one at a time, or several neighbours at once, in the type of the computation ----

// f(T{}) with the type that the code names. The host has checked the code, so any other code is bfloat16.
template <typename F>
__device__ __forceinline__ void device_dispatch(DType dtype, F &&f) {
    if (dtype == DType::kFloat32) {
        f(float{});
    } else if (dtype == DType::kFloat64) {
        f(double{});
    } else if (dtype == DType::kFloat16) {
        f(Float16{});
    } else {
        f(BFloat16{});
    }
}

// Neighbours that are moved together, by instructions of at most 16 bytes.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Pack {
    T value[kCount];
};

// Whether the rows of a matrix are whole packs of `count` elements, adjacent in memory and aligned.
template <typename M>
bool has_packs(const M &m, int64_t count) {
    const auto size = static_cast<size_t>(count) * dispatch(m.dtype, [](auto tag) { return sizeof tag; });
    const bool aligned = reinterpret_cast<uintptr_t>(m.data) % (size < 16 ? size : 16) == 0;
    return aligned && m.col_stride == 1 && m.cols % count == 0 && (m.rows <= 1 || m.row_stride % count == 0);
}

template <typename T, int kCount, typename C>
__device__ __forceinline__ void load_pack(const void *data, int64_t at, C (&out)[kCount]) {
    const auto pack = *reinterpret_cast<const Pack<T, kCount> *>(static_cast<const T *>(data) + at);
#pragma unroll
    for (int j = 0; j < kCount; ++j) out[j] = static_cast<C>(load(&pack.value[j]));
}

template <typename T, int kCount, typename C>
__device__ __forceinline__ void store_pack(void *data, int64_t at, const C (&in)[kCount]) {
    Pack<T, kCount> pack;
#pragma unroll
    for (int j = 0; j < kCount; ++j) store(&pack.value[j], in[j]);
    *reinterpret_cast<Pack<T, kCount> *>(static_cast<T *>(data) + at) = pack;
}

// a / b for 0 <= a, 0 < b. A 64-bit division is a long subroutine, and most quotients need only half of it.
__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {
    if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
    return a / b;
}

}  // namespace cuda
}  // namespace ksl
