// The bucket engine on a GPU. csrc/cpu/ks_engine.h is its counterpart.
//
// Each row gets a block of its own. Rows cost very different amounts, and nothing balances them better than the
// hardware, which starts a block wherever one has ended. A block goes through these steps:
//   1. Both rows are read once, into registers. If they hold the same bits, that is all.
//   2. The first warp fits a map of values to buckets to a sample of the row, while the others clear the counts.
//   3. Each value that changed is counted by a shared atomic. Most of the time goes into these.
//   4. A scan over the buckets gives the lower and the upper bound of h. ks_decide mostly ends here.
//   5. The buckets that reach beyond the lower bound are looked into, from registers. Large ones are zoomed into.
// Rows with infinities, and rows without a good map, are zoomed into from the start.
#pragma once

#include "ks_loops.cuh"

namespace ksl {
namespace cuda {

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

// ---- the steps for a row ----

// What the quick way has found out about a row.
enum class Verdict { kDone, kLargeBuckets, kNoMap, kSpecial };

// Steps 1 to 5 for row r. With kDone, block.best is the answer.
template <typename Pairs, typename Block>
__device__ Verdict look_quickly(Block &block, const BucketProblem &problem, int64_t r) {
    using T = typename Block::Value;
    auto &shared = block.shared;
    Pairs pairs(problem.x.row<T>(r), problem.y.row<T>(r), problem.n);
    bool special = false;
    const bool different = pairs.differ(special);
    if (!__syncthreads_or(different || special)) return Verdict::kDone;
    if (__syncthreads_or(special)) return Verdict::kSpecial;

    block.shared.counts.clear();
    if (block.me() < kWarp) {
        typename Block::Map map;
        const bool fits = map.fit(pairs, problem.n);
        if (block.me() == 0) {
            shared.map = map;
            shared.map_fits = fits;
        }
    }
    __syncthreads();
    if (!shared.map_fits) return Verdict::kNoMap;
    const typename Block::Map map = shared.map;
    block.count(map, pairs);
    const Bounds bounds = block.scan(map, 0);
    block.best = max(block.best, bounds.lower);
    if (block.best >= block.stop || bounds.upper <= block.best) return Verdict::kDone;
    block.look_into_small_buckets(map, pairs);
    if (block.best >= block.stop) return Verdict::kDone;
    return block.next_large_bucket(map, 0).x < Block::kBuckets ? Verdict::kLargeBuckets : Verdict::kDone;
}

template <typename Block, typename Pairs>
__device__ void test_row(Block block, const BucketProblem &problem, int64_t r) {
    const Verdict verdict = look_quickly<Pairs>(block, problem, r);
    uint8_t flags = 0;
    if (verdict != Verdict::kDone) {
        using T = typename Block::Value;
        const int64_t again = forget(r);
        const StreamedPairs<T, Block::kThreads, 1> pairs(problem.x.row<T>(again), problem.y.row<T>(again), problem.n);
        if (verdict == Verdict::kSpecial) flags = all_flags(pairs.flags());
        if ((flags & kHasNaN) == 0) zoom(block, pairs);
    }
    if (threadIdx.x != 0) return;
    problem.flags[r] = flags;
    const bool nan = flags & kHasNaN;
    const int h = block.best > problem.floor ? block.best : 0;
    if (problem.h) problem.h[r] = nan ? -1 : h;
    if (problem.decided) problem.decided[r] = !nan && block.best >= problem.stop;
}

// At most 64 registers a thread, 80 for doubles. This allows so many blocks on a multiprocessor that some wait for
// memory while others count. Shared memory may allow fewer: of 16-bit rows with 64 threads, 228 KB hold 13 blocks, not
// 16.
template <typename T, int kThreads>
constexpr int kBlocksAtOnce = (sizeof(T) == 8 ? 768 : 1024) / kThreads;

template <typename Block, typename Pairs>
__global__ void __launch_bounds__(Block::kThreads, kBlocksAtOnce<typename Block::Value, Block::kThreads>)
    ks_bucket_rows(const __grid_constant__ BucketProblem problem) {
    KSL_SHARED(shared, typename Block::Shared);
    test_row<Block, Pairs>({shared, problem.floor, problem.stop}, problem, problem.first_row + blockIdx.x);
}

template <typename Block, typename Pairs>
void launch_blocks(BucketProblem problem, const char *what, Stream stream) {
    constexpr int64_t kMostBlocks = int64_t{1} << 30;
    for (; problem.first_row < problem.rows; problem.first_row += kMostBlocks) {
        const int64_t blocks = std::min(problem.rows - problem.first_row, kMostBlocks);
        launch(what, ks_bucket_rows<Block, Pairs>, {blocks, Block::kThreads}, stream, problem);
    }
}

template <typename T, int kThreads, Variant kVariant = Variant::kPlain>
bool launch_if_it_fits(const BucketProblem &problem, const char *what, Stream stream) {
    using Pairs = ResidentPairs<T, kThreads>;
    if (!problem.x.vectors || !problem.y.vectors || problem.n > Pairs::kCapacity) return false;
    if constexpr (kVariant == Variant::kPlain && kHasVariants<T>) {
        if (problem.variant == Variant::kInterval) {
            return launch_if_it_fits<T, kThreads, Variant::kInterval>(problem, what, stream);
        }
        if (problem.variant == Variant::kFast) {
            return launch_if_it_fits<T, kThreads, Variant::kFast>(problem, what, stream);
        }
    }
    launch_blocks<Block<T, kThreads, false, kVariant>, Pairs>(problem, what, stream);
    return true;
}

template <typename T>
void launch_bucket_rows(const BucketProblem &problem, const char *what, Stream stream) {
    if (launch_if_it_fits<T, 64>(problem, what, stream) || launch_if_it_fits<T, 128>(problem, what, stream) ||
        launch_if_it_fits<T, 256>(problem, what, stream) || launch_if_it_fits<T, 512>(problem, what, stream)) {
        return;
    }
    launch_blocks<Block<T, 512, true, Variant::kPlain>, StreamedPairs<T, 512, 4>>(problem, what, stream);
}

}  // namespace cuda
}  // namespace ksl
