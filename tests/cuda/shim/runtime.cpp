// The run-time API of the shim: one device, number 0.
#include <map>

#include "cuda_runtime.h"

namespace shim {

size_t &allowed_shared(const void *kernel) {
    static std::map<const void *, size_t> allowed;
    return allowed.try_emplace(kernel, 48 * 1024).first->second;
}

size_t shared_limit(const void *kernel) { return allowed_shared(kernel) > 48 * 1024 ? kSharedOptin : 48 * 1024; }

cudaError_t check_launch(const cudaLaunchConfig_t &config, const void *kernel) {
    const dim3 &grid = config.gridDim, &block = config.blockDim;
    const uint64_t threads = uint64_t{block.x} * block.y * block.z;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
        return cudaErrorInvalidConfiguration;
    }
    if (threads == 0 || threads > 1024 || block.z > 64) return cudaErrorInvalidConfiguration;
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
    }
    return "an error";
}

const char *cudaGetErrorString(cudaError_t) { return "as reported by the tests' shim"; }

cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    if (device != 0) return cudaErrorInvalidDevice;
    *value = attribute == cudaDevAttrMultiProcessorCount ? shim::kMultiprocessors : shim::kSharedOptin;
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute, int value) {
    if (value < 0 || value > shim::kSharedOptin) return cudaErrorInvalidValue;
    shim::allowed_shared(kernel) = static_cast<size_t>(value);
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *, int, size_t shared) {
    *blocks = shared > 100 * 1024 ? 1 : 2;
    return cudaSuccess;
}

cudaError_t cudaMallocAsync(void **at, size_t bytes, cudaStream_t) {
    *at = std::malloc(bytes);
    if (*at) std::memset(*at, 0xa5, bytes);
    return *at ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeAsync(void *at, cudaStream_t) {
    std::free(at);
    return cudaSuccess;
}
