// What of CUDA this machine has.
#include "device.cuh"

namespace ksl {
namespace cuda {

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

}  // namespace cuda
}  // namespace ksl
