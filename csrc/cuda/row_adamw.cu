// AdamW on some rows of some tables, with one launch for every 16 tables. Its counterpart is csrc/cpu/row_adamw.cpp.
//
// A step is a list of tables of any number, dtype and shape. The k x cols elements of each (the moments are contiguous)
// are cut into packs of 16 bytes of state. 128 packs are a tile, the tiles of all tables are numbered through, and
// block b takes tiles b, b + blocks, ... Gradient, both moments and the value are read once, and all but the gradient
// are written. These are 28 bytes for each element in float32.
//
// A captured CUDA graph replays fixed arguments, so what changes from step to step is in device memory: the number of
// the step, the learning rate, and GradScaler's scale and found_inf. Each block computes the step's scalars from them
// while its first tile is being loaded. The last block to finish (a counter tells which) advances the step numbers.
#include <algorithm>
#include <cmath>

#include "../adamw.h"
#include "../powers.h"
#include "elements.cuh"

namespace ksl {
namespace cuda {
namespace {

constexpr int kThreads = 128;
template <typename C>
constexpr int kPack = 16 / sizeof(C);            // elements of a tile for each thread; 1 if packs cannot be moved whole
constexpr int kTables = 16;                      // tables of one launch, whose parameters must fit into 4 KB
enum : int { kFinished, kNonfinite, kLeftOut };  // the entries of StepControl::state

struct Table {
    RowUpdate update;
    double power1, power2;  // of the betas, if the step's number is on the host
    int64_t tiles;
    bool packs;  // otherwise single elements
};

struct Step {
    Table tables[kTables];
    StepControl control;
    int count;
    bool last;  // the last launch of this step
};
static_assert(sizeof(Step) <= 4096, "the parameters of a kernel must fit into 4 KB");

// What all threads of a block need to know about a table.
template <typename C>
struct Scalars {
    AdamWCoefficients<C> coefficients;
    C grad_scale;
    bool left_out;
};

__device__ bool left_out(const StepControl &control) {
    return (control.found_inf && *control.found_inf != 0) || (control.skip_nonfinite && control.state[kNonfinite] != 0);
}

// Called by two threads, in two warps, each of which computes one power. The caller synchronizes.
template <typename C>
__device__ void compute_scalars(const Table &table, const StepControl &control, Scalars<C> &scalars) {
    const RowUpdate &u = table.update;
    const int64_t step = u.step ? static_cast<int64_t>(*u.step) + 1 : 0;
    if (threadIdx.x == 0) {
        double lr = u.hyper.lr;
        if (u.lr)
            lr = u.lr_dtype == DType::kFloat64 ? *static_cast<const double *>(u.lr) : *static_cast<const float *>(u.lr);
        scalars.coefficients.set_first(u.hyper, lr,
                                       u.step ? power_of(u.hyper.beta1, step, FusedError{}) : table.power1);
        scalars.grad_scale = control.grad_scale ? static_cast<C>(*control.grad_scale) : C(1);
        scalars.left_out = left_out(control);
    } else if (threadIdx.x == kWarp) {
        scalars.coefficients.set_second(u.hyper, u.step ? power_of(u.hyper.beta2, step, FusedError{}) : table.power2);
    }
}

// torch.lerp computes from the nearer end, so that weight 1 gives the end itself.
template <typename C>
__device__ C next_exp_avg(const AdamWCoefficients<C> &c, C exp_avg, C grad) {
    return c.one_minus_beta1 < C(0.5) ? exp_avg + c.one_minus_beta1 * (grad - exp_avg)
                                      : grad - (1 - c.one_minus_beta1) * (grad - exp_avg);
}

template <typename C>
__device__ C next_exp_avg_sq(const AdamWCoefficients<C> &c, C exp_avg_sq, C grad) {
    return exp_avg_sq * c.beta2 + c.one_minus_beta2 * grad * grad;
}

// From the new moments.
template <typename C>
__device__ C next_param(const AdamWCoefficients<C> &c, C param, C exp_avg, C exp_avg_sq) {
    const C denominator = std::sqrt(exp_avg_sq) / c.root_bias2 + c.eps;
    return param * c.decay + c.minus_step_size * exp_avg / denominator;
}

// The place of a thread's pack of a tile in the state, in the table and in the gradient.
template <int kWidth>
struct Place {
    int64_t element, i = 0, row = 0, col = 0;  // i: of the k rows; row: of the table, by way of row_ids
    int64_t grad_row = 0;
    bool exists;

    __device__ Place(const RowUpdate &u, int64_t tile) {
        element = (tile * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
        exists = element < u.k * u.table.cols;
        if (!exists) return;
        i = quotient(element, u.table.cols);
        col = element - i * u.table.cols;
        row = u.row_ids ? u.row_ids[i] : i;
        KSL_DEVICE_CHECK(0 <= row && row < u.table.rows, "a row id is outside the table");
        grad_row = u.whole_grad ? row : i;
    }

    // A lazy update passes over rows without a gradient, as over packs that do not exist.
    __device__ void leave_out_unread(const RowUpdate &u) {
        if (u.read && exists) exists = u.read[i] != 0;
    }
};

template <typename M>
__device__ int64_t offset(const M &m, int64_t row, int64_t col) {
    return row * m.row_stride + col * m.col_stride;
}

template <typename C, int kWidth>
__device__ void load_elements(DType dtype, const void *data, int64_t at, C (&out)[kWidth]) {
    device_dispatch(dtype, [&](auto tag) { load_pack<decltype(tag)>(data, at, out); });
}

template <typename C, int kWidth>
__device__ void store_elements(DType dtype, void *data, int64_t at, const C (&in)[kWidth]) {
    device_dispatch(dtype, [&](auto tag) { store_pack<decltype(tag)>(data, at, in); });
}

// A thread's pack, in registers.
template <typename C, int kWidth>
struct Operands {
    C grad[kWidth], exp_avg[kWidth], exp_avg_sq[kWidth], param[kWidth];

    __device__ void load(const RowUpdate &u, const Place<kWidth> &place) {
        if (!place.exists) return;
        load_elements(u.grad.dtype, u.grad.data, offset(u.grad, place.grad_row, place.col), grad);
        load_pack<C>(u.exp_avg, place.element, exp_avg);
        load_pack<C>(u.exp_avg_sq, place.element, exp_avg_sq);
        if (u.master) {
            load_pack<C>(u.master, place.element, param);
        } else {
            load_elements(u.table.dtype, u.table.data, offset(u.table, place.row, place.col), param);
        }
    }

    __device__ void update(const Scalars<C> &scalars) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
            const C g = grad[j] / scalars.grad_scale;
            exp_avg[j] = next_exp_avg(scalars.coefficients, exp_avg[j], g);
            exp_avg_sq[j] = next_exp_avg_sq(scalars.coefficients, exp_avg_sq[j], g);
            param[j] = next_param(scalars.coefficients, param[j], exp_avg[j], exp_avg_sq[j]);
        }
    }

    __device__ void store(const RowUpdate &u, const Place<kWidth> &place) const {
        if (!place.exists) return;
        store_pack<C>(u.exp_avg, place.element, exp_avg);
        store_pack<C>(u.exp_avg_sq, place.element, exp_avg_sq);
        if (u.master) store_pack<C>(u.master, place.element, param);
        store_elements(u.table.dtype, u.table.data, offset(u.table, place.row, place.col), param);
    }
};

template <typename C, int kWidth>
__device__ void update_table(const Table &table, const StepControl &control, Scalars<C> &shared, int64_t tile) {
    const RowUpdate &u = table.update;
    Place<kWidth> place(u, tile);
    place.leave_out_unread(u);
    Operands<C, kWidth> operands;
    operands.load(u, place);  // in flight while two threads compute
    compute_scalars(table, control, shared);
    __syncthreads();
    const Scalars<C> scalars = shared;
    __syncthreads();  // the next table's take their place
    while (!scalars.left_out) {
        operands.update(scalars);
        operands.store(u, place);
        tile += gridDim.x;
        if (tile >= table.tiles) return;
        place = Place<kWidth>(u, tile);
        place.leave_out_unread(u);
        operands.load(u, place);
    }
}

// The first tile of a table that belongs to this block. `before` is the number of tiles of the tables before it.
__device__ int64_t first_tile(int64_t before) {
    const int64_t blocks = gridDim.x, turn = before % blocks;
    return blockIdx.x >= turn ? blockIdx.x - turn : blockIdx.x + blocks - turn;
}

// Called by one thread of the block that finishes last, when no block will read the control any more.
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

// Four blocks for each multiprocessor, since ptxas would spill registers on sm_80 to make room for five.
__global__ void __launch_bounds__(kThreads, 4) update_kernel(const __grid_constant__ Step step) {
    KSL_SHARED(narrow, Scalars<float>);
    KSL_SHARED(wide, Scalars<double>);
    int64_t before = 0;
    for (int i = 0; i < step.count; ++i) {
        const Table &table = step.tables[i];
        const int64_t tile = first_tile(before);
        before += table.tiles;
        if (tile >= table.tiles) continue;  // the same for all threads of the block
        if (table.update.table.dtype == DType::kFloat64) {
            table.packs ? update_table<double, kPack<double>>(table, step.control, wide, tile)
                        : update_table<double, 1>(table, step.control, wide, tile);
        } else {
            table.packs ? update_table<float, kPack<float>>(table, step.control, narrow, tile)
                        : update_table<float, 1>(table, step.control, narrow, tile);
        }
    }
    if (!step.control.state) return;
    __syncthreads();
    if (threadIdx.x != 0) return;
    __threadfence();
    if (atomicAdd(&step.control.state[kFinished], 1) != static_cast<int>(gridDim.x) - 1) return;
    __threadfence();  // what the others did before they counted themselves is visible from here on
    move_on(step);
}

// Whether a thread's part of a gradient holds NaN or Inf. Only these are different from 0 when multiplied by 0.
template <typename C, int kWidth>
__device__ bool has_nonfinite(const RowUpdate &u, int64_t tile) {
    const Place<kWidth> place(u, tile);
    C grad[kWidth] = {}, sum = 0;
    if (place.exists) load_elements(u.grad.dtype, u.grad.data, offset(u.grad, place.grad_row, place.col), grad);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += grad[j] * 0;
    return sum != 0;
}

// In double, which holds the values of every dtype. The packs are those of the update.
__device__ bool has_nonfinite(const Table &table, int64_t tile) {
    const RowUpdate &u = table.update;
    if (!table.packs) return has_nonfinite<double, 1>(u, tile);
    return u.table.dtype == DType::kFloat64 ? has_nonfinite<double, kPack<double>>(u, tile)
                                            : has_nonfinite<double, kPack<float>>(u, tile);
}

__global__ void __launch_bounds__(kThreads) nonfinite_kernel(const __grid_constant__ Step step) {
    int64_t before = 0;
    for (int i = 0; i < step.count; ++i) {
        const Table &table = step.tables[i];
        for (int64_t tile = first_tile(before); tile < table.tiles; tile += gridDim.x) {
            if (has_nonfinite(table, tile)) step.control.state[kNonfinite] = 1;  // all who write, write the same
        }
        before += table.tiles;
    }
}

// Mark the row of each pack whose gradient holds a number other than 0, after the division by GradScaler's scale.
template <typename C, int kWidth>
__device__ void mark_read(const RowUpdate &u, const StepControl &control, int64_t tile) {
    const Place<kWidth> place(u, tile);
    if (!place.exists) return;
    C grad[kWidth];
    load_elements(u.grad.dtype, u.grad.data, offset(u.grad, place.grad_row, place.col), grad);
    const C scale = control.grad_scale ? static_cast<C>(*control.grad_scale) : C(1);
    bool found = false;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) found |= grad[j] / scale != 0;
    if (found) u.read[place.i] = 1;  // all who write, write the same
}

__global__ void __launch_bounds__(kThreads) mark_kernel(const __grid_constant__ Step step) {
    int64_t before = 0;
    for (int i = 0; i < step.count; ++i) {
        const Table &table = step.tables[i];
        const RowUpdate &u = table.update;
        for (int64_t tile = first_tile(before); u.read && tile < table.tiles; tile += gridDim.x) {
            if (u.table.dtype == DType::kFloat64) {
                table.packs ? mark_read<double, kPack<double>>(u, step.control, tile)
                            : mark_read<double, 1>(u, step.control, tile);
            } else {
                table.packs ? mark_read<float, kPack<float>>(u, step.control, tile)
                            : mark_read<float, 1>(u, step.control, tile);
            }
        }
        before += table.tiles;
    }
}

Table prepared(const RowUpdate &u) {
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
    const int64_t tile = kThreads * (table.packs ? pack : 1);
    table.tiles = (u.k * u.table.cols + tile - 1) / tile;
    return table;
}

}  // namespace

void row_adamw(const RowUpdate *updates, int64_t count, const StepControl &control, Stream stream) {
    for (int64_t i = 0; i < count; ++i) {
        KSL_CHECK(control.state || !updates[i].step, "a step number on the device needs the control's state");
    }
    KSL_CHECK(control.state || !control.skip_nonfinite, "skip_nonfinite needs the control's state");
    const bool lazy = std::any_of(updates, updates + count, [](const RowUpdate &u) { return u.read; });
    // All gradients are looked at before any table is written.
    for (const auto kernel : {nonfinite_kernel, mark_kernel, update_kernel}) {
        if ((kernel == nonfinite_kernel && !control.skip_nonfinite) || (kernel == mark_kernel && !lazy)) continue;
        for (int64_t first = 0; first < count; first += kTables) {
            Step step{};
            step.control = control;
            step.count = static_cast<int>(std::min<int64_t>(kTables, count - first));
            step.last = first + kTables >= count;
            int64_t tiles = 0;
            for (int i = 0; i < step.count; ++i) {
                step.tables[i] = prepared(updates[first + i]);
                tiles += step.tables[i].tiles;
            }
            // Beyond the number of blocks that the device holds at once, blocks take turns. There is at least one,
            // because step numbers advance even if no row is updated.
            const int64_t blocks = std::min(tiles, resident_blocks(kernel, kThreads, 0, stream));
            launch("row_adamw", kernel, {std::max<int64_t>(1, blocks), kThreads}, stream, step);
        }
    }
}

}  // namespace cuda
}  // namespace ksl
