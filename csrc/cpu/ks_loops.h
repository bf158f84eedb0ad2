// The passes over the values of a row and over its buckets, which is everything in the bucket engine that uses vectors.
//
// Plain C++ over blocks of kLanes values, written for the compiler's vectorizer. ks_avx512.cpp and ks_avx2.cpp replace
// some of it.
// Included by one source file per instruction set, after ks_kernels.h; KSL_ISA is the namespace of its copy.
#pragma once

#include "../platform.h"
#include "ks_locate.h"

namespace ksl {
namespace KSL_ISA {
namespace {

// A bit for each of kLanes bytes that are 0 or 1. Multiplied, the 8 bytes of a word meet in its highest byte.
inline uint16_t pack_lanes(const uint8_t *flags) {
    static_assert(kLanes == 16);
    uint64_t words[2];
    std::memcpy(words, flags, sizeof words);
    constexpr uint64_t kGather = 0x0102040810204080;
    return static_cast<uint16_t>(words[0] * kGather >> 56 | (words[1] * kGather >> 56) << 8);
}

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

    // Whether all values are equal, and finite.
    template <typename T>
    static bool constant(const T *values, int64_t n) {
        constexpr int64_t kBlock = 64;
        const key_t<T> first = key_of(values[0]);
        for (int64_t begin = 0; begin < n; begin += kBlock) {
            const int64_t end = begin + kBlock < n ? begin + kBlock : n;
            key_t<T> different = 0;
            for (int64_t i = begin; i < end; ++i) different |= key_of(values[i]) ^ first;
            if (different != 0) return false;
        }
        return (bits_of(values[0]) & kMagnitude<T>) < BitsOf<T>::kInfinity;
    }

    template <typename T, typename V>
    static LinearLocator<T, V> locator(const LinearMap<T> &map, const V *) {
        return LinearLocator<T, V>(map);
    }

    template <typename T>
    static BitLocator<T> locator(const BitMap<T> &map, const T *) {
        return BitLocator<T>(map);
    }

    // What running down each lane gives: its sum, its highest and lowest edges, and the farthest reach of its buckets.
    static Bounds across_lanes(const int32_t *sum, const int32_t *high, const int32_t *low, const int32_t *up,
                               const int32_t *down) {
        Bounds bounds{0, 0, {}};
        const auto raise = [](int32_t &bound, int32_t value) { bound = value > bound ? value : bound; };
        for (int32_t k = 0, start = 0; k < kLanes; start += sum[k++]) {
            bounds.lane_start[k] = start;
            raise(bounds.lower, start + high[k]);
            raise(bounds.lower, -(start + low[k]));
            raise(bounds.upper, start + up[k]);
            raise(bounds.upper, -(start + down[k]));
        }
        return bounds;
    }

    // The bounds. Without kInside, they are those of the differences at the edges of buckets alone.
    template <bool kInside>
    static Bounds scan(const int32_t *x_count, const int32_t *y_count, int rows) {
        int32_t at[kLanes] = {}, high[kLanes] = {}, low[kLanes] = {}, up[kLanes] = {}, down[kLanes] = {};
        for (int s = 0; s < rows; ++s) {
            for (int k = 0; k < kLanes; ++k) {
                const int32_t cx = x_count[s * kLanes + k], cy = y_count[s * kLanes + k];
                const int32_t most = at[k] + cx, least = at[k] - cy;
                if constexpr (kInside) {
                    up[k] = most > up[k] ? most : up[k];
                    down[k] = least < down[k] ? least : down[k];
                }
                at[k] = most - cy;
                high[k] = at[k] > high[k] ? at[k] : high[k];
                low[k] = at[k] < low[k] ? at[k] : low[k];
            }
        }
        return across_lanes(at, high, low, up, down);
    }

    // Marks the buckets that reach beyond `best`, and notes the difference where each bucket starts.
    static void mark_wanted(Workspace &w, int rows, const Bounds &bounds, int32_t best) {
        int32_t at[kLanes];
        for (int k = 0; k < kLanes; ++k) at[k] = bounds.lane_start[k];
        for (int s = 0; s < rows; ++s) {
            uint8_t far[kLanes];
            for (int k = 0; k < kLanes; ++k) {
                const int32_t cx = w.x_count[s * kLanes + k], cy = w.y_count[s * kLanes + k];
                w.before[s * kLanes + k] = at[k];
                far[k] = (at[k] + cx > best) | (cy - at[k] > best);
                at[k] += cx - cy;
            }
            w.wanted[s] = pack_lanes(far);
        }
    }

    // Writes the positions of the values whose bucket is wanted and returns how many. May write a block beyond them.
    // `range` has all wanted buckets. With a fold, the bit map is that of 2^fold buckets joined.
    static int64_t find_wanted(const uint16_t *locations, int64_t n, const uint16_t *wanted, BucketRange /*range*/,
                               int /*lane_bits*/, int32_t *positions, int fold = 0) {
        int64_t count = 0;
        for (int64_t i = 0; i < n; ++i) {
            positions[count] = static_cast<int32_t>(i);
            count += (wanted[locations[i] / kLanes >> fold] >> (locations[i] % kLanes)) & 1;
        }
        return count;
    }

    // The largest |difference| at the nx + ny sample values of one bucket, which starts at `before`. keys holds those
    // of x, then those of y. Compares all with all, a block of kLanes at a time. For few keys this beats sorting,
    // because there are no branches to predict. May read a block beyond the keys.
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

    // How many of the nx keys of x, and of the ny keys of y that follow them, are at most each of kLanes candidates.
    template <typename Key>
    static void rank(const Key *keys, int32_t nx, int32_t ny, const Key *candidates, int32_t *of_x, int32_t *of_y) {
        Key candidate[kLanes];
        std::memcpy(candidate, candidates, sizeof candidate);
        int32_t x[kLanes] = {}, y[kLanes] = {};
        for (int32_t j = 0; j < nx; ++j) {
            for (int k = 0; k < kLanes; ++k) x[k] += keys[j] <= candidate[k];
        }
        for (int32_t j = nx; j < nx + ny; ++j) {
            for (int k = 0; k < kLanes; ++k) y[k] += keys[j] <= candidate[k];
        }
        std::memcpy(of_x, x, sizeof x);
        std::memcpy(of_y, y, sizeof y);
    }

    // Where each lane of the tables starts, and the bounds that the edges of all buckets give.
    template <typename W, typename Key>
    static void bound_sides(Search<Key> &s, const int32_t *nx, const int32_t *ny, const W *high, const W *low,
                            int32_t *x_start, int32_t *y_start) {
        int32_t x = 0, y = 0;
        for (int k = 0; k < kLanes; ++k) {
            x_start[k] = x;
            y_start[k] = y;
            const int64_t start = x * s.x_unit - y * s.y_unit;
            reached(s, start + high[k]);
            reached(s, start + low[k]);
            x += nx[k];
            y += ny[k];
        }
    }

    // Bounds both sides by the edges of the buckets, then marks the buckets that may hold a candidate and notes how
    // many values come before each.
    template <typename Key>
    static void plan(Search<Key> &s, SideWorkspace &w, int rows) {
        if (s.n * s.x_unit < kNarrow) {
            plan_in<int32_t>(s, w, rows);
        } else {
            plan_in<int64_t>(s, w, rows);
        }
    }

    static constexpr int64_t kNarrow = int64_t{1} << 30;

    template <typename W, typename Key>
    static void plan_in(Search<Key> &s, SideWorkspace &w, int rows) {
        const W x_unit = static_cast<W>(s.x_unit), y_unit = static_cast<W>(s.y_unit);
        W at[kLanes] = {}, high[kLanes] = {}, low[kLanes] = {};
        int32_t nx[kLanes] = {}, ny[kLanes] = {}, x_start[kLanes], y_start[kLanes];
        for (int row = 0; row < rows; ++row) {
            for (int k = 0; k < kLanes; ++k) {
                const int32_t cx = w.x_count[row * kLanes + k], cy = w.y_count[row * kLanes + k];
                nx[k] += cx;
                ny[k] += cy;
                at[k] += cx * x_unit - cy * y_unit;
                high[k] = at[k] > high[k] ? at[k] : high[k];
                low[k] = at[k] < low[k] ? at[k] : low[k];
            }
        }
        bound_sides(s, nx, ny, high, low, x_start, y_start);
        constexpr int64_t kMost = sizeof(W) > 4 ? kNever : INT32_MAX;
        const W up = static_cast<W>(s.up < kMost ? s.up : kMost),
                down = static_cast<W>(s.down < kMost ? s.down : kMost);
        for (int row = 0; row < rows; ++row) {
            uint8_t candidates[kLanes];
            for (int k = 0; k < kLanes; ++k) {
                const int32_t place = row * kLanes + k, cx = w.x_count[place], cy = w.y_count[place];
                const W here = x_start[k] * x_unit - y_start[k] * y_unit;
                const bool plus = (cx > 0) & (here + cx * x_unit >= up),
                           minus = (cy > 0) & (cy * y_unit - here >= down);
                candidates[k] = plus | minus;
                w.x_before[place] = x_start[k];
                w.y_before[place] = y_start[k];
                x_start[k] += cx;
                y_start[k] += cy;
            }
            w.wanted[row] = pack_lanes(candidates);
        }
    }
};

}  // namespace
}  // namespace KSL_ISA
}  // namespace ksl
