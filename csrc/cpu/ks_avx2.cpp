// The kernels for x86 CPUs with AVX2 (Intel since 2013, AMD since 2015).
#include "../platform.h"
#if defined(KSL_X86_TARGETS)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "../ks_keys.h"
#include "ks_kernels.h"

// Only what comes after this line is compiled for AVX2. The functions of the headers above are shared with code that
// must run anywhere.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,bmi,bmi2,popcnt")
#endif
#define KSL_ISA avx2
#include "ks_loops.h"

namespace ksl {
namespace KSL_ISA {
namespace {

// location_of for 16 buckets.
struct Locations {
    __m256i row_mask;
    __m128i lane_bits;

    explicit Locations(int bits)
        : row_mask(_mm256_set1_epi16(static_cast<int16_t>(((1 << bits) - 1) * kLanes))),
          lane_bits(_mm_cvtsi32_si128(bits)) {}

    __m256i operator()(__m256i bucket) const {
        const __m256i row = _mm256_and_si256(_mm256_slli_epi16(bucket, 4), row_mask);
        return _mm256_or_si256(row, _mm256_srl_epi16(bucket, lane_bits));
    }
};

inline void store_sixteen(uint16_t *to, __m256i words) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), words); }

// The locators of ks_maps.h, by intrinsics.
struct FloatLocator {
    const __m256 low, scale, top, zero;
    const Locations location;
    __m256 nan;

    explicit FloatLocator(const LinearMap<float> &map)
        : low(_mm256_set1_ps(map.low)),
          scale(_mm256_set1_ps(map.scale)),
          top(_mm256_set1_ps(map.top)),
          zero(_mm256_setzero_ps()),
          location(map.lane_bits),
          nan(zero) {}

    __m256i buckets(const float *values) {
        const __m256 v = _mm256_loadu_ps(values);
        nan = _mm256_fmadd_ps(v, zero, nan);
        const __m256 t = _mm256_mul_ps(_mm256_sub_ps(v, low), scale);
        return _mm256_cvttps_epi32(_mm256_min_ps(_mm256_max_ps(t, zero), top));
    }

    __attribute__((always_inline)) void block(const float *values, uint16_t *to) {
        for (int k = 0; k < kBlock; k += 16) {
            const __m256i packed = _mm256_packus_epi32(buckets(values + k), buckets(values + k + 8));
            store_sixteen(to + k, location(_mm256_permute4x64_epi64(packed, 0xd8)));
        }
    }

    bool finite() const { return _mm256_movemask_ps(_mm256_cmp_ps(nan, nan, _CMP_UNORD_Q)) == 0; }
};

struct DoubleLocator {
    const __m256d low, scale, top, zero;
    const Locations location;
    __m256d nan;

    explicit DoubleLocator(const LinearMap<double> &map)
        : low(_mm256_set1_pd(map.low)),
          scale(_mm256_set1_pd(map.scale)),
          top(_mm256_set1_pd(map.top)),
          zero(_mm256_setzero_pd()),
          location(map.lane_bits),
          nan(zero) {}

    __m128i buckets(const double *values) {
        const __m256d v = _mm256_loadu_pd(values);
        nan = _mm256_fmadd_pd(v, zero, nan);
        const __m256d t = _mm256_mul_pd(_mm256_sub_pd(v, low), scale);
        return _mm256_cvttpd_epi32(_mm256_min_pd(_mm256_max_pd(t, zero), top));
    }

    __attribute__((always_inline)) void block(const double *values, uint16_t *to) {
        for (int k = 0; k < kBlock; k += 16) {
            const __m128i first = _mm_packus_epi32(buckets(values + k), buckets(values + k + 4));
            const __m128i second = _mm_packus_epi32(buckets(values + k + 8), buckets(values + k + 12));
            store_sixteen(to + k, location(_mm256_set_m128i(second, first)));
        }
    }

    bool finite() const { return _mm256_movemask_pd(_mm256_cmp_pd(nan, nan, _CMP_UNORD_Q)) == 0; }
};

template <typename T>
struct HalfLocator {
    const __m256i magnitude_bits, base, limit;
    const __m128i shift;
    const Locations location;
    __m256i largest;

    explicit HalfLocator(const BitMap<T> &map)
        : magnitude_bits(_mm256_set1_epi16(0x7fff)),
          base(_mm256_set1_epi16(static_cast<int16_t>(map.base))),
          limit(_mm256_set1_epi16(static_cast<int16_t>(map.limit))),
          shift(_mm_cvtsi32_si128(map.shift)),
          location(map.lane_bits),
          largest(_mm256_setzero_si256()) {}

    __attribute__((always_inline)) void block(const T *values, uint16_t *to) {
        for (int k = 0; k < kBlock; k += 16) {
            const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(values + k));
            const __m256i magnitude = _mm256_and_si256(bits, magnitude_bits);
            largest = _mm256_max_epu16(largest, magnitude);
            const __m256i steps = _mm256_srl_epi16(_mm256_subs_epu16(magnitude, base), shift);
            const __m256i size = _mm256_min_epu16(steps, limit);
            const __m256i negative = _mm256_srai_epi16(bits, 15);  // all ones, so that ^ and - negate
            const __m256i signed_size = _mm256_sub_epi16(_mm256_xor_si256(size, negative), negative);
            store_sixteen(to + k, location(_mm256_add_epi16(limit, signed_size)));
        }
    }

    // All magnitudes are below 2^15, so that signed numbers compare them.
    bool finite() const {
        const __m256i last = _mm256_set1_epi16(static_cast<int16_t>(BitsOf<T>::kInfinity - 1));
        return _mm256_movemask_epi8(_mm256_cmpgt_epi16(largest, last)) == 0;
    }
};

struct Loops : GenericLoops {
    using GenericLoops::locator;  // of int64

    static FloatLocator locator(const LinearMap<float> &map, const float *) { return FloatLocator(map); }
    static DoubleLocator locator(const LinearMap<double> &map, const double *) { return DoubleLocator(map); }

    template <typename T>
    static HalfLocator<T> locator(const BitMap<T> &map, const T *) {
        return HalfLocator<T>(map);
    }

    static __m256i load(const void *from) { return _mm256_load_si256(static_cast<const __m256i *>(from)); }

    // A bit for each of 8 lanes of 32 bits that are all ones.
    static uint32_t bits_of_lanes(__m256i lanes) {
        return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(lanes)));
    }

    static void mark_wanted(RowTables &tables, const Bounds &bounds, int32_t best) {
        const RowTables::Marks marks = tables.mark();
        const int rows = tables.rows();
        constexpr int kHalves = 2, kWide = 8;
        const __m256i limit = _mm256_set1_epi32(best);
        __m256i at[kHalves];
        for (int half = 0; half < kHalves; ++half) {
            at[half] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(bounds.lane_start + half * kWide));
        }
        for (int s = 0; s < rows; ++s) {
            uint32_t bits = 0;
            for (int half = 0; half < kHalves; ++half) {
                const int place = s * kLanes + half * kWide;
                const __m256i cx = load(tables.x_count() + place), cy = load(tables.y_count() + place);
                const __m256i most = _mm256_add_epi32(at[half], cx), least = _mm256_sub_epi32(cy, at[half]);
                const __m256i far = _mm256_or_si256(_mm256_cmpgt_epi32(most, limit), _mm256_cmpgt_epi32(least, limit));
                _mm256_store_si256(reinterpret_cast<__m256i *>(marks.before + place), at[half]);
                bits |= bits_of_lanes(far) << (half * kWide);
                at[half] = _mm256_sub_epi32(most, cy);
            }
            marks.wanted[s] = static_cast<uint16_t>(bits);
        }
    }

    // Few values are in the range of the wanted buckets, and the bit map is looked at for those alone. In a wide range
    // there may be many, and then the plain loop, which has no branches to predict, takes less time.
    static int64_t find_wanted(const uint16_t *locations, int64_t n, const uint16_t *wanted, BucketRange range,
                               int lane_bits, int32_t *positions, int fold = 0) {
        constexpr int kNarrow = 8;
        if (range.first > range.last) return 0;
        if ((range.last - range.first) * kNarrow >= kLanes << lane_bits) {
            return GenericLoops::find_wanted(locations, n, wanted, range, lane_bits, positions, fold);
        }
        const __m256i first = _mm256_set1_epi16(static_cast<int16_t>(range.first));
        const __m256i span = _mm256_set1_epi16(static_cast<int16_t>(range.last - range.first));
        const __m256i fifteen = _mm256_set1_epi16(kLanes - 1);
        const __m128i lane_shift = _mm_cvtsi32_si128(lane_bits);
        const auto inside = [&](const uint16_t *from) {
            const __m256i location = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from));
            const __m256i lane = _mm256_sll_epi16(_mm256_and_si256(location, fifteen), lane_shift);
            const __m256i bucket = _mm256_or_si256(lane, _mm256_srli_epi16(location, 4));
            const __m256i beyond = _mm256_sub_epi16(bucket, first);
            return _mm256_cmpeq_epi16(_mm256_min_epu16(beyond, span), beyond);
        };
        int64_t count = 0;
        for (int64_t i = 0; i < n; i += 32) {
            const __m256i packed = _mm256_packs_epi16(inside(locations + i), inside(locations + i + 16));
            const __m256i in_order = _mm256_permute4x64_epi64(packed, 0xd8);
            uint32_t mask = static_cast<uint32_t>(_mm256_movemask_epi8(in_order));
            if (n - i < 32) mask &= (uint32_t{1} << (n - i)) - 1;
            for (; mask != 0; mask &= mask - 1) {
                const int64_t at = i + lowest_bit(mask);
                positions[count] = static_cast<int32_t>(at);
                count += wanted[locations[at] / kLanes >> fold] >> locations[at] % kLanes & 1;
            }
        }
        return count;
    }
};

}  // namespace
}  // namespace KSL_ISA
}  // namespace ksl

#include "ks_engine.h"

namespace ksl {
constexpr Kernels kAvx2Kernels = avx2::kernels("avx2");
}  // namespace ksl

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
