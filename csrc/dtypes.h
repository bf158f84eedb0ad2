// The four element types: how they are stored, what they are computed in, and how they are converted.
//
// float16 and bfloat16 are plain bit patterns here. Integer arithmetic converts them, so that every compiler and every
// CPU gives the same bits. The conversion to float is exact. The one from float rounds to nearest, ties to even (IEEE
// 754, as in torch). The same functions serve the CPU code and the CUDA kernels.
#pragma once

#include <cstdint>
#include <cstring>

#include "check.h"
#include "host_device.h"
#include "ksl.h"

namespace ksl {

struct Float16 {
    uint16_t bits;
};

struct BFloat16 {
    uint16_t bits;
};

KSL_HOST_DEVICE inline uint32_t float_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

KSL_HOST_DEVICE inline float float_from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

KSL_HOST_DEVICE inline float to_float(BFloat16 value) { return float_from_bits(uint32_t{value.bits} << 16); }

KSL_HOST_DEVICE inline BFloat16 to_bfloat16(float value) {
    const uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fc0};  // NaN; rounding its payload could give infinity
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

KSL_HOST_DEVICE inline float to_float(Float16 value) {
    const uint32_t sign = uint32_t{value.bits & 0x8000u} << 16;
    const uint32_t magnitude = value.bits & 0x7fffu;
    if (magnitude >= 0x7c00u) return float_from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);  // Inf, NaN
    // Below 2^-14 a half is an integer multiple of 2^-24, which float holds exactly.
    if (magnitude < 0x400u) return float_from_bits(sign | float_bits(static_cast<float>(magnitude) * 0x1p-24f));
    return float_from_bits(sign | ((magnitude << 13) + ((127u - 15u) << 23)));
}

KSL_HOST_DEVICE inline Float16 to_float16(float value) {
    const uint32_t bits = float_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};   // NaN
    if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // from 65520 on: infinity
    if (magnitude < 0x38800000u) {
        // Below 2^-14 the result is subnormal. Adding 0.5 puts the unit 2^-24 at the last bit of the float's
        // mantissa, so the addition itself rounds to nearest even.
        const uint32_t rounded = float_bits(float_from_bits(magnitude) + 0.5f) - float_bits(0.5f);
        return {static_cast<uint16_t>(sign | rounded)};
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - ((127u - 15u) << 23);
    return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

// What an element is computed in: double for double, float for the rest.
template <typename T>
struct ComputeType {
    using type = float;
};
template <>
struct ComputeType<double> {
    using type = double;
};
template <typename T>
using compute_t = typename ComputeType<T>::type;

KSL_HOST_DEVICE inline double load(const double *at) { return *at; }
KSL_HOST_DEVICE inline float load(const float *at) { return *at; }
KSL_HOST_DEVICE inline float load(const Float16 *at) { return to_float(*at); }
KSL_HOST_DEVICE inline float load(const BFloat16 *at) { return to_float(*at); }

// A double stored as float16 or bfloat16 is rounded twice, by way of float, exactly as torch's conversion does.
KSL_HOST_DEVICE inline void store(double *at, double value) { *at = value; }
KSL_HOST_DEVICE inline void store(float *at, double value) { *at = static_cast<float>(value); }
KSL_HOST_DEVICE inline void store(float *at, float value) { *at = value; }
KSL_HOST_DEVICE inline void store(Float16 *at, float value) { *at = to_float16(value); }
KSL_HOST_DEVICE inline void store(BFloat16 *at, float value) { *at = to_bfloat16(value); }
KSL_HOST_DEVICE inline void store(Float16 *at, double value) { *at = to_float16(static_cast<float>(value)); }
KSL_HOST_DEVICE inline void store(BFloat16 *at, double value) { *at = to_bfloat16(static_cast<float>(value)); }

// Calls f(T{}) with the type that the code names: dispatch(m.dtype, [&](auto tag) { using T = decltype(tag); ... }).
template <typename F>
decltype(auto) dispatch(DType dtype, F &&f) {
    switch (dtype) {
        case DType::kFloat64:
            return f(double{});
        case DType::kFloat32:
            return f(float{});
        case DType::kFloat16:
            return f(Float16{});
        case DType::kBFloat16:
            return f(BFloat16{});
        default:
            break;  // integers are read by ks_rows alone, see cpu/rows.h
    }
    fail("unknown dtype code ", static_cast<int32_t>(dtype));
}

}  // namespace ksl
