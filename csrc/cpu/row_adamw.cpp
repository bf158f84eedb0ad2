// AdamW on some rows of a table (Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization").
//
// The operations and their order are those of torch.optim.AdamW's single-tensor implementation, each correctly rounded.
// Torch's own vector code fuses some multiplications and additions into one rounding, and its square root, from a math
// library, may be one unit off. So the two agree to a unit or two in the last place of each step.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "adamw.h"
#include "check.h"
#include "cpu/ks_kernels.h"
#include "cpu/rows.h"
#include "ieee_mode.h"
#include "ksl.h"
#include "parallel.h"
#include "powers.h"

namespace ksl {
namespace {

template <typename C>
AdamWCoefficients<C> coefficients_of(const AdamW &h) {
    AdamWCoefficients<C> c;
    c.set_first(h, h.lr, power_of(h.beta1, h.step, SplitError{}));
    c.set_second(h, power_of(h.beta2, h.step, SplitError{}));
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

// Whether any of the numbers is not zero. A row with a gradient ends the search within its first numbers.
inline bool any_nonzero(const double *values, int64_t n) {
    return std::any_of(values, values + n, [](double value) { return value != 0; });
}

// In blocks, whose inner loop the compiler can make vector code of. NaN counts as different from 0.
inline bool any_nonzero(const float *values, int64_t n) {
    constexpr int64_t kBlock = 64;
    for (int64_t first = 0; first < n; first += kBlock) {
        int found = 0;
        for (int64_t i = first; i < std::min(first + kBlock, n); ++i) found |= values[i] != 0;
        if (found) return true;
    }
    return false;
}

// Whether a row of a gradient holds a number other than zero, in the type of the computation.
template <typename C>
bool has_gradient(const Matrix &grad, int64_t row) {
    C copy[kSpan];
    for (int64_t col = 0; col < grad.cols; col += kSpan) {
        const int64_t n = std::min(kSpan, grad.cols - col);
        if (in_place<C>(grad)) {
            if (any_nonzero(static_cast<const C *>(grad.data) + offset(grad, row, col), n)) return true;
        } else {
            load_span(grad, row, col, n, copy);
            if (any_nonzero(copy, n)) return true;
        }
    }
    return false;
}

template <typename C>
bool update_rows(const MutableMatrix &table, const int64_t *row_ids, int64_t k, C *master, const Matrix &grad,
                 C *exp_avg, C *exp_avg_sq, const AdamW &hyper, bool lazy, bool only_finite, int threads) {
    IeeeMode ieee;  // for the coefficients; the loop below has its own
    const AdamWCoefficients<C> coefficients = coefficients_of<C>(hyper);
    const AdamWSpan<C> update = adamw_span(C{});
    const int64_t cols = table.cols;
    const bool grad_in_place = in_place<C>(grad), table_in_place = !master && in_place<C>(table);
    // About ten microseconds of work in a chunk, so that an update of fewer rows does not wait for a second thread.
    const int64_t grain = (int64_t{1} << 15) / std::max<int64_t>(cols, 1) + 1;
    const auto look = [&](int64_t lo, int64_t hi) noexcept { return !only_finite || finite_rows(grad, lo, hi); };
    return parallel_for_if(k, grain, threads, look, [&](int64_t lo, int64_t hi) noexcept {
        C grad_copy[kSpan], param_copy[kSpan];
        for (int64_t i = lo; i < hi; ++i) {
            if (lazy && !has_gradient<C>(grad, i)) continue;
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
            void *exp_avg, void *exp_avg_sq, const AdamW &hyper, bool lazy, bool only_finite, int threads) {
    KSL_CHECK(grad.rows == k && grad.cols == table.cols, "grad is [", grad.rows, ", ", grad.cols, "], expected [", k,
              ", ", table.cols, "]");
    for (const DType dtype : {table.dtype, grad.dtype}) dispatch(dtype, [](auto) {});  // the loop must not throw
    KSL_CHECK(hyper.step >= 1, "step is ", hyper.step, ", but steps count from 1");
    check_rows(row_ids, k, table.rows);
    if (table.dtype == DType::kFloat64) {
        KSL_CHECK(!master, "master is for tables narrower than float32");
        return update_rows<double>(table, row_ids, k, nullptr, grad, static_cast<double *>(exp_avg),
                                   static_cast<double *>(exp_avg_sq), hyper, lazy, only_finite, threads);
    } else {
        KSL_CHECK(!master || table.dtype != DType::kFloat32, "master is for tables narrower than float32");
        return update_rows<float>(table, row_ids, k, static_cast<float *>(master), grad, static_cast<float *>(exp_avg),
                                  static_cast<float *>(exp_avg_sq), hyper, lazy, only_finite, threads);
    }
}

}  // namespace

void row_adamw(const MutableMatrix &table, const int64_t *row_ids, int64_t k, void *master, const Matrix &grad,
               void *exp_avg, void *exp_avg_sq, const AdamW &hyper, bool lazy, int threads) {
    update(table, row_ids, k, master, grad, exp_avg, exp_avg_sq, hyper, lazy, false, threads);
}

bool row_adamw_if_finite(const MutableMatrix &table, const int64_t *row_ids, int64_t k, void *master,
                         const Matrix &grad, void *exp_avg, void *exp_avg_sq, float *step, AdamW hyper, bool lazy,
                         int threads) {
    hyper.step = static_cast<int64_t>(*step) + 1;
    const bool made = update(table, row_ids, k, master, grad, exp_avg, exp_avg_sq, hyper, lazy, true, threads);
    if (made) *step += 1;
    return made;
}

bool all_finite(const Matrix &matrix, int threads) {
    std::atomic<bool> all{true};
    // To read this much takes about as long as a second thread needs to begin and to end.
    const int64_t grain = (int64_t{1} << 17) / std::max<int64_t>(matrix.cols, 1) + 1;
    parallel_for(0, matrix.rows, grain, threads, [&](int64_t lo, int64_t hi) {
        if (all.load(std::memory_order_relaxed) && !finite_rows(matrix, lo, hi)) all.store(false);
    });
    return all.load();
}

}  // namespace ksl
