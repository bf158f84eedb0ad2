// A tile of a table in a step of AdamW: which of its elements a thread takes, and what is done to them. row_adamw.cu
// has the loops over tiles and tables.
#pragma once

#include <cmath>
#include <type_traits>

#include "../adamw.h"
#include "../powers.h"
#include "device.cuh"

namespace ksl {
namespace cuda {

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

template <int kWidth>
using Width = std::integral_constant<int, kWidth>;

// f(C{}, Width<>{}) with the type in which a table is computed, and with how many of its elements are moved together.
template <typename F>
__device__ __forceinline__ void with_pack(const Table &table, F &&f) {
    if (table.update.table.dtype == DType::kFloat64) {
        table.packs ? f(double{}, Width<kPack<double>>{}) : f(double{}, Width<1>{});
    } else {
        table.packs ? f(float{}, Width<kPack<float>>{}) : f(float{}, Width<1>{});
    }
}

// What all threads of a block need to know about a table.
template <typename C>
struct Scalars {
    AdamWCoefficients<C> coefficients;
    C grad_scale;
    bool left_out;
};

__device__ inline bool left_out(const StepControl &control) {
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

// The place of a thread's pack of a tile in the state, in the table and in the gradient. A block has kThreads threads.
template <int kThreads, int kWidth>
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

    template <int kThreads>
    __device__ void load(const RowUpdate &u, const Place<kThreads, kWidth> &place) {
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

    template <int kThreads>
    __device__ void store(const RowUpdate &u, const Place<kThreads, kWidth> &place) const {
        if (!place.exists) return;
        store_pack<C>(u.exp_avg, place.element, exp_avg);
        store_pack<C>(u.exp_avg_sq, place.element, exp_avg_sq);
        if (u.master) store_pack<C>(u.master, place.element, param);
        store_elements(u.table.dtype, u.table.data, offset(u.table, place.row, place.col), param);
    }
};

// Tile after tile of a table, from `tile` on, each time as many further as there are blocks.
template <int kThreads, typename C, int kWidth>
__device__ void update_table(const Table &table, const StepControl &control, Scalars<C> &shared, int64_t tile) {
    const RowUpdate &u = table.update;
    Place<kThreads, kWidth> place(u, tile);
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
        place = Place<kThreads, kWidth>(u, tile);
        place.leave_out_unread(u);
        operands.load(u, place);
    }
}

// Whether a thread's part of a gradient holds NaN or Inf. Only these are different from 0 when multiplied by 0. A
// double holds the values of every dtype.
template <int kThreads, int kWidth>
__device__ bool has_nonfinite(const RowUpdate &u, int64_t tile) {
    const Place<kThreads, kWidth> place(u, tile);
    double grad[kWidth] = {}, sum = 0;
    if (place.exists) load_elements(u.grad.dtype, u.grad.data, offset(u.grad, place.grad_row, place.col), grad);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += grad[j] * 0;
    return sum != 0;
}

// Mark the row of each pack whose gradient holds a number other than 0, after the division by GradScaler's scale.
template <int kThreads, typename C, int kWidth>
__device__ void mark_read(const RowUpdate &u, const StepControl &control, int64_t tile) {
    const Place<kThreads, kWidth> place(u, tile);
    if (!place.exists) return;
    C grad[kWidth];
    load_elements(u.grad.dtype, u.grad.data, offset(u.grad, place.grad_row, place.col), grad);
    const C scale = control.grad_scale ? static_cast<C>(*control.grad_scale) : C(1);
    bool found = false;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) found |= grad[j] / scale != 0;
    if (found) u.read[place.i] = 1;  // all who write, write the same
}

__device__ inline void prefetch_elements(DType dtype, const void *data, int64_t at) {
    device_dispatch(dtype, [&](auto tag) { prefetch(static_cast<const decltype(tag) *>(data) + at); });
}

// Asks memory for what an update will read. Nothing waits for it, and no bit depends on it.
template <int kThreads, typename C, int kWidth>
__device__ void prefetch_pack(const RowUpdate &u, int64_t tile) {
    const Place<kThreads, kWidth> place(u, tile);
    if (!place.exists) return;
    prefetch_elements(u.grad.dtype, u.grad.data, offset(u.grad, place.grad_row, place.col));
    prefetch(static_cast<const C *>(u.exp_avg) + place.element);
    prefetch(static_cast<const C *>(u.exp_avg_sq) + place.element);
    if (u.master) {
        prefetch(static_cast<const C *>(u.master) + place.element);
    } else {
        prefetch_elements(u.table.dtype, u.table.data, offset(u.table, place.row, place.col));
    }
}

}  // namespace cuda
}  // namespace ksl
