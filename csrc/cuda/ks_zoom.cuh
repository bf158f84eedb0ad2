// The maximum of |#{x <= t} - #{y <= t}| over any range of keys, by zooming in on the buckets that can hide it.
//
// Buckets are equal ranges of keys. Those with few keys are looked into at once. A bucket with many keys is a smaller
// range of keys, and gets all the buckets for itself. Every level takes log2(kBuckets) bits off the range. So with 512
// buckets, 4 levels suffice for 32-bit keys and 8 for 64-bit keys, and with 2,048 buckets 3 and 6. Only the range of a
// level is kept, and its counts are made again on return to it. So no distribution needs more memory.
//
// Values come from memory, not from registers. Few rows get here, and their values are still in a cache.
#pragma once

#include "ks_loops.cuh"

namespace ksl {
namespace cuda {

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
        block.clear_counts();
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
