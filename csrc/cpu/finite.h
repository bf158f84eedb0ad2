// Whether rows of a matrix are free of NaN and infinity. An optimizer asks this of a gradient before it writes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ks_kernels.h"
#include "spans.h"

namespace ksl {

inline bool finite(const float *values, int64_t n) { return active_kernels().finite_float32(values, n); }
inline bool finite(const double *values, int64_t n) { return active_kernels().finite_float64(values, n); }
inline bool finite(const Float16 *values, int64_t n) { return active_kernels().finite_float16(values, n); }
inline bool finite(const BFloat16 *values, int64_t n) { return active_kernels().finite_bfloat16(values, n); }

// Looks at the rows [lo, hi). Ends at the first span that holds NaN or infinity.
inline bool finite_rows(const Matrix &matrix, int64_t lo, int64_t hi) {
    return dispatch(matrix.dtype, [&](auto tag) {
        using T = decltype(tag);
        double copy[kSpan];
        for (int64_t row = lo; row < hi; ++row) {
            for (int64_t col = 0; col < matrix.cols; col += kSpan) {
                const int64_t n = std::min(kSpan, matrix.cols - col);
                if (matrix.col_stride == 1) {
                    if (!finite(static_cast<const T *>(matrix.data) + offset(matrix, row, col), n)) return false;
                } else {
                    load_span(matrix, row, col, n, copy);
                    if (!finite(copy, n)) return false;
                }
            }
        }
        return true;
    });
}

}  // namespace ksl
