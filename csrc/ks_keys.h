// Bits and ordered keys of the element types: host and device code.
#pragma once

#include <cstdint>
#include <cstring>

#include "dtypes.h"
#include "ks_buckets.h"

namespace ksl {

// The bits of a value and of infinity, and the width of the mantissa. Key is the type of its ordered keys.
template <typename T>
struct BitsOf;
template <>
struct BitsOf<double> {
    using type = uint64_t;
    using Key = uint64_t;
    static constexpr type kInfinity = uint64_t{0x7ff} << 52;
};
template <>
struct BitsOf<float> {
    using type = uint32_t;
    using Key = uint32_t;
    static constexpr type kInfinity = 0x7f800000u;
};
template <>
struct BitsOf<Float16> {
    using type = uint16_t;
    using Key = uint32_t;
    static constexpr type kInfinity = 0x7c00u;
    static constexpr int kMantissaBits = 10;
};
template <>
struct BitsOf<BFloat16> {
    using type = uint16_t;
    using Key = uint32_t;
    static constexpr type kInfinity = 0x7f80u;
    static constexpr int kMantissaBits = 7;
};
template <typename T>
using bits_t = typename BitsOf<T>::type;
template <typename T>
using key_t = typename BitsOf<T>::Key;

template <typename T>
constexpr bits_t<T> kMagnitude = static_cast<bits_t<T>>(static_cast<bits_t<T>>(~bits_t<T>{0}) >> 1);

template <typename T>
KSL_HOST_DEVICE bits_t<T> bits_of(const T &value) {
    bits_t<T> bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

template <typename T>
KSL_HOST_DEVICE key_t<T> key_of(const T &value) {
    return ordered_key(bits_of(value));
}

template <typename T>
KSL_HOST_DEVICE T value_of_key(key_t<T> key) {
    const bits_t<T> bits = static_cast<bits_t<T>>(bits_of_key(static_cast<bits_t<T>>(key)));
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Writes the ordered keys of n values and returns their flags. With NaN the keys mean nothing.
template <typename T>
uint8_t ordered_keys(const T *values, int64_t n, key_t<T> *keys) {
    bool infinite = false, nan = false;
    for (int64_t i = 0; i < n; ++i) {
        const bits_t<T> magnitude = bits_of(values[i]) & kMagnitude<T>;
        nan |= magnitude > BitsOf<T>::kInfinity;
        infinite |= magnitude == BitsOf<T>::kInfinity;
        keys[i] = key_of(values[i]);
    }
    return static_cast<uint8_t>((nan ? kHasNaN : 0) | (infinite ? kHasInf : 0));
}

}  // namespace ksl
