// What a block keeps of a row in shared memory: the counts of its values in buckets (Counts), and the keys of small
// buckets, which it gathers and searches (SmallBuckets). Sums and maxima over the threads of a block are here too.
//
// Thread t owns the buckets [t * kOwn, (t + 1) * kOwn). Functions marked "block" are called by all threads of the
// block. They return the same to all of them unless stated otherwise.
#pragma once

#include <algorithm>

#include "ks_input.cuh"
#include "ks_maps.cuh"

namespace ksl {
namespace cuda {

// The sum over the threads before this one, in their order. It takes one barrier. All threads call it. The storage is
// shared memory. Between two uses of it there must be a __syncthreads().
template <int kThreads>
struct BlockSum {
    static constexpr int kWarps = kThreads / kWarp;
    static_assert(kThreads % kWarp == 0 && kWarps <= kWarp, "whole warps, and one lane for each of them");
    struct Storage {
        int sums[kWarps];
    };

    static __device__ int before(Storage &storage, int number) {
        const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
        const int through = warp_sum_through(number, lane);
        if (lane == kWarp - 1) storage.sums[warp] = through;
        __syncthreads();
        const int of_warps = warp_sum_through(lane < warp ? storage.sums[lane] : 0, lane);
        return __shfl_sync(kFullWarp, of_warps, kWarp - 1) + through - number;
    }

  private:
    // Of this lane and those before it.
    static __device__ int warp_sum_through(int number, unsigned lane) {
#pragma unroll
        for (unsigned step = 1; step < kWarp; step *= 2) {
            const int other = __shfl_up_sync(kFullWarp, number, step);
            if (lane >= step) number += other;
        }
        return number;
    }
};

// The maximum over the threads of a block of each of a few numbers, for all threads. It takes one barrier and two
// instructions for each number, while CUB's reduction is for any type and any operation. The storage is shared memory.
// Between two uses of it there must be a __syncthreads().
template <int kThreads, int kNumbers>
struct BlockMax {
    static constexpr int kWarps = kThreads / kWarp;
    static_assert(kThreads % kWarp == 0 && kWarps <= kWarp, "whole warps, and one lane for each of them");
    struct Storage {
        int numbers[kNumbers][kWarps];
    };

    static __device__ void reduce(Storage &storage, int (&numbers)[kNumbers]) {
        const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
        for (int k = 0; k < kNumbers; ++k) {
            numbers[k] = __reduce_max_sync(kFullWarp, numbers[k]);
            if (lane == 0) storage.numbers[k][warp] = numbers[k];
        }
        __syncthreads();
        for (int k = 0; k < kNumbers; ++k) {
            numbers[k] = __reduce_max_sync(kFullWarp, storage.numbers[k][lane % kWarps]);
        }
    }
};

// With 2,048 buckets every bfloat16 of 8 octaves has one to itself.
template <typename T, int kThreads>
constexpr int kBucketsOf = std::min(2048, kThreads * (sizeof(T) == 2 ? 16 : 8));

// f(sample, bucket, bits) for the values of this thread's pairs that differ and that the map contains, where sample is
// OfX or OfY. A map in shared memory is read anew by each pass, so that it takes no registers from one to the next.
struct OfX {};
struct OfY {};
template <typename Map, typename Pairs, typename F>
__device__ void each_place(const Map &shared_map, Pairs &pairs, F &&f) {
    using Bits = typename Pairs::Bits;
    const Map map = shared_map;
    if constexpr (Map::kTwoAtOnce && Pairs::kTwoAWord) {
        pairs.each_word([&](uint32_t x, uint32_t y) {
            const uint32_t x_at = map.two_buckets(x), y_at = map.two_buckets(y), different = x ^ y;
#pragma unroll
            for (int half = 0; half < 32; half += 16) {
                if ((different >> half & 0xffffu) == 0) continue;
                f(OfX{}, static_cast<int>(x_at >> half & 0xffffu), static_cast<Bits>(x >> half));
                f(OfY{}, static_cast<int>(y_at >> half & 0xffffu), static_cast<Bits>(y >> half));
            }
        });
    } else {
        pairs.each([&](Bits x, Bits y) {
            if (map.contains(x)) f(OfX{}, map.bucket(x), x);
            if (map.contains(y)) f(OfY{}, map.bucket(y), y);
        });
    }
}

// The counts of both samples in each bucket, in shared memory. kWide is for counts of more than 65,535 values: each
// sample then has a table of its own. Otherwise the lower half of a word counts x and the upper half y.
//
// Block: clear(), a barrier, add() as often as wanted, a barrier. From there on the counts may be read until the next
// clear(), before which there must be a barrier too.
template <typename T, int kThreads, bool kWide>
struct Counts {
    static constexpr int kBuckets = kBucketsOf<T, kThreads>, kOwn = kBuckets / kThreads, kTables = kWide ? 2 : 1;
    static constexpr int kVectors = kOwn / 4;  // of 16 bytes, for each thread
    static_assert(kOwn % 4 == 0 && 8 % kVectors == 0, "whole vectors, of which eight lanes read one each");

    alignas(16) uint32_t words[kTables][kBuckets];

    __device__ void clear() {
        auto *vectors = reinterpret_cast<uint4 *>(words);
        for (int i = threadIdx.x; i < kTables * kBuckets / 4; i += kThreads) vectors[i] = {0, 0, 0, 0};
    }

    __device__ void add(OfX, int bucket) { atomicAdd(&words[0][bucket], 1u); }
    __device__ void add(OfY, int bucket) { atomicAdd(&words[kTables - 1][bucket], kWide ? 1u : 0x10000u); }

    __device__ int2 operator[](int bucket) const {
        return kWide ? int2{static_cast<int>(words[0][bucket]), static_cast<int>(words[kTables - 1][bucket])}
                     : int2{static_cast<int>(words[0][bucket] & 0xffffu), static_cast<int>(words[0][bucket] >> 16)};
    }

    // Sums of x minus y over the buckets of this thread: over all, and over those that each_own() comes to last.
    struct Sums {
        int all, last;
    };
    __device__ Sums sums() const {
        Sums sums{0, 0};
#pragma unroll 1
        for (int v = 0; v < kVectors; ++v) {
            const int vector = nth_vector(v);
            int sum = 0;
            each_of(vector, [&](int, int2 count) { sum += count.x - count.y; });
            sums.all += sum;
            if (vector < nth_vector(0)) sums.last += sum;
        }
        return sums;
    }

    // f(bucket, at, count) for the buckets of this thread: the difference where each starts, and its counts {of x, of
    // y}. `start` is the difference where the first of them starts, and `last` the sum of that name.
    template <typename F>
    __device__ void each_own(int start, int last, F &&f) const {
        int at = start + last;
#pragma unroll 1
        for (int v = 0; v < kVectors; ++v) {
            const int vector = nth_vector(v);
            if (vector == 0) at = start;
            each_of(vector, [&](int bucket, int2 count) {
                f(bucket, at, count);
                at += count.x - count.y;
            });
        }
    }

  private:
    // A thread reads its counts by vectors. Eight lanes are served together, and each should find four banks of its
    // own. So of a thread's two or four vectors, lanes that would meet in a bank begin with different ones. To move the
    // counts apart instead would cost two instructions for each value that is counted.
    static __device__ int nth_vector(int v) {
        constexpr int kLanesApart = 8 / kVectors;
        return (static_cast<int>(threadIdx.x) / kLanesApart + v) % kVectors;
    }

    template <typename F>
    __device__ void each_of(int vector, F &&f) const {
        const int first = static_cast<int>(threadIdx.x) * kOwn + 4 * vector;
        const uint4 low = KSL_WATCHED(reinterpret_cast<const uint4 *>(&words[0][first]));
        const uint32_t lows[4] = {low.x, low.y, low.z, low.w};
        uint32_t highs[4] = {};
        if constexpr (kWide) {
            const uint4 high = KSL_WATCHED(reinterpret_cast<const uint4 *>(&words[1][first]));
            highs[0] = high.x;
            highs[1] = high.y;
            highs[2] = high.z;
            highs[3] = high.w;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            f(first + i, kWide ? int2{static_cast<int>(lows[i]), static_cast<int>(highs[i])}
                               : int2{static_cast<int>(lows[i] & 0xffffu), static_cast<int>(lows[i] >> 16)});
        }
    }
};

// The keys of some buckets of at most kSmall keys, in shared memory, and the search among them. kInterval passes over
// values outside the first and the last of these buckets without looking whether theirs was taken.
//
// Block: reset() by one thread, a barrier, take() and mark() by each thread for its own buckets, a barrier, gather(),
// search(). Between a search and the next reset there must be a barrier.
template <typename T, int kThreads, bool kInterval>
struct SmallBuckets {
    using Key = key_t<T>;
    static constexpr int kBuckets = kBucketsOf<T, kThreads>, kOwn = kBuckets / kThreads;
    static constexpr int kKeys = sizeof(T) == 8 ? 512 : 1024;  // that are looked at together
    static constexpr int kParts = kKeys / 4;                   // in at most so many buckets
    static constexpr uint32_t kSmall = 128;
    using Mask = std::conditional_t<(kOwn > 8), uint16_t, uint8_t>;  // a bit for each of a thread's buckets

    // A bucket that was taken: nx keys of x and then ny of y, from `begin` on, and the difference before it.
    struct Part {
        int before;
        uint16_t begin, nx, ny;
    };

    alignas(16) uint32_t slots[kBuckets];  // where the next x (lower half) and the next y of a taken bucket go
    Mask taken[kThreads];                  // read for every value while slots are counted up, so apart from them
    Key keys[kKeys];
    Part parts[kParts];
    int used_keys, used_parts;
    int first, last;  // of the taken buckets

    __device__ void reset() {
        used_keys = used_parts = 0;
        first = kBuckets;
        last = 0;
    }

    // Gives slots to a bucket. Returns false if there is no room left.
    __device__ bool take(int bucket, int before, int2 count) {
        const int wanted = count.x + count.y, begin = atomicAdd(&used_keys, wanted);
        const int part = begin + wanted <= kKeys ? atomicAdd(&used_parts, 1) : kParts;
        if (part >= kParts) return false;
        parts[part] = {before, static_cast<uint16_t>(begin), static_cast<uint16_t>(count.x),
                       static_cast<uint16_t>(count.y)};
        slots[bucket] = static_cast<uint32_t>(begin + count.x) << 16 | static_cast<uint32_t>(begin);
        if constexpr (kInterval) {
            atomicMin(&first, bucket);
            atomicMax(&last, bucket);
        }
        return true;
    }

    // Which buckets of this thread have been taken.
    __device__ void mark(uint32_t mask) { taken[threadIdx.x] = static_cast<Mask>(mask); }

    __device__ int count() const { return min(used_parts, kParts); }

    // Copies the keys of the taken buckets to their places. Their order does not matter.
    template <typename Map, typename Pairs>
    __device__ void gather(const Map &map, Pairs &pairs) {
        const int begin = first;
        const auto width = static_cast<unsigned>(last - first);
        each_place(map, pairs, [&](auto sample, int bucket, auto bits) {
            if (kInterval && static_cast<unsigned>(bucket - begin) > width) return;
            if ((taken[bucket / kOwn] >> (bucket % kOwn) & 1) == 0) return;
            keys[next_slot(sample, bucket)] = ordered_key(bits);
        });
        __syncthreads();
    }

    // The largest difference at the keys of this thread. A warp takes a bucket and compares all keys with all, which
    // for few keys beats sorting.
    __device__ int search() const {
        int largest = 0;
        for (int p = threadIdx.x / kWarp; p < count(); p += kThreads / kWarp) {
            const Part part = parts[p];
            const Key *of_part = keys + part.begin;
            for (int i = threadIdx.x % kWarp; i < part.nx + part.ny; i += kWarp) {
                int at = part.before;
                for (int j = 0; j < part.nx; ++j) at += of_part[j] <= of_part[i];
                for (int j = part.nx; j < part.nx + part.ny; ++j) at -= of_part[j] <= of_part[i];
                largest = max(largest, abs(at));
            }
        }
        return largest;
    }

  private:
    __device__ uint32_t next_slot(OfX, int bucket) { return atomicAdd(&slots[bucket], 1u) & 0xffffu; }
    __device__ uint32_t next_slot(OfY, int bucket) { return atomicAdd(&slots[bucket], 0x10000u) >> 16; }
};

}  // namespace cuda
}  // namespace ksl
