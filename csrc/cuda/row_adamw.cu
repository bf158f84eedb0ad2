// AdamW on some rows of some tables, with one launch for every 16 tables. Its counterpart is csrc/cpu/row_adamw.cpp.
//
// A step is a list of tables of any number, dtype and shape. The k x cols elements of each (the moments are contiguous)
// are cut into packs of 16 bytes of state. A pack for each thread of a block is a tile, the tiles of all tables are
// numbered through, and block b takes tiles b, b + blocks, ... Gradient, both moments and the value are read once, and
// all but the gradient are written. These are 28 bytes for each element in float32.
//
// A captured CUDA graph replays fixed arguments, so what changes from step to step is in device memory: the number of
// the step, the learning rate, and GradScaler's scale and found_inf. Each block computes the step's scalars from them
// while its first tile is being loaded. The last block to finish (a counter tells which) advances the step numbers.
//
// Nothing may be written before all gradients have been looked at. That takes a launch of its own, or a barrier between
// the blocks of one cluster, which run at the same time (update_in_one_cluster).
#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <utility>

#include "../powers.h"
#include "row_adamw.cuh"

namespace ksl {
namespace cuda {
namespace {

constexpr int kLaunchThreads = 128;

// The first tile of a table that belongs to this block. `before` is the number of tiles of the tables before it.
__device__ int64_t first_tile(int64_t before) {
    const int64_t blocks = gridDim.x, turn = before % blocks;
    return blockIdx.x >= turn ? blockIdx.x - turn : blockIdx.x + blocks - turn;
}

// Each of the following loops goes over the tiles of this block.
template <int kThreads>
__device__ void look_for_nonfinite(const Step &step) {
    int64_t before = 0;
    for (int i = 0; i < step.count; ++i) {
        const Table &table = step.tables[i];
        for (int64_t tile = first_tile(before); tile < table.tiles; tile += gridDim.x) {
            with_pack(table, [&](auto, auto width) {
                if (!has_nonfinite<kThreads, decltype(width)::value>(table.update, tile)) return;
                step.control.state[kNonfinite] = 1;  // all who write, write the same
            });
        }
        before += table.tiles;
    }
}

template <int kThreads>
__device__ void mark_rows(const Step &step) {
    int64_t before = 0;
    for (int i = 0; i < step.count; ++i) {
        const Table &table = step.tables[i];
        for (int64_t tile = first_tile(before); table.update.read && tile < table.tiles; tile += gridDim.x) {
            with_pack(table, [&](auto tag, auto width) {
                mark_read<kThreads, decltype(tag), decltype(width)::value>(table.update, step.control, tile);
            });
        }
        before += table.tiles;
    }
}

template <int kThreads>
__device__ void update_tables(const Step &step) {
    KSL_SHARED(narrow, Scalars<float>);
    KSL_SHARED(wide, Scalars<double>);
    int64_t before = 0;
    for (int i = 0; i < step.count; ++i) {
        const Table &table = step.tables[i];
        const int64_t tile = first_tile(before);
        before += table.tiles;
        if (tile >= table.tiles) continue;  // the same for all threads of the block
        with_pack(table, [&](auto tag, auto width) {
            using C = decltype(tag);
            if constexpr (std::is_same_v<C, double>) {
                update_table<kThreads, C, decltype(width)::value>(table, step.control, wide, tile);
            } else {
                update_table<kThreads, C, decltype(width)::value>(table, step.control, narrow, tile);
            }
        });
    }
}

template <int kThreads>
__device__ void prefetch_tables(const Step &step) {
    int64_t before = 0;
    for (int i = 0; i < step.count; ++i) {
        const Table &table = step.tables[i];
        for (int64_t tile = first_tile(before); tile < table.tiles; tile += gridDim.x) {
            with_pack(table, [&](auto tag, auto width) {
                prefetch_pack<kThreads, decltype(tag), decltype(width)::value>(table.update, tile);
            });
        }
        before += table.tiles;
    }
}

// Called by one thread when no block will read the control any more.
__device__ void move_on(const Step &step) {
    const StepControl &control = step.control;
    if (!left_out(control)) {
        for (int i = 0; i < step.count; ++i) {
            if (step.tables[i].update.step) *step.tables[i].update.step += 1;
        }
    } else if (step.last && control.skip_nonfinite && control.state[kNonfinite] != 0) {
        ++control.state[kLeftOut];
    }
    if (step.last) control.state[kNonfinite] = 0;
    control.state[kFinished] = 0;
}

__global__ void __launch_bounds__(kLaunchThreads) nonfinite_kernel(const __grid_constant__ Step step) {
    look_for_nonfinite<kLaunchThreads>(step);
}

__global__ void __launch_bounds__(kLaunchThreads) mark_kernel(const __grid_constant__ Step step) {
    mark_rows<kLaunchThreads>(step);
}

// Four blocks for each multiprocessor, since ptxas would spill registers on sm_80 to make room for five.
__global__ void __launch_bounds__(kLaunchThreads, 4) update_kernel(const __grid_constant__ Step step) {
    update_tables<kLaunchThreads>(step);
    if (!step.control.state) return;
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence();
    if (atomicAdd(&step.control.state[kFinished], 1) != static_cast<int>(gridDim.x) - 1) return;
    __threadfence();  // what the others did before they counted themselves is visible from here on
    move_on(step);
}

// ---- all of it in one launch ----

constexpr int kClusterThreads = 512;
constexpr int64_t kRounds = 4;  // tiles of a block at most: with more, all multiprocessors are sooner ready than a few

// The grid is one cluster. A block has several tiles, so it asks memory for all of them at once.
__global__ void __launch_bounds__(kClusterThreads) cluster_kernel(const __grid_constant__ Step step) {
    if constexpr (kHasClusters) {
        prefetch_tables<kClusterThreads>(step);
        if (step.control.skip_nonfinite) look_for_nonfinite<kClusterThreads>(step);
        mark_rows<kClusterThreads>(step);
        cluster_barrier();  // what the others wrote before is visible from here on
        update_tables<kClusterThreads>(step);
        cluster_barrier();
        if (step.control.state && blockIdx.x == 0 && threadIdx.x == 0) move_on(step);
    }
}

Table prepared(const RowUpdate &u, int threads) {
    const int64_t grad_rows = u.whole_grad ? u.table.rows : u.k;
    KSL_CHECK(u.grad.rows == grad_rows && u.grad.cols == u.table.cols, "grad is [", u.grad.rows, ", ", u.grad.cols,
              "], expected [", grad_rows, ", ", u.table.cols, "]");
    KSL_CHECK(u.row_ids || u.k <= u.table.rows, "grad has ", u.k, " rows, but table has ", u.table.rows);
    KSL_CHECK(u.step || u.hyper.step >= 1, "step is ", u.hyper.step, ", but steps count from 1");
    KSL_CHECK(!u.master || (u.table.dtype != DType::kFloat32 && u.table.dtype != DType::kFloat64),
              "master is for tables narrower than float32");
    Table table{};
    table.update = u;
    if (!u.step) {
        table.power1 = power_of(u.hyper.beta1, u.hyper.step, SplitError{});
        table.power2 = power_of(u.hyper.beta2, u.hyper.step, SplitError{});
    }
    const auto aligned = [](const void *state) { return reinterpret_cast<uintptr_t>(state) % 16 == 0; };
    const int pack = u.table.dtype == DType::kFloat64 ? kPack<double> : kPack<float>;
    table.packs = has_packs(u.table, pack) && has_packs(u.grad, pack) && aligned(u.exp_avg) && aligned(u.exp_avg_sq) &&
                  aligned(u.master);
    const int64_t tile = threads * (table.packs ? pack : 1);
    table.tiles = (u.k * u.table.cols + tile - 1) / tile;
    return table;
}

// A launch for up to kTables tables from `first` on, and how many tiles they have.
std::pair<Step, int64_t> step_from(int64_t first, const RowUpdate *updates, int64_t count, const StepControl &control,
                                   int threads) {
    Step step{};
    step.control = control;
    step.count = static_cast<int>(std::min<int64_t>(kTables, count - first));
    step.last = first + kTables >= count;
    int64_t tiles = 0;
    for (int i = 0; i < step.count; ++i) {
        step.tables[i] = prepared(updates[first + i], threads);
        tiles += step.tables[i].tiles;
    }
    return {step, tiles};
}

// Returns why it was not possible, or an empty string.
std::string update_in_one_cluster(const RowUpdate *updates, int64_t count, const StepControl &control, Stream stream) {
    if (count > kTables) return "a step has more than " + std::to_string(kTables) + " tables";
    const int64_t most = cluster_blocks(cluster_kernel, kClusterThreads, stream);
    if (most == 0) {
        return "device " + std::to_string(stream.device) +
               " has no clusters of thread blocks, or the kernels were not compiled for 9.0 (KSL_CUDA_ARCHITECTURES)";
    }
    const auto [step, tiles] = step_from(0, updates, count, control, kClusterThreads);
    if (tiles > most * kRounds) {
        return "a step has more than " + std::to_string(most * kRounds) + " times " + std::to_string(kClusterThreads) +
               " packs (of 16 bytes, or of one element where rows do not divide into such), which is too much for one "
               "cluster";
    }
    int blocks = 1;
    while (blocks < most && blocks < tiles) blocks *= 2;
    launch("row_adamw", cluster_kernel, {blocks, kClusterThreads, 0, blocks}, stream, step);
    return "";
}

void update_by_launches(const RowUpdate *updates, int64_t count, const StepControl &control, bool lazy, Stream stream) {
    for (const auto kernel : {nonfinite_kernel, mark_kernel, update_kernel}) {
        if ((kernel == nonfinite_kernel && !control.skip_nonfinite) || (kernel == mark_kernel && !lazy)) continue;
        for (int64_t first = 0; first < count; first += kTables) {
            const auto [step, tiles] = step_from(first, updates, count, control, kLaunchThreads);
            // Beyond the number of blocks that the device holds at once, blocks take turns. There is at least one,
            // because step numbers advance even if no row is updated.
            const int64_t blocks = std::min(tiles, resident_blocks(kernel, kLaunchThreads, 0, stream));
            launch("row_adamw", kernel, {std::max<int64_t>(1, blocks), kLaunchThreads}, stream, step);
        }
    }
}

// KSL_CUDA_ADAMW in the environment, which the benchmark sets.
bool cluster_is_chosen() {
    const char *name = std::getenv("KSL_CUDA_ADAMW");
    const std::string_view chosen = name ? name : "launches";
    if (chosen == "launches") return false;
    KSL_CHECK(chosen == "cluster", "KSL_CUDA_ADAMW is '", chosen, "'; expected launches or cluster, or leave it unset");
    return true;
}

}  // namespace

std::string row_adamw(const RowUpdate *updates, int64_t count, const StepControl &control, Stream stream) {
    for (int64_t i = 0; i < count; ++i) {
        KSL_CHECK(control.state || !updates[i].step, "a step number on the device needs the control's state");
    }
    KSL_CHECK(control.state || !control.skip_nonfinite, "skip_nonfinite needs the control's state");
    const bool lazy = std::any_of(updates, updates + count, [](const RowUpdate &u) { return u.read; });
    const bool looks_first = count > 0 && (lazy || control.skip_nonfinite);  // otherwise it is one launch anyway
    std::string reason;
    if (cluster_is_chosen() && looks_first) {
        reason = update_in_one_cluster(updates, count, control, stream);
        if (reason.empty()) return reason;
    }
    update_by_launches(updates, count, control, lazy, stream);
    return reason;
}

}  // namespace cuda
}  // namespace ksl
