// The passes over the values of a row, over its buckets and over keys. Of the bucket engine, this is everything that
// uses vectors. The arithmetic of AdamW and the search for NaN in a span of numbers are here too.
//
// Plain C++, written for the compiler's vectorizer. ks_avx512.cpp and ks_avx2.cpp replace some of it.
// Included by one source file per instruction set, after ks_kernels.h; KSL_ISA is the namespace of its copy.
#pragma once

#include "../platform.h"
#include "ks_maps.h"

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
    static void mark_wanted(RowTables &tables, const Bounds &bounds, int32_t best) {
        const RowTables::Marks marks = tables.mark();
        const int rows = tables.rows();
        const int32_t *const x_count = tables.x_count(), *const y_count = tables.y_count();
        int32_t at[kLanes];
        for (int k = 0; k < kLanes; ++k) at[k] = bounds.lane_start[k];
        for (int s = 0; s < rows; ++s) {
            uint8_t far[kLanes];
            for (int k = 0; k < kLanes; ++k) {
                const int32_t cx = x_count[s * kLanes + k], cy = y_count[s * kLanes + k];
                marks.before[s * kLanes + k] = at[k];
                far[k] = (at[k] + cx > best) | (cy - at[k] > best);
                at[k] += cx - cy;
            }
            marks.wanted[s] = pack_lanes(far);
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
    static void plan(Search<Key> &s, SideTables &tables) {
        if (s.n * s.x_unit < kNarrow) {
            plan_in<int32_t>(s, tables);
        } else {
            plan_in<int64_t>(s, tables);
        }
    }

    static constexpr int64_t kNarrow = int64_t{1} << 30;

    template <typename W, typename Key>
    static void plan_in(Search<Key> &s, SideTables &tables) {
        const int rows = tables.rows();
        const int32_t *const x_count = tables.x_count(), *const y_count = tables.y_count();
        const W x_unit = static_cast<W>(s.x_unit), y_unit = static_cast<W>(s.y_unit);
        W at[kLanes] = {}, high[kLanes] = {}, low[kLanes] = {};
        int32_t nx[kLanes] = {}, ny[kLanes] = {}, x_start[kLanes], y_start[kLanes];
        for (int row = 0; row < rows; ++row) {
            for (int k = 0; k < kLanes; ++k) {
                const int32_t cx = x_count[row * kLanes + k], cy = y_count[row * kLanes + k];
                nx[k] += cx;
                ny[k] += cy;
                at[k] += cx * x_unit - cy * y_unit;
                high[k] = at[k] > high[k] ? at[k] : high[k];
                low[k] = at[k] < low[k] ? at[k] : low[k];
            }
        }
        bound_sides(s, nx, ny, high, low, x_start, y_start);
        const SideTables::Marks marks = tables.mark();
        constexpr int64_t kMost = sizeof(W) > 4 ? kNever : INT32_MAX;
        const W up = static_cast<W>(s.up < kMost ? s.up : kMost),
                down = static_cast<W>(s.down < kMost ? s.down : kMost);
        for (int row = 0; row < rows; ++row) {
            uint8_t candidates[kLanes];
            for (int k = 0; k < kLanes; ++k) {
                const int32_t place = row * kLanes + k, cx = x_count[place], cy = y_count[place];
                const W here = x_start[k] * x_unit - y_start[k] * y_unit;
                const bool plus = (cx > 0) & (here + cx * x_unit >= up),
                           minus = (cy > 0) & (cy * y_unit - here >= down);
                candidates[k] = plus | minus;
                marks.x_before[place] = x_start[k];
                marks.y_before[place] = y_start[k];
                x_start[k] += cx;
                y_start[k] += cy;
            }
            marks.wanted[row] = pack_lanes(candidates);
        }
    }
};

constexpr int64_t kZoomFrom = 96;  // from this number of keys on, counting beats comparing all with all

// As in <algorithm>, which this may not use: see ks_kernels.h.
template <typename N>
N larger(N a, N b) {
    return a > b ? a : b;
}

template <typename N>
N smaller(N a, N b) {
    return a < b ? a : b;
}

inline int64_t size_of(int64_t difference) { return difference < 0 ? -difference : difference; }

// Counts in four tables by turns. Ranges that get here often have many keys in one bucket, and increments of one
// counter have to wait for each other.
template <typename Key>
void count_keys(const Key *keys, int64_t n, Key low, int shift, int64_t buckets, int32_t *count, ZoomTables &tables) {
    constexpr int kTables = 4;
    for (auto &table : tables) std::memset(table, 0, static_cast<size_t>(buckets) * sizeof *table);
    int64_t i = 0;
    for (; i + kTables <= n; i += kTables) {
        for (int k = 0; k < kTables; ++k) ++tables[k][(keys[i + k] - low) >> shift];
    }
    for (; i < n; ++i) ++tables[0][(keys[i] - low) >> shift];
    for (int64_t b = 0; b < buckets; ++b) count[b] = tables[0][b] + tables[1][b] + tables[2][b] + tables[3][b];
}

// Copies the keys of the wanted buckets to where those buckets begin.
template <typename Key>
void gather_wanted(const Key *from, int64_t n, Key low, int shift, int64_t *begin, Key *to) {
    for (int64_t i = 0; i < n; ++i) {
        int64_t &at = begin[(from[i] - low) >> shift];
        if (at >= 0) to[at++] = from[i];
    }
}

// AdamW on a span of a row. The operations and their rounding are the same on every instruction set.
template <typename C>
void adamw_span(const AdamWCoefficients<C> &c, int64_t n, const C *__restrict grad, C *__restrict param,
                C *__restrict exp_avg, C *__restrict exp_avg_sq) {
    // torch.lerp computes from the nearer end, so that weight 1 gives the end itself.
    const bool from_start = c.one_minus_beta1 < C(0.5);
    const C weight = from_start ? c.one_minus_beta1 : 1 - c.one_minus_beta1;
    for (int64_t i = 0; i < n; ++i) {
        const C step = weight * (grad[i] - exp_avg[i]);
        exp_avg[i] = from_start ? exp_avg[i] + step : grad[i] - step;
        exp_avg_sq[i] = exp_avg_sq[i] * c.beta2 + c.one_minus_beta2 * grad[i] * grad[i];
        const C denominator = square_root(exp_avg_sq[i]) / c.root_bias2 + c.eps;
        param[i] = param[i] * c.decay + c.minus_step_size * exp_avg[i] / denominator;
    }
}

// Whether all numbers of a span are finite. Numbers that are not have all bits of an infinity's exponent. There is no
// early end, so that the compiler can make vector code of it.
template <typename T>
bool finite_span(const T *values, int64_t n) {
    constexpr bits_t<T> kExponent = BitsOf<T>::kInfinity;
    bits_t<T> found = 0;
    for (int64_t i = 0; i < n; ++i) found |= static_cast<bits_t<T>>((bits_of(values[i]) & kExponent) == kExponent);
    return found == 0;
}

}  // namespace
}  // namespace KSL_ISA
}  // namespace ksl
