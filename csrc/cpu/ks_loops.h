// The passes over the values of a row and over its buckets: everything in the bucket engine that wants vectors.
//
// Plain C++ over blocks of kLanes values, written for the compiler's vectoriser. ks_avx512.cpp replaces some of it.
// Included by one source file per instruction set, after ks_kernels.h; KSL_ISA is the namespace of its copy.
//
// The tables are stored by lanes: lane k holds the k-th sixteenth of the buckets, and bucket s of every lane stands in
// row s. So a scan needs no prefix sums across a vector: it runs down all lanes at once, and adds up the lanes' totals
// at the end. A value's `location` is the index s * kLanes + k in these tables.
#pragma once

namespace ksl {
namespace KSL_ISA {
namespace {

constexpr int kLanes = 16;

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

template <typename T>
struct LinearMap {
    T low, scale, top;
    int lane_bits;  // log2 of the buckets of a lane

    // Over +-5 mean absolute deviations, which for normal data is +-4 standard deviations.
    bool fit(const T *x, const T *y, int64_t n, int bucket_bits) {
        constexpr int kPieces = 8, kSample = 2 * kPieces * 8;
        T sample[kSample];
        const int64_t step = n / kPieces;
        for (int piece = 0; piece < kPieces; ++piece) {
            for (int i = 0; i < 8; ++i) {
                const int64_t at = step >= 8 ? piece * step + i : (piece * 8 + i) % n;
                sample[(2 * piece) * 8 + i] = x[at];
                sample[(2 * piece + 1) * 8 + i] = y[at];
            }
        }
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
        const T half_width = 5 * (total(deviations) / kSample);
        const T buckets = static_cast<T>(1 << bucket_bits);
        low = mean - half_width;
        scale = buckets / (2 * half_width);
        top = buckets - 1;
        lane_bits = bucket_bits - 4;
        return half_width > 0 && scale - scale == 0 && low - low == 0;  // finite all: infinity - infinity is NaN
    }

    bool single_valued() const { return false; }
    CoarseBuckets coarse_buckets(const int32_t *, const int32_t *, const Bounds &) const { return {}; }
};

// The same with integers for 16-bit floats: equal ranges of bit patterns, so buckets get narrower with the values,
// over the kOctaves factors of two below `top`. Magnitudes beyond share an outermost bucket, smaller ones the middle.
template <typename T>
struct BitMap {
    static constexpr int kOctaves = 8;
    uint16_t base, limit;
    int shift, lane_bits;

    bool fit(const T *x, const T *y, int64_t n, int bucket_bits) {
        constexpr int kMantissaBits = BitsOf<T>::kMantissaBits;
        uint16_t largest = 0;
        for (int64_t i = 0; i < 64; ++i) {
            const uint16_t a = bits_of(x[i * n / 64]) & kMagnitude<T>, b = bits_of(y[i * n / 64]) & kMagnitude<T>;
            largest = a > largest ? a : largest;
            largest = b > largest ? b : largest;
        }
        const int top = largest + (1 << kMantissaBits) / 2;  // about 1.5 times the largest of the sample
        limit = static_cast<uint16_t>((1 << (bucket_bits - 1)) - 1);
        shift = 0;
        while (limit + 1 < (kOctaves << kMantissaBits) >> shift) ++shift;
        base = static_cast<uint16_t>(top > limit << shift ? top - (limit << shift) : 0);
        lane_bits = bucket_bits - 4;
        return largest < BitsOf<T>::kInfinity;
    }

    // Whether all buckets but the coarse ones hold one value each: nothing can hide in them.
    bool single_valued() const { return shift == 0; }

    CoarseBuckets coarse_buckets(const int32_t *x_count, const int32_t *y_count, const Bounds &bounds) const {
        CoarseBuckets coarse;
        const int32_t numbers[3] = {0, limit, 2 * limit};
        for (int i = 0; i < 3; ++i) {
            const int32_t at = location_of(numbers[i], lane_bits), cx = x_count[at], cy = y_count[at];
            // The middle bucket is the last of its lane, the outermost ones begin and end with a difference of 0.
            const int32_t before = i == 0 ? 0 : (i == 1 ? bounds.lane_start[kLanes / 2] : 0) - (cx - cy);
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

struct GenericLoops {
    // 1 if both rows hold the same bits and all of them are finite, 0 if they differ, -1 if not all are finite.
    template <typename T>
    static int identical_rows(const T *x, const T *y, int64_t n) {
        using Bits = bits_t<T>;
        constexpr int64_t kBlock = 256;
        bool special = false;
        for (int64_t begin = 0; begin < n; begin += kBlock) {
            const int64_t end = begin + kBlock < n ? begin + kBlock : n;
            Bits different = 0, largest = 0;
            for (int64_t i = begin; i < end; ++i) {
                const Bits a = bits_of(x[i]), b = bits_of(y[i]);
                different |= a ^ b;
                const Bits magnitude = a & kMagnitude<T>;
                largest = magnitude > largest ? magnitude : largest;
            }
            if (different != 0) return 0;
            special |= largest >= BitsOf<T>::kInfinity;
        }
        return special ? -1 : 1;
    }

    // Writes the location of each value's bucket; false if there is NaN or infinity among them: 0 * infinity is NaN,
    // and so is 0 * NaN. The buffer of locations is written in whole blocks, beyond n.
    template <typename T>
    static bool locate(const LinearMap<T> &map, const T *values, int64_t n, uint16_t *locations) {
        T nan[kLanes] = {};
        int64_t i = 0;
        for (; i + kLanes <= n; i += kLanes) locate_block(map, values + i, locations + i, nan);
        if (i < n) {
            T rest[kLanes] = {};
            for (int64_t k = i; k < n; ++k) rest[k - i] = values[k];
            locate_block(map, rest, locations + i, nan);
        }
        return total(nan) == 0;
    }

    template <typename T>
    static void locate_block(const LinearMap<T> &map, const T *values, uint16_t *locations, T *nan) {
        for (int k = 0; k < kLanes; ++k) {
            nan[k] += values[k] * T{0};
            T t = (values[k] - map.low) * map.scale;
            t = t > 0 ? t : 0;
            t = t < map.top ? t : map.top;
            locations[k] = location_of(static_cast<int32_t>(t), map.lane_bits);
        }
    }

    // The same for 16-bit floats.
    template <typename T>
    static bool locate(const BitMap<T> &map, const T *values, int64_t n, uint16_t *locations) {
        const uint16_t base = map.base, limit = map.limit;
        const int shift = map.shift;
        uint16_t largest = 0;
        for (int64_t i = 0; i < n; ++i) {
            const uint16_t bits = bits_of(values[i]);
            const uint16_t magnitude = bits & kMagnitude<T>;
            largest = magnitude > largest ? magnitude : largest;
            uint16_t size = static_cast<uint16_t>((magnitude > base ? magnitude - base : 0) >> shift);
            size = size < limit ? size : limit;
            const uint16_t bucket = static_cast<uint16_t>(bits > kMagnitude<T> ? limit - size : limit + size);
            locations[i] = location_of(bucket, map.lane_bits);
        }
        return largest < BitsOf<T>::kInfinity;
    }

    static void count_values(const uint16_t *x, const uint16_t *y, int64_t n, int32_t *x_count, int32_t *y_count) {
        int64_t i = 0;
        for (; i + 4 <= n; i += 4) {  // four locations at a load: the loop is bound by its loads and stores
            uint64_t a, b;
            std::memcpy(&a, x + i, sizeof a);
            std::memcpy(&b, y + i, sizeof b);
            for (int k = 0; k < 64; k += 16) {
                ++x_count[(a >> k) & 0xffff];
                ++y_count[(b >> k) & 0xffff];
            }
        }
        for (; i < n; ++i) {
            ++x_count[x[i]];
            ++y_count[y[i]];
        }
    }

    static Bounds scan(const int32_t *x_count, const int32_t *y_count, int rows) {
        int32_t at[kLanes] = {}, high[kLanes] = {}, low[kLanes] = {}, up[kLanes] = {}, down[kLanes] = {};
        for (int s = 0; s < rows; ++s) {
            for (int k = 0; k < kLanes; ++k) {
                const int32_t cx = x_count[s * kLanes + k], cy = y_count[s * kLanes + k];
                const int32_t most = at[k] + cx, least = at[k] - cy;
                up[k] = most > up[k] ? most : up[k];
                down[k] = least < down[k] ? least : down[k];
                at[k] = most - cy;
                high[k] = at[k] > high[k] ? at[k] : high[k];
                low[k] = at[k] < low[k] ? at[k] : low[k];
            }
        }
        Bounds bounds{0, 0, {}};
        const auto raise = [](int32_t &bound, int32_t value) { bound = value > bound ? value : bound; };
        for (int32_t k = 0, start = 0; k < kLanes; start += at[k++]) {
            bounds.lane_start[k] = start;
            raise(bounds.lower, start + high[k]);
            raise(bounds.lower, -(start + low[k]));
            raise(bounds.upper, start + up[k]);
            raise(bounds.upper, -(start + down[k]));
        }
        return bounds;
    }

    // Marks the buckets that reach beyond `best`, and notes the difference where each bucket starts.
    static void mark_wanted(Workspace &w, int rows, const Bounds &bounds, int32_t best) {
        int32_t at[kLanes];
        for (int k = 0; k < kLanes; ++k) at[k] = bounds.lane_start[k];
        for (int s = 0; s < rows; ++s) {
            uint32_t bits = 0;
            for (int k = 0; k < kLanes; ++k) {
                const int32_t cx = w.x_count[s * kLanes + k], cy = w.y_count[s * kLanes + k];
                w.before[s * kLanes + k] = at[k];
                bits |= static_cast<uint32_t>((at[k] + cx > best) | (cy - at[k] > best)) << k;
                at[k] += cx - cy;
            }
            w.wanted[s] = static_cast<uint16_t>(bits);
        }
    }

    // The positions of the values whose bucket is wanted; returns how many. May write a block beyond them.
    static int64_t find_wanted(const uint16_t *locations, int64_t n, const uint16_t *wanted, int32_t *positions) {
        int64_t count = 0;
        for (int64_t i = 0; i < n; ++i) {
            positions[count] = static_cast<int32_t>(i);
            count += (wanted[locations[i] / kLanes] >> (locations[i] % kLanes)) & 1;
        }
        return count;
    }

    // The largest |difference| at the nx + ny sample values of one bucket, which starts at `before`: keys holds those
    // of x, then those of y. Compares all with all, a block of kLanes at a time, which for few keys beats sorting, as
    // nothing has to be predicted. May read a block beyond the keys.
    template <typename Key>
    static int32_t search(const Key *keys, int32_t nx, int32_t ny, int32_t before) {
        int32_t largest = 0;
        for (int32_t begin = 0; begin < nx + ny; begin += kLanes) {
            int32_t at[kLanes];
            for (int k = 0; k < kLanes; ++k) at[k] = before;
            for (int32_t j = 0; j < nx; ++j) {
                for (int k = 0; k < kLanes; ++k) at[k] += keys[j] <= keys[begin + k];
            }
            for (int32_t j = nx; j < nx + ny; ++j) {
                for (int k = 0; k < kLanes; ++k) at[k] -= keys[j] <= keys[begin + k];
            }
            const int32_t lanes = nx + ny - begin < kLanes ? nx + ny - begin : kLanes;
            for (int32_t k = 0; k < lanes; ++k) {
                const int32_t size = at[k] < 0 ? -at[k] : at[k];
                largest = size > largest ? size : largest;
            }
        }
        return largest;
    }
};

}  // namespace
}  // namespace KSL_ISA
}  // namespace ksl
