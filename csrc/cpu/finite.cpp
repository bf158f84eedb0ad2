// Tells whether a matrix holds NaN or infinity.
#include "cpu/finite.h"

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "ksl.h"
#include "parallel.h"

namespace ksl {

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
