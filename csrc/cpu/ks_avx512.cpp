// The kernels for x86 CPUs with AVX-512 F, BW, DQ and VL (Intel since 2017, AMD since 2022).
#if defined(__x86_64__)
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

struct Loops : GenericLoops {
    using GenericLoops::locate;

    // Like the generic one, but with 32 values at a time.
    static bool locate(const LinearMap<float> &map, const float *values, int64_t n, uint16_t *locations) {
        const __m512 low = _mm512_set1_ps(map.low), scale = _mm512_set1_ps(map.scale), top = _mm512_set1_ps(map.top);
        const __m512 zero = _mm512_setzero_ps();
        const Locations location(map.lane_bits);
        alignas(64) uint16_t even_words[32];
        for (int k = 0; k < 32; ++k) even_words[k] = static_cast<uint16_t>(2 * k);
        const __m512i even = _mm512_load_si512(even_words);
        __m512 nan = zero;
        const auto buckets = [&](__m512 v) {
            nan = _mm512_fmadd_ps(v, zero, nan);
            const __m512 t = _mm512_mul_ps(_mm512_sub_ps(v, low), scale);
            return _mm512_cvttps_epi32(_mm512_min_ps(_mm512_max_ps(t, zero), top));
        };
        const auto store = [&](__m512 first, __m512 second, uint16_t *to) {
            const __m512i bucket = _mm512_permutex2var_epi16(buckets(first), even, buckets(second));
            _mm512_storeu_si512(to, location(bucket));
        };
        int64_t i = 0;
        for (; i + 32 <= n; i += 32) {
            store(_mm512_loadu_ps(values + i), _mm512_loadu_ps(values + i + 16), locations + i);
        }
        if (i < n) {
            const uint32_t rest = (uint32_t{1} << (n - i)) - 1;
            store(_mm512_maskz_loadu_ps(static_cast<__mmask16>(rest), values + i),
                  _mm512_maskz_loadu_ps(static_cast<__mmask16>(rest >> 16), values + i + 16), locations + i);
        }
        return _mm512_cmp_ps_mask(nan, nan, _CMP_UNORD_Q) == 0;
    }

    template <typename T>
    static bool locate(const BitMap<T> &map, const T *values, int64_t n, uint16_t *locations) {
        const __m512i magnitude_bits = _mm512_set1_epi16(0x7fff);
        const __m512i base = _mm512_set1_epi16(static_cast<int16_t>(map.base));
        const __m512i limit = _mm512_set1_epi16(static_cast<int16_t>(map.limit));
        const __m128i shift = _mm_cvtsi32_si128(map.shift);
        const Locations location(map.lane_bits);
        __m512i largest = _mm512_setzero_si512();
        const auto store = [&](__m512i bits, uint16_t *to) {
            const __m512i magnitude = _mm512_and_si512(bits, magnitude_bits);
            largest = _mm512_max_epu16(largest, magnitude);
            const __m512i steps = _mm512_srl_epi16(_mm512_subs_epu16(magnitude, base), shift);
            const __m512i size = _mm512_min_epu16(steps, limit);
            const __m512i bucket =
                _mm512_mask_sub_epi16(_mm512_add_epi16(limit, size), _mm512_movepi16_mask(bits), limit, size);
            _mm512_storeu_si512(to, location(bucket));
        };
        int64_t i = 0;
        for (; i + 32 <= n; i += 32) store(_mm512_loadu_si512(values + i), locations + i);
        if (i < n) {
            const uint32_t rest = (uint32_t{1} << (n - i)) - 1;
            store(_mm512_maskz_loadu_epi16(rest, values + i), locations + i);
        }
        return _mm512_cmpge_epu16_mask(largest, _mm512_set1_epi16(static_cast<int16_t>(BitsOf<T>::kInfinity))) == 0;
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

    static void mark_wanted(Workspace &w, int rows, const Bounds &bounds, int32_t best) {
        const __m512i limit = _mm512_set1_epi32(best);
        __m512i at = _mm512_loadu_si512(bounds.lane_start);
        for (int s = 0; s < rows; ++s) {
            const __m512i cx = _mm512_load_si512(w.x_count + s * kLanes),
                          cy = _mm512_load_si512(w.y_count + s * kLanes);
            _mm512_store_si512(w.before + s * kLanes, at);
            const __m512i up = _mm512_add_epi32(at, cx), down = _mm512_sub_epi32(cy, at);
            w.wanted[s] = _mm512_cmpgt_epi32_mask(_mm512_max_epi32(up, down), limit);
            at = _mm512_sub_epi32(up, cy);
        }
    }

    // The whole bit map of wanted buckets is in registers, where a permutation looks up 32 of them at once.
    static int64_t find_wanted(const uint16_t *locations, int64_t n, const uint16_t *wanted, int32_t *positions) {
        static_assert(kMaxBucketBits == 11, "four registers hold 2^11 bits");
        const __m512i w0 = _mm512_load_si512(wanted), w1 = _mm512_load_si512(wanted + 32);
        const __m512i w2 = _mm512_load_si512(wanted + 64), w3 = _mm512_load_si512(wanted + 96);
        const __m512i one = _mm512_set1_epi16(1), fifteen = _mm512_set1_epi16(15), upper = _mm512_set1_epi16(64);
        const __m512i sixteen = _mm512_set1_epi32(16);
        __m512i position = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        int64_t count = 0;
        const auto append = [&](uint32_t mask) {
            _mm512_storeu_si512(positions + count, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), position));
            count += __builtin_popcount(mask & 0xffff);
            position = _mm512_add_epi32(position, sixteen);
        };
        for (int64_t i = 0; i < n; i += 32) {
            const __m512i location = _mm512_loadu_si512(locations + i);
            const __m512i word = _mm512_srli_epi16(location, 4);
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
