// The kernels for x86 CPUs with AVX-512 F, BW, DQ and VL (Intel since 2017, AMD since 2022).
#include "../platform.h"
#if defined(KSL_X86_TARGETS)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "../ks_keys.h"
#include "ks_kernels.h"

// Only what comes after this line is compiled for AVX-512. The functions of the headers above are shared with code that
// must run anywhere.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,bmi,bmi2,popcnt"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,bmi,bmi2,popcnt")
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // false alarms inside GCC's own intrinsics (its bug 105593)
#endif
#define KSL_ISA avx512
#include "ks_loops.h"

namespace ksl {
namespace KSL_ISA {
namespace {

// location_of for 32 buckets.
struct Locations {
    __m512i row_mask;
    __m128i lane_bits;

    explicit Locations(int bits)
        : row_mask(_mm512_set1_epi16(static_cast<int16_t>(((1 << bits) - 1) * kLanes))),
          lane_bits(_mm_cvtsi32_si128(bits)) {}

    __m512i operator()(__m512i bucket) const {
        constexpr int kAndOr = 0xea;  // (a & b) | c
        return _mm512_ternarylogic_epi32(_mm512_slli_epi16(bucket, 4), row_mask, _mm512_srl_epi16(bucket, lane_bits),
                                         kAndOr);
    }
};

// The locators of ks_maps.h, by intrinsics.
struct FloatLocator {
    const __m512 low, scale, top, zero;
    const __m512i even;
    const Locations location;
    __m512 nan;

    explicit FloatLocator(const LinearMap<float> &map)
        : low(_mm512_set1_ps(map.low)),
          scale(_mm512_set1_ps(map.scale)),
          top(_mm512_set1_ps(map.top)),
          zero(_mm512_setzero_ps()),
          even(even_words()),
          location(map.lane_bits),
          nan(zero) {}

    static __m512i even_words() {
        alignas(64) uint16_t words[32];
        for (int k = 0; k < 32; ++k) words[k] = static_cast<uint16_t>(2 * k);
        return _mm512_load_si512(words);
    }

    __m512i buckets(__m512 v) {
        nan = _mm512_fmadd_ps(v, zero, nan);
        const __m512 t = _mm512_mul_ps(_mm512_sub_ps(v, low), scale);
        return _mm512_cvttps_epi32(_mm512_min_ps(_mm512_max_ps(t, zero), top));
    }

    __attribute__((always_inline)) void block(const float *values, uint16_t *to) {
        const __m512i first = buckets(_mm512_loadu_ps(values)), second = buckets(_mm512_loadu_ps(values + 16));
        _mm512_storeu_si512(to, location(_mm512_permutex2var_epi16(first, even, second)));
    }

    bool finite() const { return _mm512_cmp_ps_mask(nan, nan, _CMP_UNORD_Q) == 0; }
};

// For float64 and int64.
struct DoubleLocator {
    const __m512d low, scale, top, zero;
    const Locations location;
    __m512d nan;

    explicit DoubleLocator(const LinearMap<double> &map)
        : low(_mm512_set1_pd(map.low)),
          scale(_mm512_set1_pd(map.scale)),
          top(_mm512_set1_pd(map.top)),
          zero(_mm512_setzero_pd()),
          location(map.lane_bits),
          nan(zero) {}

    static __m512d load(const double *values) { return _mm512_loadu_pd(values); }
    static __m512d load(const int64_t *values) { return _mm512_cvtepi64_pd(_mm512_loadu_si512(values)); }

    __m256i buckets(__m512d v) {
        nan = _mm512_fmadd_pd(v, zero, nan);
        const __m512d t = _mm512_mul_pd(_mm512_sub_pd(v, low), scale);
        return _mm512_cvttpd_epi32(_mm512_min_pd(_mm512_max_pd(t, zero), top));
    }

    template <typename V>
    __m256i sixteen(const V *values) {
        const __m256i first = buckets(load(values)), second = buckets(load(values + 8));
        return _mm512_cvtepi32_epi16(_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1));
    }

    template <typename V>
    __attribute__((always_inline)) void block(const V *values, uint16_t *to) {
        const __m256i first = sixteen(values), second = sixteen(values + 16);
        _mm512_storeu_si512(to, location(_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1)));
    }

    bool finite() const { return _mm512_cmp_pd_mask(nan, nan, _CMP_UNORD_Q) == 0; }
};

template <typename T>
struct HalfLocator {
    const __m512i magnitude_bits, base, limit;
    const __m128i shift;
    const Locations location;
    __m512i largest;

    explicit HalfLocator(const BitMap<T> &map)
        : magnitude_bits(_mm512_set1_epi16(0x7fff)),
          base(_mm512_set1_epi16(static_cast<int16_t>(map.base))),
          limit(_mm512_set1_epi16(static_cast<int16_t>(map.limit))),
          shift(_mm_cvtsi32_si128(map.shift)),
          location(map.lane_bits),
          largest(_mm512_setzero_si512()) {}

    __attribute__((always_inline)) void block(const T *values, uint16_t *to) {
        const __m512i bits = _mm512_loadu_si512(values);
        const __m512i magnitude = _mm512_and_si512(bits, magnitude_bits);
        largest = _mm512_max_epu16(largest, magnitude);
        const __m512i steps = _mm512_srl_epi16(_mm512_subs_epu16(magnitude, base), shift);
        const __m512i size = _mm512_min_epu16(steps, limit);
        const __m512i bucket =
            _mm512_mask_sub_epi16(_mm512_add_epi16(limit, size), _mm512_movepi16_mask(bits), limit, size);
        _mm512_storeu_si512(to, location(bucket));
    }

    bool finite() const {
        return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(static_cast<int16_t>(BitsOf<T>::kInfinity))) == 0;
    }
};

struct Loops : GenericLoops {
    static FloatLocator locator(const LinearMap<float> &map, const float *) { return FloatLocator(map); }
    static DoubleLocator locator(const LinearMap<double> &map, const void *) { return DoubleLocator(map); }

    template <typename T>
    static HalfLocator<T> locator(const BitMap<T> &map, const T *) {
        return HalfLocator<T>(map);
    }

    template <bool kInside>
    static Bounds scan(const int32_t *x_count, const int32_t *y_count, int rows) {
        const __m512i zero = _mm512_setzero_si512();
        __m512i at = zero, high = zero, low = zero, up = zero, down = zero;
        for (int i = 0; i < rows * kLanes; i += kLanes) {
            const __m512i cx = _mm512_load_si512(x_count + i), cy = _mm512_load_si512(y_count + i);
            const __m512i most = _mm512_add_epi32(at, cx);
            if constexpr (kInside) {
                up = _mm512_max_epi32(up, most);
                down = _mm512_min_epi32(down, _mm512_sub_epi32(at, cy));
            }
            at = _mm512_sub_epi32(most, cy);
            high = _mm512_max_epi32(high, at);
            low = _mm512_min_epi32(low, at);
        }
        int32_t lanes[5][kLanes];
        _mm512_storeu_si512(lanes[0], at);
        _mm512_storeu_si512(lanes[1], high);
        _mm512_storeu_si512(lanes[2], low);
        _mm512_storeu_si512(lanes[3], up);
        _mm512_storeu_si512(lanes[4], down);
        return across_lanes(lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]);
    }

    static void mark_wanted(RowTables &tables, const Bounds &bounds, int32_t best) {
        const RowTables::Marks marks = tables.mark();
        const int rows = tables.rows();
        const __m512i limit = _mm512_set1_epi32(best);
        __m512i at = _mm512_loadu_si512(bounds.lane_start);
        for (int s = 0; s < rows; ++s) {
            const __m512i cx = _mm512_load_si512(tables.x_count() + s * kLanes),
                          cy = _mm512_load_si512(tables.y_count() + s * kLanes);
            _mm512_store_si512(marks.before + s * kLanes, at);
            const __m512i up = _mm512_add_epi32(at, cx), down = _mm512_sub_epi32(cy, at);
            marks.wanted[s] = _mm512_cmpgt_epi32_mask(_mm512_max_epi32(up, down), limit);
            at = _mm512_sub_epi32(up, cy);
        }
    }

    // The whole bit map of wanted buckets is in registers, where a permutation looks up 32 of them at once.
    static int64_t find_wanted(const uint16_t *locations, int64_t n, const uint16_t *wanted, BucketRange /*range*/,
                               int /*lane_bits*/, int32_t *positions, int fold = 0) {
        static_assert(kMaxBucketBits == 11, "four registers hold 2^11 bits");
        const __m512i w0 = _mm512_load_si512(wanted), w1 = _mm512_load_si512(wanted + 32);
        const __m512i w2 = _mm512_load_si512(wanted + 64), w3 = _mm512_load_si512(wanted + 96);
        const __m512i one = _mm512_set1_epi16(1), fifteen = _mm512_set1_epi16(15), upper = _mm512_set1_epi16(64);
        const __m512i sixteen = _mm512_set1_epi32(16);
        const __m128i to_word = _mm_cvtsi32_si128(4 + fold);
        __m512i position = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        int64_t count = 0;
        const auto append = [&](uint32_t mask) {
            _mm512_storeu_si512(positions + count, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), position));
            count += _mm_popcnt_u32(mask & 0xffff);
            position = _mm512_add_epi32(position, sixteen);
        };
        for (int64_t i = 0; i < n; i += 32) {
            const __m512i location = _mm512_loadu_si512(locations + i);
            const __m512i word = _mm512_srl_epi16(location, to_word);
            const __m512i bits =
                _mm512_mask_blend_epi16(_mm512_test_epi16_mask(word, upper), _mm512_permutex2var_epi16(w0, word, w1),
                                        _mm512_permutex2var_epi16(w2, word, w3));
            uint32_t mask = _mm512_test_epi16_mask(bits, _mm512_sllv_epi16(one, _mm512_and_si512(location, fifteen)));
            if (n - i < 32) mask &= (uint32_t{1} << (n - i)) - 1;
            append(mask);
            append(mask >> 16);
        }
        return count;
    }

    static void rank(const uint32_t *keys, int32_t nx, int32_t ny, const uint32_t *candidates, int32_t *of_x,
                     int32_t *of_y) {
        const __m512i candidate = _mm512_loadu_si512(candidates), one = _mm512_set1_epi32(1);
        const auto count = [&](const uint32_t *from, int32_t n) {
            __m512i below = _mm512_setzero_si512();
            for (int32_t j = 0; j < n; ++j) {
                const __m512i key = _mm512_set1_epi32(static_cast<int32_t>(from[j]));
                below = _mm512_mask_add_epi32(below, _mm512_cmple_epu32_mask(key, candidate), below, one);
            }
            return below;
        };
        _mm512_storeu_si512(of_x, count(keys, nx));
        _mm512_storeu_si512(of_y, count(keys + nx, ny));
    }

    static void rank(const uint64_t *keys, int32_t nx, int32_t ny, const uint64_t *candidates, int32_t *of_x,
                     int32_t *of_y) {
        const __m512i first = _mm512_loadu_si512(candidates), second = _mm512_loadu_si512(candidates + 8);
        const __m512i one = _mm512_set1_epi32(1);
        const auto count = [&](const uint64_t *from, int32_t n) {
            __m512i below = _mm512_setzero_si512();
            for (int32_t j = 0; j < n; ++j) {
                const __m512i key = _mm512_set1_epi64(static_cast<int64_t>(from[j]));
                const __mmask16 mask =
                    _mm512_kunpackb(_mm512_cmple_epu64_mask(key, second), _mm512_cmple_epu64_mask(key, first));
                below = _mm512_mask_add_epi32(below, mask, below, one);
            }
            return below;
        };
        _mm512_storeu_si512(of_x, count(keys, nx));
        _mm512_storeu_si512(of_y, count(keys + nx, ny));
    }

    template <typename Key>
    static void plan(Search<Key> &s, SideTables &tables) {
        if (s.n * s.x_unit >= kNarrow) {
            GenericLoops::plan(s, tables);
            return;
        }
        const int rows = tables.rows();
        const __m512i x_unit = _mm512_set1_epi32(static_cast<int32_t>(s.x_unit));
        const __m512i y_unit = _mm512_set1_epi32(static_cast<int32_t>(s.y_unit)), zero = _mm512_setzero_si512();
        __m512i x = zero, y = zero, high = zero, low = zero;
        const auto difference = [&](__m512i i, __m512i j) {
            return _mm512_sub_epi32(_mm512_mullo_epi32(i, x_unit), _mm512_mullo_epi32(j, y_unit));
        };
        for (int at = 0; at < rows * kLanes; at += kLanes) {
            x = _mm512_add_epi32(x, _mm512_load_si512(tables.x_count() + at));
            y = _mm512_add_epi32(y, _mm512_load_si512(tables.y_count() + at));
            const __m512i here = difference(x, y);
            high = _mm512_max_epi32(high, here);
            low = _mm512_min_epi32(low, here);
        }
        int32_t nx[kLanes], ny[kLanes], highest[kLanes], lowest[kLanes], x_start[kLanes], y_start[kLanes];
        _mm512_storeu_si512(nx, x);
        _mm512_storeu_si512(ny, y);
        _mm512_storeu_si512(highest, high);
        _mm512_storeu_si512(lowest, low);
        bound_sides(s, nx, ny, highest, lowest, x_start, y_start);
        const SideTables::Marks marks = tables.mark();
        const auto limit = [](int64_t bound) { return static_cast<int32_t>(bound < INT32_MAX ? bound : INT32_MAX); };
        const __m512i up = _mm512_set1_epi32(limit(s.up)), down = _mm512_set1_epi32(limit(s.down));
        x = _mm512_loadu_si512(x_start);
        y = _mm512_loadu_si512(y_start);
        for (int row = 0; row < rows; ++row) {
            const int at = row * kLanes;
            const __m512i cx = _mm512_load_si512(tables.x_count() + at), cy = _mm512_load_si512(tables.y_count() + at);
            _mm512_store_si512(marks.x_before + at, x);
            _mm512_store_si512(marks.y_before + at, y);
            const __m512i x_next = _mm512_add_epi32(x, cx), y_next = _mm512_add_epi32(y, cy);
            const __mmask16 plus =
                _mm512_mask_cmpge_epi32_mask(_mm512_test_epi32_mask(cx, cx), difference(x_next, y), up);
            const __mmask16 minus = _mm512_mask_cmpge_epi32_mask(_mm512_test_epi32_mask(cy, cy),
                                                                 _mm512_sub_epi32(zero, difference(x, y_next)), down);
            marks.wanted[row] = static_cast<uint16_t>(plus | minus);
            x = x_next;
            y = y_next;
        }
    }

    using GenericLoops::search;

    static int32_t search(const uint32_t *keys, int32_t nx, int32_t ny, int32_t before) {
        const __m512i one = _mm512_set1_epi32(1);
        __m512i largest = _mm512_setzero_si512();
        for (int32_t begin = 0; begin < nx + ny; begin += kLanes) {
            const __m512i candidates = _mm512_loadu_si512(keys + begin);
            __m512i at = _mm512_set1_epi32(before);
            for (int32_t j = 0; j < nx; ++j) {
                const __mmask16 below =
                    _mm512_cmple_epu32_mask(_mm512_set1_epi32(static_cast<int32_t>(keys[j])), candidates);
                at = _mm512_mask_add_epi32(at, below, at, one);
            }
            for (int32_t j = nx; j < nx + ny; ++j) {
                const __mmask16 below =
                    _mm512_cmple_epu32_mask(_mm512_set1_epi32(static_cast<int32_t>(keys[j])), candidates);
                at = _mm512_mask_sub_epi32(at, below, at, one);
            }
            const int32_t lanes = nx + ny - begin < kLanes ? nx + ny - begin : kLanes;
            const __mmask16 valid = static_cast<__mmask16>((1u << lanes) - 1);
            largest = _mm512_mask_max_epi32(largest, valid, largest, _mm512_abs_epi32(at));
        }
        return _mm512_reduce_max_epi32(largest);
    }
};

}  // namespace
}  // namespace KSL_ISA
}  // namespace ksl

#include "ks_engine.h"

namespace ksl {
constexpr Kernels kAvx512Kernels = avx512::kernels("avx512");
}  // namespace ksl

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
