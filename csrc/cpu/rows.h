// Rows of a matrix of any dtype and stride: pieces of a row in the type of a computation, the search for NaN and
// infinity, and whole rows, one after the other, as contiguous values of one type.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "../dtypes.h"
#include "../ksl.h"
#include "../parallel.h"
#include "ks_kernels.h"

namespace ksl {

// Elements per piece. Three float buffers of this size stay in the first-level cache.
constexpr int64_t kSpan = 1024;

// Chunk size for parallel_for over rows, with enough elements to outweigh the cost of a chunk.
inline int64_t rows_per_chunk(int64_t cols) { return 16384 / (cols > 0 ? cols : 1) + 1; }

template <typename M>
inline int64_t offset(const M &m, int64_t row, int64_t col) {
    return row * m.row_stride + col * m.col_stride;
}

// buffer[i] = m[row, col + i] for i in [0, n).
template <typename M, typename C>
void load_span(const M &m, int64_t row, int64_t col, int64_t n, C *buffer) {
    dispatch(m.dtype, [&](auto tag) {
        using T = decltype(tag);
        const T *from = static_cast<const T *>(m.data) + offset(m, row, col);
        if (m.col_stride == 1) {
            for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<C>(load(from + i));
        } else {
            for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<C>(load(from + i * m.col_stride));
        }
    });
}

// m[row, col + i] = buffer[i] for i in [0, n).
template <typename C>
void store_span(const MutableMatrix &m, int64_t row, int64_t col, int64_t n, const C *buffer) {
    dispatch(m.dtype, [&](auto tag) {
        using T = decltype(tag);
        T *to = static_cast<T *>(m.data) + offset(m, row, col);
        if (m.col_stride == 1) {
            for (int64_t i = 0; i < n; ++i) store(to + i, buffer[i]);
        } else {
            for (int64_t i = 0; i < n; ++i) store(to + i * m.col_stride, buffer[i]);
        }
    });
}

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

// f(first, last) over chunks of about 2^17 values, long enough to pay for their buffers and short enough to balance.
template <typename F>
void for_rows(const Matrix &x, const Matrix &y, int threads, F &&f) {
    const int64_t grain = (int64_t{1} << 17) / (x.cols + y.cols + 1);
    parallel_for(0, x.rows, grain, threads, f);
}

// row(r) is row r of the matrix as contiguous T, which holds every value of the matrix's dtype exactly. It is the
// matrix's own memory if possible, and otherwise a copy that is valid until the next call. If the columns are strided,
// a block of rows is copied at a time, because in a transposed table one cache line holds pieces of several rows.
template <typename T>
class RowReader {
  public:
    explicit RowReader(const Matrix &matrix) : matrix_(matrix) {}

    const T *row(int64_t r) {
        if constexpr (std::is_same_v<T, int64_t>) return integers(r);
        return dispatch(matrix_.dtype, [&](auto tag) -> const T * {
            using From = decltype(tag);
            constexpr bool kSame = std::is_same_v<From, T>;
            if constexpr (kSame || std::is_same_v<T, double> ||
                          (std::is_same_v<T, float> && !std::is_same_v<From, double>)) {
                const From *data = static_cast<const From *>(matrix_.data) + r * matrix_.row_stride;
                if constexpr (kSame) {
                    if (matrix_.col_stride == 1) return data;
                }
                if (r < first_ || r >= first_ + count_) copy(r, data);
                return buffer_.data() + (r - first_) * matrix_.cols;
            } else {
                fail("a row of dtype code ", static_cast<int32_t>(matrix_.dtype), " was read as a narrower type");
            }
        });
    }

  private:
    // Integers as int64_t in their order: uint64_t less 2^63.
    const int64_t *integers(int64_t r) {
        const int64_t flip = matrix_.dtype == DType::kUInt64 ? INT64_MIN : 0;
        const int64_t *data = static_cast<const int64_t *>(matrix_.data) + r * matrix_.row_stride;
        if (matrix_.col_stride == 1 && flip == 0) return data;
        if (r < first_ || r >= first_ + count_) {
            copy_block(
                r, [&](int64_t k, int64_t j) { return data[k * matrix_.row_stride + j * matrix_.col_stride] ^ flip; });
        }
        return buffer_.data() + (r - first_) * matrix_.cols;
    }

    static constexpr int64_t kBlockRows = 16, kBlockElements = 1 << 17;

    template <typename From>
    void copy(int64_t r, const From *data) {
        const int64_t row_step = matrix_.row_stride, step = matrix_.col_stride;
        copy_block(r, [&](int64_t k, int64_t j) { return widen(data + k * row_step + j * step); });
    }

    // value(k, j) is value j of row r + k.
    template <typename F>
    void copy_block(int64_t r, F &&value) {
        const int64_t cols = matrix_.cols;
        first_ = r;
        count_ = matrix_.col_stride == 1 ? 1 : std::clamp<int64_t>(kBlockElements / cols, 1, kBlockRows);
        count_ = std::min(count_, matrix_.rows - r);
        buffer_.resize(static_cast<size_t>(count_ * cols));
        for (int64_t j = 0; j < cols; ++j) {
            for (int64_t k = 0; k < count_; ++k) buffer_[k * cols + j] = value(k, j);
        }
    }

    template <typename From>
    static T widen(const From *from) {
        if constexpr (std::is_same_v<From, T>) {
            return *from;
        } else {
            return static_cast<T>(load(from));
        }
    }

    Matrix matrix_;
    std::vector<T> buffer_;
    int64_t first_ = 0, count_ = 0;
};

}  // namespace ksl
