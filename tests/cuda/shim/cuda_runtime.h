// Stands in for CUDA's header of this name where g++ compiles kernels for the CPU: the words of the language, the
// device functions and the part of the run-time API that csrc/cuda uses. A name that is missing here is one that no
// kernel needed so far: add it, with what it does on a GPU.
#pragma once

#include <math.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "executor.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define KSL_SHARED(name, ...)        \
    using name##_type = __VA_ARGS__; \
    static const char name##_key{};  \
    auto &name = *static_cast<name##_type *>(shim::shared_variable(&name##_key, sizeof(name##_type)))
#define KSL_WATCHED(at) (*shim::watched((at), {__FILE__, __LINE__}))
// On a GPU the process loses its device; here the test gets an error.
#define KSL_DEVICE_CHECK(condition, message) \
    ((condition) ? (void)0 : throw std::runtime_error(std::string("device-side assert: ") + (message)))
#define KSL_DYNAMIC_SHARED(name) unsigned char *name = shim::dynamic_shared()

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

// ---- barriers and warp-wide operations; the site is that of the caller ----

#define SHIM_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SHIM_SITE) { shim::block_barrier("__syncthreads", {file, line}, 0); }
inline int __syncthreads_count(int predicate, SHIM_SITE) {
    return static_cast<int>(shim::block_barrier("__syncthreads_count", {file, line}, predicate != 0));
}
inline int __syncthreads_or(int predicate, SHIM_SITE) {
    return shim::block_barrier("__syncthreads_or", {file, line}, predicate != 0) != 0;
}
inline int __syncthreads_and(int predicate, SHIM_SITE) {
    return shim::block_barrier("__syncthreads_and", {file, line}, predicate == 0) == 0;
}
// Nothing that a kernel does comes between arriving and waiting.
inline void __cluster_barrier_arrive() {}
inline void __cluster_barrier_wait(SHIM_SITE) { shim::cluster_barrier({file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, SHIM_SITE) {
    shim::warp_exchange("__syncwarp", {file, line}, mask, 0);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SHIM_SITE) {
    const uint64_t *values = shim::warp_exchange("__ballot_sync", {file, line}, mask, predicate != 0);
    unsigned ballot = 0;
    for (int i = 0; i < 32; ++i) {
        if (mask >> i & 1) ballot |= static_cast<unsigned>(values[i]) << i;
    }
    return ballot;
}
inline int __any_sync(unsigned mask, int predicate, SHIM_SITE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SHIM_SITE) {
    return __ballot_sync(mask, predicate, file, line) == mask;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, SHIM_SITE) {
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    const uint64_t *values = shim::warp_exchange("__match_any_sync", {file, line}, mask, bits);
    unsigned same = 0;
    for (int i = 0; i < 32; ++i) {
        if ((mask >> i & 1) && values[i] == bits) same |= 1u << i;
    }
    return same;
}

namespace shim {
// What the lane `from` brought. A lane outside the mask has an undefined value on a GPU, and 0xa5... here.
template <typename T>
T shuffled(const char *operation, Site site, unsigned mask, T value, int from) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 32 and 64 bits");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    const uint64_t *values = warp_exchange(operation, site, mask, bits);
    bits = mask >> from & 1 ? values[from] : 0xa5a5a5a5a5a5a5a5u;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename T, typename Operator>
T reduced(const char *operation, Site site, unsigned mask, T value, Operator op) {
    const uint64_t *values = warp_exchange(operation, site, mask, static_cast<uint64_t>(value));
    bool first = true;
    T result{};
    for (int i = 0; i < 32; ++i) {
        if ((mask >> i & 1) == 0) continue;
        result = first ? static_cast<T>(values[i]) : op(result, static_cast<T>(values[i]));
        first = false;
    }
    return result;
}
}  // namespace shim

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, SHIM_SITE) {
    const int at = shim::lane() / width * width + (from & (width - 1));
    return shim::shuffled("__shfl_sync", {file, line}, mask, value, at);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SHIM_SITE) {
    const int me = shim::lane(), from = me - static_cast<int>(delta);
    return shim::shuffled("__shfl_up_sync", {file, line}, mask, value, from < me / width * width ? me : from);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SHIM_SITE) {
    const int me = shim::lane(), from = me + static_cast<int>(delta);
    return shim::shuffled("__shfl_down_sync", {file, line}, mask, value, from >= (me / width + 1) * width ? me : from);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SHIM_SITE) {
    const int me = shim::lane(), from = me ^ lanes;
    return shim::shuffled("__shfl_xor_sync", {file, line}, mask, value, from / width > me / width ? me : from);
}
template <typename T>
T __reduce_add_sync(unsigned mask, T value, SHIM_SITE) {
    return shim::reduced("__reduce_add_sync", {file, line}, mask, value, [](T a, T b) { return a + b; });
}
template <typename T>
T __reduce_max_sync(unsigned mask, T value, SHIM_SITE) {
    return shim::reduced("__reduce_max_sync", {file, line}, mask, value, [](T a, T b) { return a > b ? a : b; });
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value, SHIM_SITE) {
    return shim::reduced("__reduce_min_sync", {file, line}, mask, value, [](T a, T b) { return a < b ? a : b; });
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, SHIM_SITE) {
    return shim::reduced("__reduce_or_sync", {file, line}, mask, value, [](unsigned a, unsigned b) { return a | b; });
}

namespace shim {
template <typename T>
const T *watched(const T *at, Site site) {
    at_read(at, sizeof(T), site);
    return at;
}
}  // namespace shim

// ---- atomics ----

namespace shim {
template <typename T, typename Change>
T atomic(T *at, Change change) {
    at_atomic();
    const T old = *at;
    *at = change(old);
    return old;
}
}  // namespace shim

template <typename T>
T atomicAdd(T *at, std::common_type_t<T> value) {
    return shim::atomic(at, [&](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicSub(T *at, std::common_type_t<T> value) {
    return shim::atomic(at, [&](T old) { return static_cast<T>(old - value); });
}
template <typename T>
T atomicMax(T *at, std::common_type_t<T> value) {
    return shim::atomic(at, [&](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T *at, std::common_type_t<T> value) {
    return shim::atomic(at, [&](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicOr(T *at, std::common_type_t<T> value) {
    return shim::atomic(at, [&](T old) { return old | value; });
}
template <typename T>
T atomicAnd(T *at, std::common_type_t<T> value) {
    return shim::atomic(at, [&](T old) { return old & value; });
}
template <typename T>
T atomicExch(T *at, std::common_type_t<T> value) {
    return shim::atomic(at, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T *at, std::common_type_t<T> expected, std::common_type_t<T> value) {
    return shim::atomic(at, [&](T old) { return old == expected ? value : old; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- loads and stores with cache hints, bits, rounding ----

template <typename T>
T __ldg(const T *at) {
    return *at;
}
template <typename T>
T __ldcs(const T *at) {
    return *at;
}
template <typename T>
T __ldcg(const T *at) {
    return *at;
}
template <typename T>
void __stcs(T *at, T value) {
    *at = value;
}
inline int max(int a, int b) { return a > b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline int __clzll(long long value) {
    return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float __saturatef(float value) { return value > 0 ? (value < 1 ? value : 1) : 0; }  // NaN gives 0

namespace shim {
// f of the lower and of the upper halves as signed numbers.
template <typename F>
unsigned of_halves(F &&f, unsigned a, unsigned b, unsigned c = 0) {
    const auto half = [](unsigned word, int shift) { return static_cast<int16_t>(word >> shift & 0xffffu); };
    const auto low = static_cast<uint16_t>(f(half(a, 0), half(b, 0), half(c, 0)));
    const auto high = static_cast<uint16_t>(f(half(a, 16), half(b, 16), half(c, 16)));
    return static_cast<unsigned>(high) << 16 | low;
}
}  // namespace shim
inline unsigned __viaddmax_s16x2(unsigned a, unsigned b, unsigned c) {
    return shim::of_halves([](int p, int q, int r) { return std::max<int>(static_cast<int16_t>(p + q), r); }, a, b, c);
}
inline unsigned __vimin_s16x2_relu(unsigned a, unsigned b) {
    return shim::of_halves([](int p, int q, int) { return std::max(std::min(p, q), 0); }, a, b);
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }

// ---- the run-time API: two devices of a few multiprocessors, so that blocks that loop have to ----

using cudaStream_t = struct ShimStream *;
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorInvalidClusterSize = 912
};
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrMaxSharedMemoryPerBlockOptin,
    cudaDevAttrComputeCapabilityMajor,
    cudaDevAttrComputeCapabilityMinor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize, cudaFuncAttributeNonPortableClusterSizeAllowed };
struct cudaFuncAttributes {
    size_t sharedSizeBytes;
    int ptxVersion;
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension };
struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        struct {
            unsigned x, y, z;
        } clusterDim;
    } val;
};
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
    cudaLaunchAttribute *attrs = nullptr;
    unsigned numAttrs = 0;
};
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0, cudaDriverEntryPointSymbolNotFound = 1 };
constexpr unsigned long long cudaEnableDefault = 0;
#define CUDART_VERSION 13000

namespace shim {
constexpr int kDevices = 2, kMultiprocessors = 2, kSharedOptin = 227 * 1024;
constexpr unsigned kLargestCluster[kDevices] = {8, 0};  // the second device is older than clusters
size_t &allowed_shared(const void *kernel);             // what cudaFuncSetAttribute has granted on the current device
size_t shared_limit(const void *kernel);                // for static and dynamic shared memory together
unsigned cluster_of(const cudaLaunchConfig_t &config);  // blocks
cudaError_t check_launch(const cudaLaunchConfig_t &config, const void *kernel);

// What tests ask: all sizes that cudaFuncSetAttribute was asked for; which devices have a context, that none has one
// any more, and which device is current; and that a device has no kernels, -1 for none.
std::set<int64_t> granted_shared();
std::set<int> contexts();
void end_contexts();
int current_device();
void take_kernels_from(int device);
}  // namespace shim

const char *cudaGetErrorName(cudaError_t error);
const char *cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device);
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *kernel);
cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *kernel, int threads, size_t shared);
cudaError_t cudaOccupancyMaxActiveClusters(int *clusters, const void *kernel, const cudaLaunchConfig_t *config);
cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags, cudaDriverEntryPointQueryResult *found);
inline cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t) {
    std::memset(at, value, bytes);
    return cudaSuccess;
}

// Runs the kernel to its end. Errors of the kernel itself are thrown.
template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(Parameters...),
                               Arguments &&...arguments) {
    const auto *symbol = reinterpret_cast<const void *>(kernel);
    if (const cudaError_t error = shim::check_launch(*config, symbol); error != cudaSuccess) return error;
    const std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
    const dim3 &grid = config->gridDim, &block = config->blockDim;
    const shim::Launch launch{{grid.x, grid.y, grid.z},
                              {block.x, block.y, block.z},
                              shim::cluster_of(*config),
                              config->dynamicSmemBytes,
                              shim::shared_limit(symbol)};
    shim::execute(launch, [&] { std::apply(kernel, copies); });
    return cudaSuccess;
}
