// Rows of a matrix, one after the other, as contiguous values of one type.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "../dtypes.h"
#include "../ksl.h"

namespace ksl {

// IEEE arithmetic in this scope, whatever torch.set_flush_denormal(True) or other code has set in this thread. A
// subnormal that is widened must not become zero.
class IeeeMode {
  public:
#if defined(__SSE__)
    IeeeMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }  // the power-on value: no flushing, nothing trapped
    ~IeeeMode() { _mm_setcsr(saved_); }
    IeeeMode(const IeeeMode &) = delete;
    IeeeMode &operator=(const IeeeMode &) = delete;

  private:
    unsigned saved_;
#endif
};

// row(r) is row r of the matrix as contiguous T, which holds every value of the matrix's dtype exactly. It is the
// matrix's own memory if possible, and otherwise a copy that is valid until the next call. If the columns are strided,
// a block of rows is copied at a time, because in a transposed table one cache line holds pieces of several rows.
template <typename T>
class RowReader {
  public:
    explicit RowReader(const Matrix &matrix) : matrix_(matrix) {}

    const T *row(int64_t r) {
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
    static constexpr int64_t kBlockRows = 16, kBlockElements = 1 << 17;

    template <typename From>
    void copy(int64_t r, const From *data) {
        const int64_t cols = matrix_.cols, step = matrix_.col_stride;
        first_ = r;
        count_ = step == 1 ? 1 : std::clamp<int64_t>(kBlockElements / cols, 1, kBlockRows);
        count_ = std::min(count_, matrix_.rows - r);
        buffer_.resize(static_cast<size_t>(count_ * cols));
        for (int64_t j = 0; j < cols; ++j) {
            for (int64_t k = 0; k < count_; ++k) {
                buffer_[k * cols + j] = widen(data + k * matrix_.row_stride + j * step);
            }
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
