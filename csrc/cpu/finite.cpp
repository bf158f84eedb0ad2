// Whether a matrix holds NaN or infinity: the look at a gradient before an optimizer writes.
#include <algorithm>
#include <atomic>
#include <cstdint>

#include "cpu/ks_kernels.h"
#include "cpu/spans.h"
#include "ksl.h"
#include "parallel.h"

namespace ksl {
namespace {

bool finite(const double *values, int64_t n) {
    return active_kernels().finite_64_bits(reinterpret_cast<const uint64_t *>(values), n, 0x7ff0000000000000u);
}
bool finite(const float *values, int64_t n) {
    return active_kernels().finite_32_bits(reinterpret_cast<const uint32_t *>(values), n, 0x7f800000u);
}
bool finite(const Float16 *values, int64_t n) { return active_kernels().finite_16_bits(&values->bits, n, 0x7c00u); }
bool finite(const BFloat16 *values, int64_t n) { return active_kernels().finite_16_bits(&values->bits, n, 0x7f80u); }

}  // namespace

bool all_finite(const Matrix &matrix, int threads) {
    std::atomic<bool> all{true};
    // Reading this much takes about as long as a second thread needs to begin and to end.
    const int64_t grain = (int64_t{1} << 17) / std::max<int64_t>(matrix.cols, 1) + 1;
    parallel_for(0, matrix.rows, grain, threads, [&](int64_t lo, int64_t hi) {
        for (int64_t row = lo; row < hi && all.load(std::memory_order_relaxed); ++row) {
            for (int64_t col = 0; col < matrix.cols; col += kSpan) {
                const int64_t n = std::min(kSpan, matrix.cols - col);
                const bool ok = dispatch(matrix.dtype, [&](auto tag) {
                    using T = decltype(tag);
                    if (matrix.col_stride == 1) {
                        return finite(static_cast<const T *>(matrix.data) + offset(matrix, row, col), n);
                    }
                    double copy[kSpan];
                    load_span(matrix, row, col, n, copy);
                    return finite(copy, n);
                });
                if (!ok) all.store(false, std::memory_order_relaxed);
            }
        }
    });
    return all.load();
}

}  // namespace ksl
