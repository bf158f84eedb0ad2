// KSL_HOST_DEVICE marks functions that both the CPU code and the CUDA kernels call.
#pragma once

#ifdef __CUDACC__
#define KSL_HOST_DEVICE __host__ __device__
#else
#define KSL_HOST_DEVICE
#endif
