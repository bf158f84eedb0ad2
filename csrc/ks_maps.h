// The formulas of the maps of values to buckets that the CPU and the CUDA kernels share: host and device code.
//
// csrc/cpu/ks_maps.h and csrc/cuda/ks_maps.cuh have the maps, each with its own way to draw a sample. What a map is
// made of, and which bucket a 16-bit value has, is the same. The last step of a linear map is not: the CPU computes
// (value - low) * scale, with two roundings, because not every CPU can fuse them. CUDA computes value * scale + offset,
// with one. Both are monotone, and the results do not depend on more than that.
#pragma once

#include <cstdint>

#include "host_device.h"
#include "ks_keys.h"

namespace ksl {

// A linear map reaches this many mean absolute deviations to both sides of the mean. These are 4 standard deviations
// for normal values.
constexpr int kDeviations = 5;

// Buckets for each unit of the values. It is not finite if the half width is 0 or not finite.
template <typename T>
KSL_HOST_DEVICE constexpr T linear_scale(T buckets, T half_width) {
    return buckets / (2 * half_width);
}

// A map of 16-bit floats has equal ranges of bit patterns, so that buckets get narrower with the values, over kOctaves
// factors of two below a largest magnitude. 2^shift magnitudes share a bucket. Magnitudes up to `base` share the middle
// one.
struct BitScale {
    int base, shift;
};

constexpr int kOctaves = 8;
template <typename T>
constexpr int kOctave = 1 << BitsOf<T>::kMantissaBits;  // bit patterns of a factor of two

// The map has `limit` buckets on each side of the middle one. The outermost ones begin at the magnitude `top`.
template <typename T>
KSL_HOST_DEVICE constexpr BitScale bit_scale(int top, int limit) {
    int shift = 0;
    while (limit + 1 < kOctaves * kOctave<T> >> shift) ++shift;
    const int base = top - (limit << shift);
    return {base > 0 ? base : 0, shift};
}

// N is the type of the computation: 16 bits where many values share a vector.
template <typename T, typename N>
KSL_HOST_DEVICE constexpr N bit_bucket(N bits, N base, int shift, N limit) {
    const N magnitude = static_cast<N>(bits & kMagnitude<T>);
    const N above = static_cast<N>(magnitude > base ? magnitude - base : 0);
    const N steps = static_cast<N>(above >> shift), size = steps < limit ? steps : limit;
    return static_cast<N>(bits > kMagnitude<T> ? limit - size : limit + size);
}

}  // namespace ksl
