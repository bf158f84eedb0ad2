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

#include "ks_block.cuh"

namespace ksl {
namespace cuda {

// Steps 1 to 5 for row r. Returns whether block.best is the answer. If not, shared.special tells whether the row has
// infinities or NaN.
//
// What is needed after the zoom, or only if it comes to that, is in shared memory: registers hold the row, and have no
// room for it. For the same reason the map is only read where it is used.
template <typename Pairs, typename Block>
__device__ bool look_quickly(Block &block, const BucketProblem &problem, int64_t r) {
    using T = typename Block::Value;
    auto &shared = block.shared;
    Pairs pairs(problem.x.row<T>(r), problem.y.row<T>(r), problem.n);
    bool special = false;
    const bool different = pairs.differ(special);
    if (!__syncthreads_or(different || special)) return true;
    special = __syncthreads_or(special);
    if (block.me() == 0) shared.special = special;
    if (special) {
        __syncthreads();
        return false;
    }

    shared.counts.clear();
    if (block.me() < kWarp) {
        typename Block::Map map;
        const bool fits = map.fit(pairs, problem.n);
        if (block.me() == 0) {
            shared.map = map;
            shared.map_fits = fits;
        }
    }
    __syncthreads();
    if (!shared.map_fits) return false;
    const typename Block::Map &map = shared.map;
    block.count(map, pairs);
    const Bounds bounds = block.scan(map, 0);
    block.best = max(block.best, bounds.lower);
    if (block.best >= block.stop || bounds.upper <= block.best) return true;
    block.look_into_small_buckets(map, pairs);
    if (block.best >= block.stop) return true;
    return block.next_large_bucket(map, 0).x == Block::kBuckets;
}

template <typename Block, typename Pairs>
__device__ void test_row(Block block, const BucketProblem &problem, int64_t r) {
    if (block.me() == 0) block.shared.flags = 0;
    if (!look_quickly<Pairs>(block, problem, r)) {
        using T = typename Block::Value;
        const int64_t again = forget(r);
        const StreamedPairs<T, Block::kThreads, 1> pairs(problem.x.row<T>(again), problem.y.row<T>(again), problem.n);
        bool nan = false;
        if (block.shared.special) {
            const uint8_t flags = all_flags(pairs.flags());
            if (block.me() == 0) block.shared.flags = flags;
            nan = flags & kHasNaN;
        }
        if (!nan) zoom(block, pairs);
    }
    if (threadIdx.x != 0) return;
    const uint8_t flags = block.shared.flags;
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
