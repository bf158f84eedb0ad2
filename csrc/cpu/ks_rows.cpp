// ks_rows, ks_statistics, ks_decide: checks, and the loop over rows.
#include <limits>
#include <memory>
#include <numeric>

#include "../check.h"
#include "../ks_checks.h"
#include "../ksl.h"
#include "../parallel.h"
#include "ks_input.h"
#include "ks_kernels.h"
#include "ks_sort.h"

namespace ksl {
namespace {

// f(first, last) over chunks of about 2^17 values, long enough to pay for their buffers and short enough to balance.
template <typename F>
void for_rows(const Matrix &x, const Matrix &y, int threads, F &&f) {
    const int64_t grain = (int64_t{1} << 17) / (x.cols + y.cols + 1);
    parallel_for(0, x.rows, grain, threads, [&](int64_t first, int64_t last) {
        IeeeMode ieee;
        f(first, last);
    });
}

// f(T{}) with the narrower of float and double that holds the values of both.
template <typename F>
void with_compute_type(const Matrix &x, const Matrix &y, F &&f) {
    if (x.dtype == DType::kFloat64 || y.dtype == DType::kFloat64) {
        f(double{});
    } else {
        f(float{});
    }
}

// Calls f(row, flags, sides) for every row. sides is null for a row with NaN.
template <typename T, typename F>
void for_sorted_rows(const Matrix &x, const Matrix &y, int threads, F &&f) {
    using Key = key_t<T>;
    const int64_t n = x.cols, m = y.cols, gcd = std::gcd(n, m);
    for_rows(x, y, threads, [&](int64_t first, int64_t last) {
        RowReader<T> x_rows(x), y_rows(y);
        std::vector<Key> x_keys(n), y_keys(m), scratch(std::max(n, m));
        for (int64_t r = first; r < last; ++r) {
            const uint8_t flags =
                ordered_keys(x_rows.row(r), n, x_keys.data()) | ordered_keys(y_rows.row(r), m, y_keys.data());
            if (flags & kHasNaN) {
                f(r, flags, static_cast<const Sides<Key> *>(nullptr));
                continue;
            }
            sort_keys(x_keys.data(), n, scratch.data());
            sort_keys(y_keys.data(), m, scratch.data());
            const Sides<Key> sides = walk_sorted(x_keys.data(), n, y_keys.data(), m, gcd);
            f(r, flags, &sides);
        }
    });
}

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

void ks_rows(const Matrix &x, const Matrix &y, int64_t *plus, int64_t *minus, double *plus_at, double *minus_at,
             uint8_t *flags, int threads) {
    check_samples(x, y);
    if (x.rows == 0) return;
    check_unit(x, y);
    with_compute_type(x, y, [&](auto tag) {
        using T = decltype(tag);
        for_sorted_rows<T>(x, y, threads, [&](int64_t r, uint8_t row_flags, const Sides<key_t<T>> *sides) {
            const double nan = std::numeric_limits<double>::quiet_NaN();
            flags[r] = row_flags;
            plus[r] = sides ? sides->plus.count : -1;
            minus[r] = sides ? sides->minus.count : -1;
            if (plus_at) plus_at[r] = sides ? static_cast<double>(value_of_key<T>(sides->plus.at)) : nan;
            if (minus_at) minus_at[r] = sides ? static_cast<double>(value_of_key<T>(sides->minus.at)) : nan;
        });
    });
}

void ks_statistics(const Matrix &x, const Matrix &y, int64_t threshold, int64_t *h, uint8_t *flags, int threads) {
    const int64_t floor = std::max<int64_t>(threshold, 1) - 1;
    for_bucketed_rows(x, y, Goal{floor, INT64_MAX}, threads, [&](int64_t r, const Outcome &outcome) {
        h[r] = outcome.h > floor || outcome.h < 0 ? outcome.h : 0;
        flags[r] = outcome.flags;
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
