// Copies pieces of matrix rows, of any dtype and stride, to and from a contiguous buffer in the type of the
// computation.
#pragma once

#include "dtypes.h"

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

}  // namespace ksl
