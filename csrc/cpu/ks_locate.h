// Finding the buckets of values, and counting them: the passes over whole rows.
//
// A locator belongs to a map of ks_maps.h. block(values, to) writes the locations of kBlock values. finite() tells
// whether all values so far were finite. Locations are within the tables even if they were not. Loops::locator(map,
// values) makes one. The locators of this file are plain C++, written for the compiler's vectorizer.
//
// Included by one source file per instruction set, after ks_kernels.h; KSL_ISA is the namespace of its copy.
#pragma once

#include "../platform.h"
#include "ks_maps.h"

namespace ksl {
namespace KSL_ISA {
namespace {

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
                uint16_t size = static_cast<uint16_t>((magnitude > base ? magnitude - base : 0) >> map.shift);
                size = size < limit ? size : limit;
                const uint16_t bucket = static_cast<uint16_t>(bits > kMagnitude<T> ? limit - size : limit + size);
                to[begin + k] = location_of(bucket, map.lane_bits);
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
