// What this machine has of CUDA.
#include "device.cuh"

namespace ksl {
namespace cuda {
namespace {

__global__ void any_kernel() {}

}  // namespace

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
