// What this machine has of CUDA.
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

}  // namespace cuda
}  // namespace ksl
