// Monotone maps of the values of a row to kBuckets buckets. Their formulas are shared with csrc/cpu/ks_maps.h.
//
// A map has bucket(bits), for values that it contains(bits), and exact(bucket), which tells whether that bucket cannot
// hold two different values, so that nothing hides between its edges. With kTwoAtOnce it also has two_buckets(word),
// for the two 16-bit values of a word. Monotony makes the result right. A good fit, by the first warp to a sample of
// the row, only makes it fast.
#pragma once

#include <type_traits>
#include <utility>

#include "ks_input.cuh"
#include "ks_maps.h"

namespace ksl {
namespace cuda {

// The Pairs concept, which C++17 cannot name: how a block looks at the values x[i], y[i] of two rows, each thread at
// pairs of its own. ResidentPairs and StreamedPairs are Pairs. They have
//   Bits                       the type of a value's bits, bits_t<T>
//   differ(special)            whether a pair of this thread differs in its bits; sets whether a value is not finite
//   each(f)                    f(x, y) for the pairs of this thread that differ
//   kSample, sample(k, n, x, y)  pair k of the kSample pairs that this thread gives to a sample of rows of n values;
//                              false if it has fewer
//   kTwoAWord                  whether there is each_word(f) too: f(x, y) for the 32-bit words that differ, of two
//                              values each
template <typename P, typename = void>
constexpr bool is_pairs = false;

template <typename P, typename Bits = typename P::Bits>
using PairsMembers = std::void_t<
    std::enable_if_t<std::is_same_v<const bool, decltype(P::kTwoAWord)>>,
    std::enable_if_t<std::is_same_v<const int, decltype(P::kSample)>>,
    std::enable_if_t<std::is_same_v<bool, decltype(std::declval<const P &>().differ(std::declval<bool &>()))>>,
    decltype(std::declval<P &>().each(std::declval<void (&)(Bits, Bits)>())),
    std::enable_if_t<std::is_same_v<bool, decltype(std::declval<const P &>().sample(0, 0, std::declval<Bits &>(),
                                                                                    std::declval<Bits &>()))>>>;

template <typename P>
constexpr bool is_pairs<P, PairsMembers<P>> = true;

template <typename N>
__device__ N warp_sum(N value) {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kFullWarp, value, step);
    return value;
}

template <typename T>
__device__ T value_of(bits_t<T> bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Equal ranges of values, over kDeviations mean absolute deviations to both sides of the mean. What is farther out goes
// to the outermost buckets.
template <typename T, int kBuckets>
struct LinearMap {
    static constexpr bool kTwoAtOnce = false;
    T scale, offset;

    // All lanes of one warp call it. Returns false if no map can be made, because the sample is constant or its spread
    // is not finite.
    template <typename Pairs>
    __device__ bool fit(const Pairs &pairs, int n) {
        static_assert(is_pairs<Pairs>);
        T sum = 0;
        int count = 0;
#pragma unroll
        for (int k = 0; k < Pairs::kSample; ++k) {
            bits_t<T> x, y;
            if (!pairs.sample(k, n, x, y)) continue;
            sum += value_of<T>(x) + value_of<T>(y);
            count += 2;
        }
        count = warp_sum(count);
        const T mean = warp_sum(sum) / static_cast<T>(count);
        T deviation = 0;
#pragma unroll
        for (int k = 0; k < Pairs::kSample; ++k) {
            bits_t<T> x, y;
            if (!pairs.sample(k, n, x, y)) continue;
            deviation += fabs(value_of<T>(x) - mean) + fabs(value_of<T>(y) - mean);
        }
        const T half_width = kDeviations * (warp_sum(deviation) / static_cast<T>(count));
        scale = linear_scale(static_cast<T>(kBuckets), half_width);
        offset = (half_width - mean) * scale;
        return half_width > 0 && scale > 0 && scale - scale == 0 && offset - offset == 0;  // inf - inf is NaN
    }

    __device__ bool contains(bits_t<T>) const { return true; }
    __device__ bool exact(int) const { return false; }

    // This is monotone, because one fused operation rounds once, and so do the steps that follow.
    __device__ int bucket(bits_t<T> bits) const {
        const T t = fma(value_of<T>(bits), scale, offset);
        return static_cast<int>(fmin(fmax(t, T{0}), static_cast<T>(kBuckets - 1)));
    }
};

// The same without a conversion, which a multiprocessor does for 16 lanes at a time and not for 128. A sum with 2^23 is
// rounded to a whole number, and its lower bits are that number. This is monotone for the same reason.
template <int kBuckets>
struct SaturatedMap : LinearMap<float, kBuckets> {
    template <typename Pairs>
    __device__ bool fit(const Pairs &pairs, int n) {
        const bool fits = LinearMap<float, kBuckets>::fit(pairs, n);
        this->scale *= 1.0f / kBuckets;
        this->offset *= 1.0f / kBuckets;
        return fits && this->scale > 0;
    }

    __device__ int bucket(uint32_t bits) const {
        const float t = __saturatef(fma(value_of<float>(bits), this->scale, this->offset));  // 0 to 1
        return static_cast<int>(__float_as_uint(fma(t, static_cast<float>(kBuckets - 1), 0x1p23f)) - 0x4b000000u);
    }
};

// For 16-bit floats: bit_bucket of ../ks_maps.h, up to 1.5 times the largest magnitude of the sample.
template <typename T, int kBuckets>
struct BitMap {
    static constexpr bool kTwoAtOnce = false;
    static constexpr int kLimit = kBuckets / 2 - 1;
    int base, shift;

    template <typename Pairs>
    __device__ bool fit(const Pairs &pairs, int n) {
        static_assert(is_pairs<Pairs>);
        int largest = 0;
#pragma unroll
        for (int k = 0; k < Pairs::kSample; ++k) {
            bits_t<T> x, y;
            if (!pairs.sample(k, n, x, y)) continue;
            largest = max(largest, max(x & kMagnitude<T>, y & kMagnitude<T>));
        }
        largest = __reduce_max_sync(kFullWarp, largest);
        const BitScale fitted = bit_scale<T>(largest + kOctave<T> / 2, kLimit);
        base = fitted.base;
        shift = fitted.shift;
        return true;
    }

    __device__ bool contains(bits_t<T>) const { return true; }
    __device__ bool exact(int b) const { return shift == 0 && b != 0 && b != kLimit && b != 2 * kLimit; }

    __device__ int bucket(bits_t<T> bits) const { return bit_bucket<T>(static_cast<int>(bits), base, shift, kLimit); }
};

// The same for two values of one word at once, by instructions that Hopper has for 16-bit halves.
template <typename T, int kBuckets>
struct PairedBitMap : BitMap<T, kBuckets> {
    static constexpr bool kTwoAtOnce = true;
    using BitMap<T, kBuckets>::kLimit;
    // In both halves: 0x7fff, -base, and the bits that are left after the shift. 0x7fff is here because the compiler
    // knows it otherwise, and keeps the magnitudes of all words from the search for infinities on.
    uint32_t magnitudes, minus_bases, kept;

    template <typename Pairs>
    __device__ bool fit(const Pairs &pairs, int n) {
        const bool fits = BitMap<T, kBuckets>::fit(pairs, n);
        magnitudes = 0x7fff7fffu;
        minus_bases = 0x10001u * (static_cast<uint32_t>(-this->base) & 0xffffu);
        kept = 0x10001u * (0xffffu >> this->shift);
        return fits;
    }

    // No sum or difference leaves its half: magnitudes have 15 bits, and sizes are at most kLimit.
    __device__ uint32_t two_buckets(uint32_t word) const {
        constexpr uint32_t kLimits = 0x10001u * kLimit;
        const uint32_t above = __viaddmax_s16x2(word & magnitudes, minus_bases, 0u);
        const uint32_t sizes = __vimin_s16x2_relu(above >> this->shift & kept, kLimits);
        const uint32_t signs = word >> 15 & 0x00010001u, negative = sizes & ((signs << 16) - signs);
        return kLimits + sizes - 2 * negative;
    }
};

// Equal ranges of the ordered keys from low to high. This is for any values, and so for zooming.
template <typename T, int kBuckets>
struct KeyMap {
    static constexpr bool kTwoAtOnce = false;
    key_t<T> low, high;
    int shift;

    __device__ KeyMap(key_t<T> from, key_t<T> to) : low(from), high(to), shift(0) {
        while ((high - low) >> shift >= static_cast<key_t<T>>(kBuckets)) ++shift;
    }
    __device__ bool contains(bits_t<T> bits) const {
        const key_t<T> key = ordered_key(bits);
        return key >= low && key <= high;
    }
    __device__ bool exact(int) const { return shift == 0; }
    __device__ int bucket(bits_t<T> bits) const { return static_cast<int>((ordered_key(bits) - low) >> shift); }

    __device__ key_t<T> first(int b) const { return low + (static_cast<key_t<T>>(b) << shift); }
    __device__ key_t<T> last(int b) const {
        const key_t<T> end = first(b) + ((key_t<T>{1} << shift) - 1);
        return end < high && end >= low ? end : high;
    }
};

template <typename T, int kBuckets, Variant kVariant>
struct MapFor {
    using type = std::conditional_t<sizeof(T) == 2, BitMap<T, kBuckets>, LinearMap<T, kBuckets>>;
};
template <int kBuckets>
struct MapFor<float, kBuckets, Variant::kFast> {
    using type = SaturatedMap<kBuckets>;
};
template <int kBuckets>
struct MapFor<BFloat16, kBuckets, Variant::kFast> {
    using type = PairedBitMap<BFloat16, kBuckets>;
};
template <typename T, int kBuckets, Variant kVariant>
using map_for = typename MapFor<T, kBuckets, kVariant>::type;

}  // namespace cuda
}  // namespace ksl
