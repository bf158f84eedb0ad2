// Monotone maps of the values of a row to buckets, the place of a bucket in the tables of counts, and the passes over
// whole rows that find the buckets of values and count them.
//
// Included by one source file per instruction set, after ks_kernels.h; KSL_ISA is the namespace of its copy.
//
// The tables are stored by lanes. Lane k holds the k-th sixteenth of the buckets, and bucket s of every lane is in row
// s. So a scan needs no prefix sums across a vector. It runs down all lanes at once and adds the totals of the lanes at
// the end. A value's `location` is the index s * kLanes + k in these tables.
//
// A locator belongs to a map. block(values, to) writes the locations of kBlock values. finite() tells whether all
// values so far were finite. Locations are within the tables even if they were not. Loops::locator(map, values) makes
// one. The locators of this file are plain C++, written for the compiler's vectorizer.
#pragma once

#include "../ks_keys.h"
#include "../ks_maps.h"
#include "../platform.h"
#include "ks_kernels.h"

namespace ksl {
namespace KSL_ISA {
namespace {

struct Bounds {
    int32_t lower, upper;
    int32_t lane_start[kLanes];
};

template <typename T>
T total(const T *lanes) {
    T sum = 0;
    for (int k = 0; k < kLanes; ++k) sum += lanes[k];
    return sum;
}

inline uint16_t location_of(int32_t bucket, int lane_bits) {
    return static_cast<uint16_t>((bucket & ((1 << lane_bits) - 1)) * kLanes + (bucket >> lane_bits));
}

inline int bucket_of(int location, int lane_bits) { return location % kLanes << lane_bits | location / kLanes; }

// Buckets that hold several different values where all others hold one.
struct CoarseBuckets {
    struct Bucket {
        int32_t location, before;
        int64_t reach;
    };
    Bucket buckets[3];

    int32_t upper(int32_t lower) const {
        int64_t bound = lower;
        for (const Bucket &bucket : buckets) bound = bucket.reach > bound ? bucket.reach : bound;
        return static_cast<int32_t>(bound);
    }
};

// The upper median of kHalf numbers. Sorts them.
constexpr int kHalf = kLanes / 2;

template <typename N>
N median_of_half(N *values) {
    for (int i = 1; i < kHalf; ++i) {
        const N value = values[i];
        int k = i;
        for (; k > 0 && values[k - 1] > value; --k) values[k] = values[k - 1];
        values[k] = value;
    }
    return values[kHalf / 2];
}

template <typename T>
struct LinearMap {
    T low, scale, top;
    int lane_bits;  // log2 of the buckets of a lane

    static constexpr int kPieces = 8, kSample = kPieces * kLanes;

    // Pieces of x and y by turns, from all over the row. The first half of the lanes is x, the other y.
    template <typename V>
    static void draw_sample(const V *x, int64_t n, const V *y, int64_t m, T *sample) {
        const int64_t x_step = n / kPieces, y_step = m / kPieces;
        for (int piece = 0; piece < kPieces; ++piece) {
            for (int i = 0; i < kHalf; ++i) {
                const int64_t x_at = x_step >= kHalf ? piece * x_step + i : (piece * kHalf + i) % n;
                const int64_t y_at = y_step >= kHalf ? piece * y_step + i : (piece * kHalf + i) % m;
                sample[piece * kLanes + i] = static_cast<T>(x[x_at]);
                sample[piece * kLanes + kHalf + i] = static_cast<T>(y[y_at]);
            }
        }
    }

    // Over +-kDeviations mean absolute deviations.
    template <typename V>
    bool fit(const V *x, int64_t n, const V *y, int64_t m, int bucket_bits) {
        T sample[kSample];
        draw_sample(x, n, y, m, sample);
        T sums[kLanes] = {};
        for (int i = 0; i < kSample; i += kLanes) {
            for (int k = 0; k < kLanes; ++k) sums[k] += sample[i + k];
        }
        const T mean = total(sums) / kSample;
        T deviations[kLanes] = {};
        for (int i = 0; i < kSample; i += kLanes) {
            for (int k = 0; k < kLanes; ++k) {
                const T d = sample[i + k] - mean;
                deviations[k] += d < 0 ? -d : d;
            }
        }
        return set(mean, kDeviations * (total(deviations) / kSample), bucket_bits);
    }

    // Fits without outliers. Returns false if that makes no great difference. It uses the medians of the lanes' largest
    // and smallest values, which a few outliers do not change. For 8 normal values these are at +-1.4 standard
    // deviations.
    template <typename V>
    bool refit(const V *x, int64_t n, const V *y, int64_t m, int bucket_bits) {
        T sample[kSample], least[kLanes], most[kLanes];
        draw_sample(x, n, y, m, sample);
        for (int k = 0; k < kLanes; ++k) least[k] = most[k] = sample[k];
        for (int i = kLanes; i < kSample; i += kLanes) {
            for (int k = 0; k < kLanes; ++k) {
                least[k] = sample[i + k] < least[k] ? sample[i + k] : least[k];
                most[k] = sample[i + k] > most[k] ? sample[i + k] : most[k];
            }
        }
        const T x_low = median_of_half(least), y_low = median_of_half(least + kHalf);
        const T x_high = median_of_half(most), y_high = median_of_half(most + kHalf);
        const T lowest = x_low < y_low ? x_low : y_low, highest = x_high > y_high ? x_high : y_high;
        LinearMap narrow;
        if (!narrow.set((lowest + highest) / 2, 3 * ((highest - lowest) / 2), bucket_bits)) return false;
        if (narrow.scale < 4 * scale) return false;
        *this = narrow;
        return true;
    }

    bool set(T middle, T half_width, int bucket_bits) {
        const T buckets = static_cast<T>(1 << bucket_bits);
        low = middle - half_width;
        scale = linear_scale(buckets, half_width);
        top = buckets - 1;
        lane_bits = bucket_bits - 4;
        return half_width > 0 && scale - scale == 0 && low - low == 0;  // all finite, as infinity - infinity is NaN
    }

    bool single_valued() const { return false; }
    CoarseBuckets coarse_buckets(const int32_t *, const int32_t *, const Bounds &) const { return {}; }
};

// The same with integers for 16-bit floats: bit_bucket of ../ks_maps.h.
template <typename T>
struct BitMap {
    uint16_t base, limit;
    int shift, lane_bits;

    bool fit(const T *x, int64_t n, const T *y, int64_t, int bucket_bits) {
        uint16_t most[kLanes];
        draw_largest(x, y, n, most);
        uint16_t largest = 0;
        for (int k = 0; k < kLanes; ++k) largest = most[k] > largest ? most[k] : largest;
        set(largest + kOctave<T> / 2, bucket_bits);  // about 1.5 times the largest of the sample
        return largest < BitsOf<T>::kInfinity;
    }

    // Fits without outliers. Returns false if that makes no great difference. It uses the median of the lanes' largest
    // values. For 8 normal values it is at 1.7 standard deviations.
    bool refit(const T *x, int64_t n, const T *y, int64_t, int bucket_bits) {
        uint16_t most[kLanes];
        draw_largest(x, y, n, most);
        const uint16_t a = median_of_half(most), b = median_of_half(most + kHalf);
        BitMap narrow;
        narrow.set((a > b ? a : b) + kOctave<T> * 5 / 4, bucket_bits);
        if (narrow.base + 2 * kOctave<T> > base) return false;
        *this = narrow;
        return true;
    }

    // The largest magnitudes, lane by lane, of a sample from all over the row.
    static void draw_largest(const T *x, const T *y, int64_t n, uint16_t *most) {
        for (int k = 0; k < kLanes; ++k) most[k] = 0;
        for (int piece = 0; piece < 4; ++piece) {
            for (int k = 0; k < kLanes; ++k) {
                const uint16_t a = bits_of(x[piece * (n / 4) + k]) & kMagnitude<T>;
                const uint16_t b = bits_of(y[piece * (n / 4) + k]) & kMagnitude<T>;
                most[k] = a > most[k] ? a : most[k];
                most[k] = b > most[k] ? b : most[k];
            }
        }
    }

    void set(int top, int bucket_bits) {
        limit = static_cast<uint16_t>((1 << (bucket_bits - 1)) - 1);
        const BitScale scale = bit_scale<T>(top, limit);
        base = static_cast<uint16_t>(scale.base);
        shift = scale.shift;
        lane_bits = bucket_bits - 4;
    }

    // Whether all buckets but the coarse ones hold one value each, so that nothing can hide in them.
    bool single_valued() const { return shift == 0; }

    CoarseBuckets coarse_buckets(const int32_t *x_count, const int32_t *y_count, const Bounds &bounds) const {
        CoarseBuckets coarse;
        const int32_t numbers[3] = {0, limit, 2 * limit};
        for (int i = 0; i < 3; ++i) {
            const int32_t at = location_of(numbers[i], lane_bits), cx = x_count[at], cy = y_count[at];
            // The middle bucket is the last of its lane. The outermost ones begin and end with a difference of 0.
            int32_t before = 0;
            if (i == 1) before = bounds.lane_start[kLanes / 2] - (cx - cy);
            if (i == 2) before = -(cx - cy);
            coarse.buckets[i] = {at, before, reach(before, cx, cy)};
        }
        return coarse;
    }
};

template <typename T>
struct MapFor {
    using type = LinearMap<T>;
};
template <>
struct MapFor<Float16> {
    using type = BitMap<Float16>;
};
template <>
struct MapFor<BFloat16> {
    using type = BitMap<BFloat16>;
};
template <typename T>
using MapOf = typename MapFor<T>::type;

constexpr int kBlock = 32;  // values that are located at a time

// T is the type of the computation, V that of the values.
template <typename T, typename V>
struct LinearLocator {
    const LinearMap<T> map;
    T nan[kLanes] = {};  // 0, or NaN once a value was not finite: 0 * infinity is NaN, and so is 0 * NaN

    explicit LinearLocator(const LinearMap<T> &of) : map(of) {}

    KSL_ALWAYS_INLINE void block(const V *values, uint16_t *to) {
        for (int begin = 0; begin < kBlock; begin += kLanes) {
            for (int k = 0; k < kLanes; ++k) {
                const T value = static_cast<T>(values[begin + k]);
                nan[k] += value * T{0};
                T t = (value - map.low) * map.scale;
                t = t > 0 ? t : 0;
                t = t < map.top ? t : map.top;
                to[begin + k] = location_of(static_cast<int32_t>(t), map.lane_bits);
            }
        }
    }

    bool finite() const { return total(nan) == 0; }
};

template <typename T>
struct BitLocator {
    const BitMap<T> map;
    uint16_t largest[kLanes] = {};  // magnitudes

    explicit BitLocator(const BitMap<T> &of) : map(of) {}

    KSL_ALWAYS_INLINE void block(const T *values, uint16_t *to) {
        const uint16_t base = map.base, limit = map.limit;
        for (int begin = 0; begin < kBlock; begin += kLanes) {
            for (int k = 0; k < kLanes; ++k) {
                const uint16_t bits = bits_of(values[begin + k]);
                const uint16_t magnitude = bits & kMagnitude<T>;
                largest[k] = magnitude > largest[k] ? magnitude : largest[k];
                to[begin + k] = location_of(bit_bucket<T>(bits, base, map.shift, limit), map.lane_bits);
            }
        }
    }

    bool finite() const {
        uint16_t most = 0;
        for (int k = 0; k < kLanes; ++k) most = largest[k] > most ? largest[k] : most;
        return most < BitsOf<T>::kInfinity;
    }
};

// Writes n locations from place `begin` on, in whole blocks, so beyond n. Nothing is read there.
// It is inlined always, because the constants of a locator are in registers only then.
template <typename Locator, typename V>
KSL_ALWAYS_INLINE void locate_some(Locator &locator, const V *values, int64_t begin, int64_t n, uint16_t *locations) {
    for (; begin + kBlock <= n; begin += kBlock) locator.block(values + begin, locations + begin);
    if (begin >= n) return;
    V rest[kBlock] = {};
    std::memcpy(rest, values + begin, static_cast<size_t>(n - begin) * sizeof(V));
    locator.block(rest, locations + begin);
}

// Writes the location of each value's bucket. Returns false if NaN or infinity is among the values.
template <typename Locator, typename V>
bool locate_all(Locator locator, const V *values, int64_t n, uint16_t *locations) {
    locate_some(locator, values, 0, n, locations);
    return locator.finite();
}

// The same, and adds the values to a table of counts. Returns false if NaN or infinity is among the values, and then
// the counts mean nothing.
//
// An increment is a store, and the CPU makes about one a cycle, which is what takes the time. Locating uses the vector
// units. So values are located a little ahead of where they are counted, and both are done at once. Meanwhile the row
// that comes next is prefetched. Its address need not exist.
template <typename Locator, typename V>
bool locate_and_count_all(Locator locator, const V *values, int64_t n, uint16_t *locations, int32_t *counts,
                          const void *next) {
    constexpr int64_t kAhead = 2 * kBlock, kLine = 64;
    locate_some(locator, values, 0, n < kAhead ? n : kAhead, locations);
    int64_t i = 0;
    for (; i + kBlock <= n; i += kBlock) {
        if (const int64_t ahead = i + kAhead; ahead + kBlock <= n) {
            locator.block(values + ahead, locations + ahead);
        } else {
            locate_some(locator, values, ahead, n, locations);
        }
        const char *to_prefetch = static_cast<const char *>(next) + i * static_cast<int64_t>(sizeof(V));
        for (int64_t k = 0; k < kBlock * static_cast<int64_t>(sizeof(V)); k += kLine) {
            prefetch(to_prefetch + k);
        }
        for (int k = 0; k < kBlock; k += 4) {
            uint64_t four;  // locations at a load
            std::memcpy(&four, locations + i + k, sizeof four);
            for (int bit = 0; bit < 64; bit += 16) ++counts[(four >> bit) & 0xffff];
        }
    }
    for (; i < n; ++i) ++counts[locations[i]];
    return locator.finite();
}

}  // namespace
}  // namespace KSL_ISA
}  // namespace ksl
