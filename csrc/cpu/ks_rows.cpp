// ks_statistics and ks_decide: checks, and the loop over rows.
#include <memory>

#include "../check.h"
#include "../ks_checks.h"
#include "../ksl.h"
#include "ks_input.h"
#include "ks_kernels.h"

namespace ksl {
namespace {

// Calls f(row, outcome) for every row of two tables of one shape.
template <typename F>
void for_bucketed_rows(const Matrix &x, const Matrix &y, Goal goal, int threads, F &&f) {
    check_tables(x, y);
    if (x.rows == 0) return;
    check_row_length(x);
    const auto run = [&](auto tag, auto kernel) {
        for_rows(x, y, threads, [&](int64_t first, int64_t last) {
            RowReader<decltype(tag)> x_rows(x), y_rows(y);
            const auto workspace = std::make_unique<Workspace>(x.cols);
            for (int64_t r = first; r < last; ++r) f(r, kernel(x_rows.row(r), y_rows.row(r), x.cols, goal, *workspace));
        });
    };
    if (x.dtype == DType::kFloat64 || y.dtype == DType::kFloat64) {
        run(double{}, active_kernels().float64);
    } else if (x.dtype == DType::kFloat16 && y.dtype == DType::kFloat16) {
        run(Float16{}, active_kernels().float16);
    } else if (x.dtype == DType::kBFloat16 && y.dtype == DType::kBFloat16) {
        run(BFloat16{}, active_kernels().bfloat16);
    } else {
        run(float{}, active_kernels().float32);
    }
}

}  // namespace

void ks_statistics(const Matrix &x, const Matrix &y, int64_t threshold, int64_t *h, uint8_t *flags, int threads,
                   uint8_t *identical) {
    const int64_t floor = std::max<int64_t>(threshold, 1) - 1;
    for_bucketed_rows(x, y, Goal{floor, INT64_MAX}, threads, [&](int64_t r, const Outcome &outcome) {
        h[r] = outcome.h > floor || outcome.h < 0 ? outcome.h : 0;
        flags[r] = outcome.flags;
        if (identical) identical[r] = outcome.identical;
    });
}

void ks_decide(const Matrix &x, const Matrix &y, int64_t threshold, uint8_t *decided, uint8_t *flags, int threads) {
    const int64_t floor = threshold > INT64_MIN ? threshold - 1 : threshold;
    for_bucketed_rows(x, y, Goal{floor, threshold}, threads, [&](int64_t r, const Outcome &outcome) {
        decided[r] = !(outcome.flags & kHasNaN) && outcome.h >= threshold;
        flags[r] = outcome.flags;
    });
}

}  // namespace ksl
