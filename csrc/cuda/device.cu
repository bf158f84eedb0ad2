// What this machine has of CUDA, and sorting in the memory of its devices. CUB's header for that alone takes seconds to
// compile, and each kind of pair takes many more, so no other file includes it.
#include <cub/device/device_radix_sort.cuh>
#include <map>
#include <mutex>
#include <tuple>

#include "device.cuh"

namespace ksl {
namespace cuda {
namespace {

__global__ void any_kernel() {}

// cuDevicePrimaryCtxGetState of the driver, null if there is none. cuda.h is not needed for its type: a CUdevice is the
// number of the device, and CUresult is an enumeration whose zero is success.
using ContextState = int (*)(int device, unsigned *flags, int *active);

ContextState find_context_state() {
    void *function = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    const cudaError_t status =
        cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &function, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t status =
        cudaGetDriverEntryPoint("cuDevicePrimaryCtxGetState", &function, cudaEnableDefault, &found);
#endif
    if (status == cudaSuccess && found == cudaDriverEntryPointSuccess) return reinterpret_cast<ContextState>(function);
    cudaGetLastError();
    return nullptr;
}

}  // namespace

bool has_context(int device) {
    static const ContextState state = find_context_state();
    unsigned flags = 0;
    int active = 0;
    return state == nullptr || state(device, &flags, &active) != 0 || active != 0;
}

int64_t resident_blocks(const void *kernel, int threads, size_t shared, int device) {
    static std::mutex mutex;
    static std::map<std::tuple<const void *, int, size_t, int>, int64_t> known;
    const std::lock_guard<std::mutex> lock(mutex);
    int64_t &blocks = known[{kernel, threads, shared, device}];
    if (blocks > 0) return blocks;
    int per_multiprocessor = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, shared),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    blocks = int64_t{per_multiprocessor} * device_attribute(cudaDevAttrMultiProcessorCount, device);
    return blocks;
}

namespace {

constexpr int kClusterFrom = 90;          // compute capability, times ten, that a kernel must have been compiled for
constexpr int kClusterSizes[] = {16, 8};  // every device with clusters takes 8, some take 16

int64_t largest_cluster(const void *kernel, int threads) {
    cudaFuncAttributes attributes{};
    check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
    if (attributes.ptxVersion < kClusterFrom) return 0;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) != cudaSuccess) {
        cudaGetLastError();  // then the smaller one has to do
    }
    for (const int blocks : kClusterSizes) {
        cudaLaunchConfig_t config{};
        cudaLaunchAttribute attribute{};
        config.gridDim = dim3(static_cast<unsigned>(blocks));
        config.blockDim = dim3(static_cast<unsigned>(threads));
        set_cluster(config, attribute, blocks);
        int clusters = 0;
        if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess && clusters > 0) return blocks;
        cudaGetLastError();
    }
    return 0;
}

}  // namespace

int64_t cluster_blocks(const void *kernel, int threads, int device) {
    static std::mutex mutex;
    static std::map<std::tuple<const void *, int, int>, int64_t> known;
    const std::lock_guard<std::mutex> lock(mutex);
    const std::tuple key{kernel, threads, device};
    if (const auto found = known.find(key); found != known.end()) return found->second;
    return known[key] = largest_cluster(kernel, threads);
}

std::string unavailable() {
    int driver = 0, devices = 0;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "this machine has no CUDA driver";
    const cudaError_t status = cudaGetDeviceCount(&devices);
    if (status == cudaSuccess && devices > 0) return "";
    cudaGetLastError();  // or the next check would report it again
    if (status == cudaErrorInsufficientDriver) {
        return "the CUDA driver is for CUDA " + std::to_string(driver / 1000) + "." +
               std::to_string(driver % 1000 / 10) + ", older than what the kernels were built with, CUDA " +
               std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
    }
    return std::string("no CUDA device: ") + cudaGetErrorString(status == cudaSuccess ? cudaErrorNoDevice : status);
}

std::string unavailable(int device) {
    if (std::string reason = unavailable(); !reason.empty()) return reason;
    DeviceGuard guard(device);
    cudaFuncAttributes attributes{};
    // All files are compiled for the same architectures, so what holds for one kernel holds for all.
    const cudaError_t status = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void *>(&any_kernel));
    if (status == cudaSuccess) return "";
    cudaGetLastError();
    return "device " + std::to_string(device) + " of compute capability " +
           std::to_string(device_attribute(cudaDevAttrComputeCapabilityMajor, device)) + "." +
           std::to_string(device_attribute(cudaDevAttrComputeCapabilityMinor, device)) +
           " cannot run the kernels: " + cudaGetErrorString(status);
}

// ---- sorting ----

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
