// What a block does with the values of a row and with its buckets: count, scan, and look into small buckets.
//
// Thread t is responsible for the buckets [t * kOwn, (t + 1) * kOwn). Everything here is called by all threads of the
// block, and returns the same to all of them unless stated otherwise.
#pragma once

#include <algorithm>

#include "ks_input.cuh"
#include "ks_maps.cuh"

namespace ksl {
namespace cuda {

// How far the difference gets at the edges of buckets, and at most inside those that can hide more than that.
struct Bounds {
    int lower, upper;
};

// A small bucket whose keys have been gathered (nx of x and then ny of y, from `begin` on), and the difference before
// it.
struct Part {
    int before;
    uint16_t begin, nx, ny;
};

// A range of keys that is being zoomed into, the difference before it, and the first bucket not yet looked into.
template <typename Key>
struct Frame {
    Key low, high;
    int before, next;
};

// kWide is for counts of more than 65,535 values. Each sample then has a table of its own.
template <typename T, int kThreads_, bool kWide_>
struct Block {
    using Value = T;
    using Key = key_t<T>;
    static constexpr int kThreads = kThreads_;
    static constexpr bool kWide = kWide_;
    // With 2,048 buckets every bfloat16 of 8 octaves has one to itself.
    static constexpr int kBuckets = std::min(2048, kThreads * (sizeof(T) == 2 ? 16 : 8));
    static constexpr int kOwn = kBuckets / kThreads;
    static constexpr int kKeys = sizeof(T) == 8 ? 512 : 1024;  // keys that are looked at together
    static constexpr int kParts = kKeys / 4;                   // in at most so many buckets
    static constexpr uint32_t kSmall = 128;                    // keys, at most, of a bucket that is looked into at once
    static constexpr int kFrames = 8;                          // levels of a zoom: 64-bit keys, 9 bits a level
    using Chosen = std::conditional_t<(kOwn > 8), uint16_t, uint8_t>;  // a bit for each of a thread's buckets
    using Map = typename MapFor<T, kBuckets>::type;
    using Scan = BlockScan<int, kThreads>;
    using Max = BlockMax<kThreads, 2>;

    struct Shared {
        alignas(16) uint32_t counts[kWide ? 2 : 1][kBuckets];  // of x in the lower half and y in the upper, or apart
        alignas(
            16) uint32_t slots[kBuckets];  // where in `keys` the next x and the next y of a chosen bucket go, likewise
        Chosen chosen_buckets[kThreads];
        Key keys[kKeys];
        Part parts[kParts];
        Frame<Key> frames[kFrames];
        typename Scan::Storage scan;
        typename Max::Storage max;
        Map map;
        bool map_fits;
        int used_keys, used_parts;
        int chosen, chosen_before;
        Key lowest, highest;
    };

    Shared &shared;
    int best;       // the largest difference found so far, or the floor of the goal
    int stop;       // differences beyond this do not matter
    int start = 0;  // this thread's own: the difference where its buckets start, after scan()

    __device__ int me() const { return static_cast<int>(threadIdx.x); }

    __device__ void clear_counts() {
        auto *words = reinterpret_cast<uint4 *>(shared.counts);
        for (int i = me(); i < (kWide ? 2 : 1) * kBuckets / 4; i += kThreads) words[i] = {0, 0, 0, 0};
    }

    // f(i, bucket, at, count) for the buckets of this thread: the i-th of them, the difference where it starts, and its
    // counts {of x, of y}. Reads 16 bytes at once, because single words would be in the same banks.
    template <typename F>
    __device__ void each_bucket(int at, F &&f) const {
#pragma unroll 1
        for (int v = 0; v < kOwn; v += 4) {
            const int first = me() * kOwn + v;
            const uint4 low = *reinterpret_cast<const uint4 *>(&shared.counts[0][first]);
            const uint32_t words[4] = {low.x, low.y, low.z, low.w};
            uint32_t others[4] = {};
            if constexpr (kWide) {
                const uint4 high = *reinterpret_cast<const uint4 *>(&shared.counts[1][first]);
                others[0] = high.x;
                others[1] = high.y;
                others[2] = high.z;
                others[3] = high.w;
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int2 count = kWide ? int2{static_cast<int>(words[i]), static_cast<int>(others[i])}
                                         : int2{static_cast<int>(words[i] & 0xffffu), static_cast<int>(words[i] >> 16)};
                f(v + i, first + i, at, count);
                at += count.x - count.y;
            }
        }
    }

    // Adds the pairs that the map contains to cleared tables. Between clearing and this there must be a barrier.
    template <typename Map_, typename Pairs>
    __device__ void count(const Map_ &map, Pairs &pairs) {
        pairs.each([&](bits_t<T> x, bits_t<T> y) {
            if (map.contains(x)) atomicAdd(&shared.counts[0][map.bucket(x)], 1u);
            if (map.contains(y)) {
                uint32_t *at = &shared.counts[kWide ? 1 : 0][map.bucket(y)];
                atomicAdd(at, kWide ? 1u : 0x10000u);
            }
        });
        __syncthreads();
    }

    // The largest of the bounds of all threads.
    __device__ Bounds over_block(Bounds own) {
        int numbers[2] = {own.lower, own.upper};
        Max::reduce(shared.max, numbers);
        return {numbers[0], numbers[1]};
    }

    // Starts with `before` at the first bucket. A bucket with values of one sample alone hides nothing, because inside
    // it the difference moves in one direction, to the next edge.
    template <typename Map_>
    __device__ Bounds scan(const Map_ &map, int before) {
        int sum = 0, total = 0;
        each_bucket(0, [&](int, int, int, int2 count) { sum += count.x - count.y; });
        start = before + Scan::exclusive_sum(shared.scan, sum, total);
        Bounds bounds{0, 0};
        each_bucket(start, [&](int, int bucket, int at, int2 count) {
            if (count.x > 0 && count.y > 0 && !map.exact(bucket)) {
                bounds.upper = max(bounds.upper, max(at + count.x, count.y - at));
            }
            bounds.lower = max(bounds.lower, abs(at + count.x - count.y));
        });
        return over_block(bounds);
    }

    // Whether a bucket may hide a difference larger than the best.
    template <typename Map_>
    __device__ bool wanted(const Map_ &map, int bucket, int at, int2 count) const {
        return count.x > 0 && count.y > 0 && max(at + count.x, count.y - at) > best && !map.exact(bucket);
    }

    // Looks into the wanted buckets of at most kSmall keys, as many at a time as `keys` holds. The counts and `start`
    // must be those of this map until scan() is called again.
    template <typename Map_, typename Pairs>
    __device__ void look_into_small_buckets(const Map_ &map, Pairs &pairs) {
        uint32_t done = 0;  // one bit for each bucket of this thread
        bool more = true;
        while (more && best < stop) {
            if (me() == 0) shared.used_keys = shared.used_parts = 0;
            __syncthreads();
            const bool left = choose_small_buckets(map, done);
            more = __syncthreads_or(left);
            const int parts = min(shared.used_parts, kParts);
            if (parts == 0) break;
            gather(map, pairs);
            best = max(best, over_block({search(parts), 0}).lower);
        }
    }

    // The number of values in a bucket. Both samples together have up to twice 2^30.
    static __device__ uint32_t size(int2 count) {
        return static_cast<uint32_t>(count.x) + static_cast<uint32_t>(count.y);
    }

    // Gives slots to the wanted small buckets of this thread. Returns whether some were left for the next time.
    template <typename Map_>
    __device__ bool choose_small_buckets(const Map_ &map, uint32_t &done) {
        bool left = false;
        const uint32_t before = done;
        each_bucket(start, [&](int i, int bucket, int at, int2 count) {
            if (size(count) <= kSmall && (done >> i & 1) == 0 && wanted(map, bucket, at, count)) {
                const int keys = count.x + count.y;
                const int begin = atomicAdd(&shared.used_keys, keys);
                const int part = begin + keys <= kKeys ? atomicAdd(&shared.used_parts, 1) : kParts;
                if (part < kParts) {
                    shared.parts[part] = {at, static_cast<uint16_t>(begin), static_cast<uint16_t>(count.x),
                                          static_cast<uint16_t>(count.y)};
                    shared.slots[bucket] = static_cast<uint32_t>(begin + count.x) << 16 | static_cast<uint32_t>(begin);
                    done |= 1u << i;
                } else {
                    left = true;
                }
            }
        });
        shared.chosen_buckets[me()] = static_cast<Chosen>(done & ~before);
        return left;
    }

    // This is read for every value while slots are counted up, so it has words of its own that nothing writes
    // meanwhile.
    __device__ bool is_chosen(int bucket) const { return shared.chosen_buckets[bucket / kOwn] >> (bucket % kOwn) & 1; }

    // Copies the keys of the chosen buckets to their places. Their order does not matter.
    template <typename Map_, typename Pairs>
    __device__ void gather(const Map_ &map, Pairs &pairs) {
        pairs.each([&](bits_t<T> x, bits_t<T> y) {
            if (map.contains(x)) {
                const int bucket = map.bucket(x);
                if (is_chosen(bucket)) shared.keys[atomicAdd(&shared.slots[bucket], 1u) & 0xffffu] = ordered_key(x);
            }
            if (map.contains(y)) {
                const int bucket = map.bucket(y);
                if (is_chosen(bucket)) shared.keys[atomicAdd(&shared.slots[bucket], 0x10000u) >> 16] = ordered_key(y);
            }
        });
        __syncthreads();
    }

    // The largest difference at the keys of this thread. A warp takes a bucket and compares all keys with all, which
    // for few keys beats sorting.
    __device__ int search(int parts) const {
        int largest = 0;
        for (int p = me() / kWarp; p < parts; p += kThreads / kWarp) {
            const Part part = shared.parts[p];
            const Key *keys = shared.keys + part.begin;
            for (int i = me() % kWarp; i < part.nx + part.ny; i += kWarp) {
                int at = part.before;
                for (int j = 0; j < part.nx; ++j) at += keys[j] <= keys[i];
                for (int j = part.nx; j < part.nx + part.ny; ++j) at -= keys[j] <= keys[i];
                largest = max(largest, abs(at));
            }
        }
        return largest;
    }

    // The first wanted bucket from `from` on that is too large to be looked into at once, and the difference before it.
    // kBuckets if there is none.
    template <typename Map_>
    __device__ int2 next_large_bucket(const Map_ &map, int from) {
        if (me() == 0) shared.chosen = kBuckets;
        __syncthreads();
        int mine = kBuckets, mine_before = 0;
        each_bucket(start, [&](int, int bucket, int at, int2 count) {
            if (bucket >= from && mine == kBuckets && size(count) > kSmall && wanted(map, bucket, at, count)) {
                mine = bucket;
                mine_before = at;
            }
        });
        if (mine < kBuckets) atomicMin(&shared.chosen, mine);
        __syncthreads();
        if (mine == shared.chosen && mine < kBuckets) shared.chosen_before = mine_before;
        __syncthreads();
        return {shared.chosen, shared.chosen_before};
    }
};

}  // namespace cuda
}  // namespace ksl
