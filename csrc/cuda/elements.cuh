// Elements of matrices of any dtype and stride, in the type of the computation: one at a time, or several neighbours at
// once.
#pragma once

#include "device.cuh"

#ifndef KSL_DEVICE_CHECK  // the shim has its own, which throws
// Ends the kernel as a failed assert does. The next call of CUDA reports "device-side assert triggered". Nothing is
// read or written outside a table, and nothing has to wait for the result of a check.
#define KSL_DEVICE_CHECK(condition, message) \
    ((condition) ? (void)0 : __assert_fail(message, __FILE__, __LINE__, __func__))
#endif

namespace ksl {
namespace cuda {

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
