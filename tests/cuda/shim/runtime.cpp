// The run-time API of the shim: two devices, which share the memory of the CPU.
#include <map>
#include <set>

#include "cuda_runtime.h"

namespace shim {
namespace {

int current = 0;
int device_without_kernels = -1;
std::set<int64_t> granted;  // all sizes that cudaFuncSetAttribute was asked for
std::set<int> with_context;

int primary_context_state(int device, unsigned *flags, int *active) {
    *flags = 0;
    *active = with_context.count(device) != 0;
    return 0;
}

}  // namespace

std::set<int64_t> granted_shared() { return granted; }
std::set<int> contexts() { return with_context; }
void end_contexts() {
    with_context.clear();
    current = 0;
}
int current_device() { return current; }
void take_kernels_from(int device) { device_without_kernels = device; }

size_t &allowed_shared(const void *kernel) {
    static std::map<std::pair<const void *, int>, size_t> allowed;
    return allowed.try_emplace({kernel, current}, 48 * 1024).first->second;
}

size_t shared_limit(const void *kernel) { return allowed_shared(kernel) > 48 * 1024 ? kSharedOptin : 48 * 1024; }

unsigned cluster_of(const cudaLaunchConfig_t &config) {
    unsigned blocks = 1;
    for (unsigned i = 0; i < config.numAttrs; ++i) blocks = config.attrs[i].val.clusterDim.x;
    return blocks;
}

cudaError_t check_launch(const cudaLaunchConfig_t &config, const void *kernel) {
    const dim3 &grid = config.gridDim, &block = config.blockDim;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
        return cudaErrorInvalidConfiguration;
    }
    if (threads == 0 || threads > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
    const unsigned cluster = cluster_of(config);
    if (cluster == 0 || grid.x % cluster != 0) return cudaErrorInvalidClusterSize;
    if (cluster > 1 && cluster > kLargestCluster[current]) return cudaErrorInvalidClusterSize;
    with_context.insert(current);
    return config.dynamicSmemBytes > allowed_shared(kernel) ? cudaErrorInvalidValue : cudaSuccess;
}

}  // namespace shim

const char *cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "cudaSuccess";
        case cudaErrorInvalidValue:
            return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation:
            return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidConfiguration:
            return "cudaErrorInvalidConfiguration";
        case cudaErrorInsufficientDriver:
            return "cudaErrorInsufficientDriver";
        case cudaErrorNoDevice:
            return "cudaErrorNoDevice";
        case cudaErrorInvalidDevice:
            return "cudaErrorInvalidDevice";
        case cudaErrorNoKernelImageForDevice:
            return "cudaErrorNoKernelImageForDevice";
        case cudaErrorInvalidClusterSize:
            return "cudaErrorInvalidClusterSize";
    }
    return "an error";
}

const char *cudaGetErrorString(cudaError_t) { return "as reported by the tests' shim"; }

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDevice(int *device) {
    *device = shim::current;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= shim::kDevices) return cudaErrorInvalidDevice;
    shim::current = device;
    shim::with_context.insert(device);  // as since CUDA 12
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = shim::kDevices;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    if (device < 0 || device >= shim::kDevices) return cudaErrorInvalidDevice;
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount:
            *value = shim::kMultiprocessors;
            break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = shim::kSharedOptin;
            break;
        case cudaDevAttrComputeCapabilityMajor:
            *value = 7;
            break;
        case cudaDevAttrComputeCapabilityMinor:
            *value = 5;
            break;
    }
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
    if (shim::current == shim::device_without_kernels) return cudaErrorNoKernelImageForDevice;
    attributes->sharedSizeBytes = 1024;  // the shim does not know; the launcher must leave room for it
    attributes->ptxVersion = shim::kLargestCluster[shim::current] > 0 ? 90 : 80;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) return cudaSuccess;
    if (value < 0 || value > shim::kSharedOptin) return cudaErrorInvalidValue;
    shim::allowed_shared(kernel) = static_cast<size_t>(value);
    shim::granted.insert(value);
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int, size_t shared) {
    *blocks = shared > 100 * 1024 ? 1 : 2;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int *clusters, const void *, const cudaLaunchConfig_t *config) {
    *clusters = shim::cluster_of(*config) <= shim::kLargestCluster[shim::current] ? 1 : 0;
    return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *found) {
    const bool known = std::strcmp(symbol, "cuDevicePrimaryCtxGetState") == 0;
    *function = known ? reinterpret_cast<void *>(&shim::primary_context_state) : nullptr;
    *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
