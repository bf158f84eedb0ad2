// The bounds that a block draws from its counts of a row (Block), and the zoom into buckets of many values. Threads own
// buckets as in ks_counts.cuh.
#pragma once

#include "ks_counts.cuh"

namespace ksl {
namespace cuda {

// How far the difference gets at the edges of buckets, and at most inside those that can hide more than that.
struct Bounds {
    int lower, upper;
};

// A range of keys that is being zoomed into, the difference before it, and the first bucket not yet looked into.
template <typename Key>
struct Frame {
    Key low, high;
    int before, next;
};

// A row's block: its shared memory, and what it has found so far. `best` only goes up.
//
// Block, for each map: shared.counts.clear(), a barrier, count(), scan(). From there on, and until the counts are
// cleared, the other functions may be called with the same map.
template <typename T, int kThreads_, bool kWide, Variant kVariant>
struct Block {
    using Value = T;
    using Key = key_t<T>;
    using Table = Counts<T, kThreads_, kWide>;
    using Small = SmallBuckets<T, kThreads_, kVariant != Variant::kPlain>;
    using Map = map_for<T, Table::kBuckets, kVariant>;
    using Sum = BlockSum<kThreads_>;
    using Max = BlockMax<kThreads_, 2>;
    static constexpr int kThreads = kThreads_, kBuckets = Table::kBuckets, kOwn = Table::kOwn;
    static constexpr int kFrames = 8;  // levels of a zoom: 64-bit keys, 9 bits a level

    struct Shared {
        Table counts;
        Small small;
        Frame<Key> frames[kFrames];
        typename Sum::Storage sum;
        typename Max::Storage max;
        Map map;
        bool map_fits, special;
        uint8_t flags;
        int chosen, chosen_before;
        Key lowest, highest;
    };

    Shared &shared;
    int best;       // the largest difference found so far, or the floor of the goal
    int stop;       // differences beyond this do not matter
    int start = 0;  // this thread's own: the difference where its buckets start, after scan()

    __device__ int me() const { return static_cast<int>(threadIdx.x); }
    __device__ int first_own() const { return me() * kOwn; }

    // Adds the pairs that the map contains.
    template <typename Map_, typename Pairs>
    __device__ void count(const Map_ &map, Pairs &pairs) {
        each_place(map, pairs, [&](auto sample, int bucket, auto) { shared.counts.add(sample, bucket); });
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
        const typename Table::Sums sums = shared.counts.sums();
        start = before + Sum::before(shared.sum, sums.all);
        Bounds bounds{0, 0};
        shared.counts.each_own(start, sums.last, [&](int bucket, int at, int2 count) {
            if (hides(map, bucket, count)) bounds.upper = max(bounds.upper, reach_of(at, count));
            bounds.lower = max(bounds.lower, abs(at + count.x - count.y));
        });
        return over_block(bounds);
    }

    // Looks into the wanted buckets of at most kSmall keys, as many at a time as there is room for.
    template <typename Map_, typename Pairs>
    __device__ void look_into_small_buckets(const Map_ &map, Pairs &pairs) {
        uint32_t done = 0;  // one bit for each bucket of this thread
        bool more = true;
        while (more && best < stop) {
            if (me() == 0) shared.small.reset();
            __syncthreads();
            more = __syncthreads_or(take_small_buckets(map, done));
            if (shared.small.count() == 0) break;
            shared.small.gather(map, pairs);
            best = max(best, over_block({shared.small.search(), 0}).lower);
        }
    }

    // The first wanted bucket from `from` on that is too large to be looked into at once, and the difference before it.
    // kBuckets if there is none.
    template <typename Map_>
    __device__ int2 next_large_bucket(const Map_ &map, int from) {
        if (me() == 0) shared.chosen = kBuckets;
        __syncthreads();
        const uint32_t ahead = ~0u << min(max(from - first_own(), 0), kOwn);
        const uint32_t large = wanted(map).large & ahead;
        const int mine = large ? first_own() + __ffs(static_cast<int>(large)) - 1 : kBuckets;
        if (large) atomicMin(&shared.chosen, mine);
        __syncthreads();
        if (large && mine == shared.chosen) shared.chosen_before = difference_before(mine);
        __syncthreads();
        return {shared.chosen, shared.chosen_before};
    }

  private:
    // Buckets of this thread, one bit each.
    struct Wanted {
        uint32_t small, large;
    };

    template <typename Map_>
    static __device__ bool hides(const Map_ &map, int bucket, int2 count) {
        return count.x > 0 && count.y > 0 && !map.exact(bucket);
    }

    static __device__ int reach_of(int at, int2 count) { return max(at + count.x, count.y - at); }

    // The number of values in a bucket. Both samples together have up to twice 2^30.
    static __device__ uint32_t size(int2 count) {
        return static_cast<uint32_t>(count.x) + static_cast<uint32_t>(count.y);
    }

    // This thread's buckets that may hide a difference larger than the best.
    template <typename Map_>
    __device__ Wanted wanted(const Map_ &map) const {
        Wanted found{0, 0};
        shared.counts.each_own(start, shared.counts.sums().last, [&](int bucket, int at, int2 count) {
            if (!hides(map, bucket, count) || reach_of(at, count) <= best) return;
            (size(count) <= Small::kSmall ? found.small : found.large) |= 1u << (bucket - first_own());
        });
        return found;
    }

    // At one of this thread's buckets. Few are asked for, so it adds the counts up again.
    __device__ int difference_before(int bucket) const {
        int at = start;
        for (int b = first_own(); b < bucket; ++b) at += shared.counts[b].x - shared.counts[b].y;
        return at;
    }

    // Takes the wanted small buckets of this thread that are not done. Returns whether some were left for the next
    // time.
    template <typename Map_>
    __device__ bool take_small_buckets(const Map_ &map, uint32_t &done) {
        uint32_t waiting = wanted(map).small & ~done, taken = 0;
        bool left = false;
        for (; waiting != 0; waiting &= waiting - 1) {
            const int i = __ffs(static_cast<int>(waiting)) - 1, bucket = first_own() + i;
            if (shared.small.take(bucket, difference_before(bucket), shared.counts[bucket])) {
                taken |= 1u << i;
            } else {
                left = true;
            }
        }
        shared.small.mark(taken);
        done |= taken;
        return left;
    }
};

// ---- zooming ----
//
// The maximum of |#{x <= t} - #{y <= t}| over any range of keys, by zooming in on the buckets that can hide it.
//
// Buckets are equal ranges of keys. Those with few keys are looked into at once. A bucket with many keys is a smaller
// range of keys, and gets all the buckets for itself. Every level takes log2(kBuckets) bits off the range. So with 512
// buckets, 4 levels suffice for 32-bit keys and 8 for 64-bit keys, and with 2,048 buckets 3 and 6. Only the range of a
// level is kept, and its counts are made again on return to it. So no distribution needs more memory.
//
// Values come from memory, not from registers. Few rows get here, and their values are still in a cache.

__device__ inline void atomic_min(uint32_t *at, uint32_t value) { atomicMin(at, value); }
__device__ inline void atomic_max(uint32_t *at, uint32_t value) { atomicMax(at, value); }
__device__ inline void atomic_min(uint64_t *at, uint64_t value) {
    atomicMin(reinterpret_cast<unsigned long long *>(at), static_cast<unsigned long long>(value));
}
__device__ inline void atomic_max(uint64_t *at, uint64_t value) {
    atomicMax(reinterpret_cast<unsigned long long *>(at), static_cast<unsigned long long>(value));
}

// Narrows a range of keys to those that occur. An empty range is returned with low > high.
template <typename Block, typename Pairs>
__device__ void narrow(Block &block, const Pairs &pairs, typename Block::Key &low, typename Block::Key &high) {
    using Key = typename Block::Key;
    using Bits = bits_t<typename Block::Value>;
    auto &shared = block.shared;
    if (block.me() == 0) {
        shared.lowest = static_cast<Key>(~Key{0});
        shared.highest = 0;
    }
    __syncthreads();
    Key lowest = static_cast<Key>(~Key{0}), highest = 0;
    const auto consider = [&](Key key) {
        if (key < low || key > high) return;
        lowest = key < lowest ? key : lowest;
        highest = key > highest ? key : highest;
    };
    pairs.each([&](Bits x, Bits y) {
        consider(ordered_key(x));
        consider(ordered_key(y));
    });
    if (lowest <= highest) {
        atomic_min(&shared.lowest, lowest);
        atomic_max(&shared.highest, highest);
    }
    __syncthreads();
    low = shared.lowest;
    high = shared.highest;
}

// Raises block.best to the largest difference in the row, or until block.stop.
template <typename Block, typename Pairs>
__device__ void zoom(Block &block, const Pairs &pairs) {
    using Key = typename Block::Key;
    auto &shared = block.shared;
    Key low = 0, high = static_cast<Key>(~Key{0});
    narrow(block, pairs, low, high);
    if (low >= high) return;  // all values are equal
    int depth = 0;
    Frame<Key> frame{low, high, 0, 0};
    while (block.best < block.stop) {
        const KeyMap<typename Block::Value, Block::kBuckets> map(frame.low, frame.high);
        block.shared.counts.clear();
        __syncthreads();
        block.count(map, pairs);
        const Bounds bounds = block.scan(map, frame.before);
        block.best = max(block.best, bounds.lower);
        if (frame.next == 0 && bounds.upper > block.best) block.look_into_small_buckets(map, pairs);
        // Goes down into the next large bucket. Ranges that turn out to hold only one value are skipped.
        bool down = false;
        while (!down && block.best < block.stop) {
            const int2 large = block.next_large_bucket(map, frame.next);
            if (large.x == Block::kBuckets) break;
            frame.next = large.x + 1;
            low = map.first(large.x);
            high = map.last(large.x);
            narrow(block, pairs, low, high);
            down = low < high;
            if (!down) continue;
            if (block.me() == 0) shared.frames[depth] = frame;
            ++depth;
            frame = {low, high, large.y, 0};
        }
        if (down) continue;
        if (depth == 0) return;
        frame = shared.frames[--depth];
    }
}

}  // namespace cuda
}  // namespace ksl
