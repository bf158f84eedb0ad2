// AdamW on some rows of a table (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization").
//
// The operations and their order are those of torch.optim.AdamW's single-tensor implementation, each correctly rounded.
// Torch's own vector code fuses some multiplications and additions into one rounding, and its square root, from a math
// library, may be one unit off. So the two agree to a unit or two in the last place of each step.
#include <algorithm>
#include <cmath>
#include <vector>

#include "adamw.h"
#include "check.h"
#include "cpu/finite.h"
#include "cpu/ks_kernels.h"
#include "cpu/spans.h"
#include "ksl.h"
#include "parallel.h"

namespace ksl {
namespace {

template <typename C>
AdamWCoefficients<C> coefficients_of(const AdamW &h) {
    const auto step = static_cast<double>(h.step);
    AdamWCoefficients<C> c;
    c.set_first(h, h.lr, std::pow(h.beta1, step));
    c.set_second(h, std::pow(h.beta2, step));
    return c;
}

AdamWSpan<float> adamw_span(float) { return active_kernels().adamw_float32; }
AdamWSpan<double> adamw_span(double) { return active_kernels().adamw_float64; }

DType dtype_of(float) { return DType::kFloat32; }
DType dtype_of(double) { return DType::kFloat64; }

// Whether the rows of a matrix can be used in place, as arrays of C.
template <typename C, typename M>
bool in_place(const M &matrix) {
    return matrix.dtype == dtype_of(C{}) && matrix.col_stride == 1;
}

template <typename C>
bool update_rows(const MutableMatrix &table, const int64_t *row_ids, int64_t k, C *master, const Matrix &grad,
                 C *exp_avg, C *exp_avg_sq, const AdamW &hyper, bool only_finite, int threads) {
    const AdamWCoefficients<C> coefficients = coefficients_of<C>(hyper);
    const AdamWSpan<C> update = adamw_span(C{});
    const int64_t cols = table.cols;
    const bool grad_in_place = in_place<C>(grad), table_in_place = !master && in_place<C>(table);
    // About ten microseconds of work in a chunk, so that an update of fewer rows does not wait for a second thread.
    const int64_t grain = (int64_t{1} << 15) / std::max<int64_t>(cols, 1) + 1;
    const auto look = [&](int64_t lo, int64_t hi) { return !only_finite || finite_rows(grad, lo, hi); };
    return parallel_for_if(k, grain, threads, look, [&](int64_t lo, int64_t hi) {
        C grad_copy[kSpan], param_copy[kSpan];
        for (int64_t i = lo; i < hi; ++i) {
            const int64_t row = row_ids ? row_ids[i] : i;
            for (int64_t col = 0; col < cols; col += kSpan) {
                const int64_t n = std::min(kSpan, cols - col), at = i * cols + col;
                C *param = master ? master + at : param_copy;
                const C *gradient = grad_copy;
                if (table_in_place) {
                    param = static_cast<C *>(table.data) + offset(table, row, col);
                } else if (!master) {
                    load_span(table, row, col, n, param);
                }
                if (grad_in_place) {
                    gradient = static_cast<const C *>(grad.data) + offset(grad, i, col);
                } else {
                    load_span(grad, i, col, n, grad_copy);
                }
                update(coefficients, n, gradient, param, exp_avg + at, exp_avg_sq + at);
                if (!table_in_place) store_span(table, row, col, n, param);
            }
        }
    });
}

// Two threads must never write one row, and no row outside the table.
void check_rows(const int64_t *row_ids, int64_t k, int64_t rows) {
    if (!row_ids) {
        KSL_CHECK(k <= rows, "grad has ", k, " rows, but table has ", rows);
        return;
    }
    std::vector<bool> seen(static_cast<size_t>(rows));
    for (int64_t i = 0; i < k; ++i) {
        const int64_t row = row_ids[i];
        KSL_CHECK(0 <= row && row < rows, "rows[", i, "] is ", row, ", outside the table's rows 0 to ", rows - 1);
        KSL_CHECK(!seen[static_cast<size_t>(row)], "rows holds ", row, " twice; each row can be updated once a step");
        seen[static_cast<size_t>(row)] = true;
    }
}

bool update(const MutableMatrix &table, const int64_t *row_ids, int64_t k, void *master, const Matrix &grad,
            void *exp_avg, void *exp_avg_sq, const AdamW &hyper, bool only_finite, int threads) {
    KSL_CHECK(grad.rows == k && grad.cols == table.cols, "grad is [", grad.rows, ", ", grad.cols, "], expected [", k,
              ", ", table.cols, "]");
    KSL_CHECK(hyper.step >= 1, "step is ", hyper.step, ", but steps count from 1");
    check_rows(row_ids, k, table.rows);
    if (table.dtype == DType::kFloat64) {
        KSL_CHECK(!master, "master is for tables narrower than float32");
        return update_rows<double>(table, row_ids, k, nullptr, grad, static_cast<double *>(exp_avg),
                                   static_cast<double *>(exp_avg_sq), hyper, only_finite, threads);
    } else {
        KSL_CHECK(!master || table.dtype != DType::kFloat32, "master is for tables narrower than float32");
        return update_rows<float>(table, row_ids, k, static_cast<float *>(master), grad, static_cast<float *>(exp_avg),
                                  static_cast<float *>(exp_avg_sq), hyper, only_finite, threads);
    }
}

}  // namespace

void row_adamw(const MutableMatrix &table, const int64_t *row_ids, int64_t k, void *master, const Matrix &grad,
               void *exp_avg, void *exp_avg_sq, const AdamW &hyper, int threads) {
    update(table, row_ids, k, master, grad, exp_avg, exp_avg_sq, hyper, false, threads);
}

bool row_adamw_if_finite(const MutableMatrix &table, const int64_t *row_ids, int64_t k, void *master,
                         const Matrix &grad, void *exp_avg, void *exp_avg_sq, float *step, AdamW hyper, int threads) {
    hyper.step = static_cast<int64_t>(*step) + 1;
    const bool made = update(table, row_ids, k, master, grad, exp_avg, exp_avg_sq, hyper, true, threads);
    if (made) *step += 1;
    return made;
}

}  // namespace ksl
