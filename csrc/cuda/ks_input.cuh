// Rows of a matrix of any dtype and strides as kernels read them: as the bits of T, which holds every value exactly.
#pragma once

#include "../ks_keys.h"
#include "device.cuh"

namespace ksl {
namespace cuda {

template <typename T, typename From>
__device__ bits_t<T> load_bits(const unsigned char *at) {
    const From value = *reinterpret_cast<const From *>(at);
    if constexpr (std::is_same_v<T, From>) {
        return bits_of(value);
    } else {
        return bits_of(static_cast<T>(load(&value)));
    }
}

// One row. T is the dtype itself, or float or double for values that it holds.
template <typename T>
struct Row {
    const unsigned char *data;
    int64_t step;  // bytes from value to value
    DType dtype;

    __device__ bits_t<T> operator[](int64_t i) const {
        const unsigned char *at = data + i * step;
        if constexpr (sizeof(T) == 2) {
            return load_bits<T, T>(at);
        } else {
            switch (dtype) {
                case DType::kFloat16:
                    return load_bits<T, Float16>(at);
                case DType::kBFloat16:
                    return load_bits<T, BFloat16>(at);
                case DType::kFloat64:
                    if constexpr (std::is_same_v<T, double>) return load_bits<T, double>(at);
                    return 0;  // the host gives no doubles to a kernel of floats
                default:
                    return load_bits<T, float>(at);
            }
        }
    }
};

// A matrix. row(r) is one of its rows.
struct Rows {
    const unsigned char *data;
    int64_t row_step, step;  // in bytes
    DType dtype;
    bool vectors;  // each row is a whole number of aligned 16-byte vectors of the type that it is read as

    template <typename T>
    __device__ Row<T> row(int64_t r) const {
        return {data + r * row_step, step, dtype};
    }
};

inline int64_t size_of(DType dtype) {
    return dispatch(dtype, [](auto tag) { return static_cast<int64_t>(sizeof tag); });
}

// `compute` is the T that kernels read it as.
inline Rows rows_of(const Matrix &m, DType compute) {
    const int64_t size = size_of(m.dtype);
    const bool aligned =
        reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.row_stride * size % 16 == 0 && m.cols * size % 16 == 0;
    return {static_cast<const unsigned char *>(m.data), m.row_stride * size, m.col_stride * size, m.dtype,
            m.dtype == compute && m.col_stride == 1 && aligned};
}

// The flags of the values of all threads of a block.
__device__ inline uint8_t all_flags(int own) {
    const bool nan = __syncthreads_or(own & kHasNaN), infinite = __syncthreads_or(own & kHasInf);
    return static_cast<uint8_t>((nan ? kHasNaN : 0) | (infinite ? kHasInf : 0));
}

// A number that separates infinity and NaN from finite values, for the one, two or half a value of a 32-bit word. Added
// to the magnitudes, it carries into the sign bits exactly where all bits of the exponent are set.
template <typename T>
struct WordOf {
    static constexpr uint32_t kSigns = sizeof(T) == 2 ? 0x80008000u : 0x80000000u;
    static constexpr uint32_t carry() {
        if (sizeof(T) == 8) return 0x00100000u;
        if (sizeof(T) == 4) return 0x00800000u;
        return 0x10001u * (0x8000u - static_cast<uint32_t>(BitsOf<T>::kInfinity));
    }
    static constexpr uint32_t kCarry = carry();
    // Which words of a vector hold exponents. Of a double it is only the second.
    static constexpr int kFirst = sizeof(T) == 8 ? 1 : 0, kStep = sizeof(T) == 8 ? 2 : 1;

    static __device__ uint32_t special(uint32_t word) { return ((word & ~kSigns) + kCarry) & kSigns; }
};

// The pairs x[i], y[i] of two rows of n values, kept in registers. They are read once and looked at as often as needed.
// This is only for rows of vectors. A thread holds kVectors vectors of 16 bytes of each row. Beyond the end, both rows
// read as zero.
template <typename T, int kThreads>
class ResidentPairs {
  public:
    using Bits = bits_t<T>;
    static constexpr bool kTwoAWord = sizeof(T) == 2;
    static constexpr int kVectors = 4, kWords = 4, kPerVector = 16 / sizeof(T);
    static constexpr int64_t kCapacity = int64_t{kThreads} * kVectors * kPerVector;

    __device__ ResidentPairs(const Row<T> &x, const Row<T> &y, int n) {
        read(x, n, x_);
        read(y, n, y_);
    }

    // Whether any pair of this thread differs in its bits. `special` tells whether any value is infinite or NaN.
    __device__ bool differ(bool &special) const {
        uint32_t different = 0, found = 0;
#pragma unroll
        for (int w = 0; w < kVectors * kWords; ++w) different |= x_[w] ^ y_[w];
#pragma unroll
        for (int w = WordOf<T>::kFirst; w < kVectors * kWords; w += WordOf<T>::kStep) {
            found |= WordOf<T>::special(x_[w]) | WordOf<T>::special(y_[w]);
        }
        special = found != 0;
        return different != 0;
    }

    // f(x, y) for the 32-bit words of this thread that differ.
    template <typename F>
    __device__ void each_word(F &&f) {
#pragma unroll
        for (int w = 0; w < kVectors * kWords; ++w) {
            x_[w] = forget(x_[w]);
            y_[w] = forget(y_[w]);
            if (x_[w] != y_[w]) f(x_[w], y_[w]);
        }
    }

    // f(x, y) for the pairs of this thread that differ. Pairs of equal values count the same on both sides of any
    // place, so no statistic of the differences needs them. Every pass unpacks the words again. Otherwise the compiler
    // would keep two buckets for each pair from one pass to the next, which is more than there are registers.
    template <typename F>
    __device__ void each(F &&f) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
#pragma unroll
            for (int w = v * kWords; w < (v + 1) * kWords; ++w) {
                x_[w] = forget(x_[w]);
                y_[w] = forget(y_[w]);
            }
#pragma unroll
            for (int i = 0; i < kPerVector; ++i) {
                const bits_t<T> x = bits(x_, v, i), y = bits(y_, v, i);
                if (x != y) f(x, y);
            }
        }
    }

    // Pair k of the kSample pairs that this thread gives to a sample of the row. Returns false if it has fewer.
    static constexpr int kSample = kVectors;
    __device__ bool sample(int k, int n, bits_t<T> &x, bits_t<T> &y) const {
        x = bits(x_, k, 0);
        y = bits(y_, k, 0);
        return begin(k) < n;
    }

  private:
    using Words = uint32_t[kVectors * kWords];

    // Where vector v of this thread begins in the row.
    static __device__ int begin(int v) { return (v * kThreads + static_cast<int>(threadIdx.x)) * kPerVector; }

    // There is no branch between the loads, so all are in flight at once.
    static __device__ void read(const Row<T> &row, int n, Words &words) {
        const auto *vectors = reinterpret_cast<const uint4 *>(row.data) + threadIdx.x;
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
            uint4 vector{0, 0, 0, 0};
            if (begin(v) < n) vector = __ldcs(vectors + v * kThreads);
            words[v * kWords] = vector.x;
            words[v * kWords + 1] = vector.y;
            words[v * kWords + 2] = vector.z;
            words[v * kWords + 3] = vector.w;
        }
    }

    static __device__ bits_t<T> bits(const Words &words, int v, int i) {
        const uint32_t *from = words + v * kWords;
        if constexpr (sizeof(T) == 8) {
            return uint64_t{from[2 * i + 1]} << 32 | from[2 * i];
        } else if constexpr (sizeof(T) == 4) {
            return from[i];
        } else {
            return static_cast<uint16_t>(from[i / 2] >> (i % 2 * 16));
        }
    }

    Words x_, y_;
};

// The same, but one value after the other and read from memory each time. This is for rows that are too long for the
// registers or that are no vectors (other strides, other dtypes, not aligned), and for rare cases. kAtOnce values are
// in flight at the same time.
template <typename T, int kThreads, int kAtOnce>
class StreamedPairs {
  public:
    using Bits = bits_t<T>;
    static constexpr bool kTwoAWord = false;

    __device__ StreamedPairs(const Row<T> &x, const Row<T> &y, int n) : x_(x), y_(y), n_(static_cast<uint32_t>(n)) {}

    __device__ bool differ(bool &special) const {
        bool different = false;
        special = false;
#pragma unroll kAtOnce
        for (uint32_t i = threadIdx.x; i < n_; i += kThreads) {
            const bits_t<T> x = x_[i], y = y_[i];
            different |= x != y;
            special |= (x & kMagnitude<T>) >= BitsOf<T>::kInfinity || (y & kMagnitude<T>) >= BitsOf<T>::kInfinity;
        }
        return different;
    }

    // The flags of the values of this thread.
    __device__ uint8_t flags() const {
        bool nan = false, infinite = false;
        const auto look = [&](bits_t<T> bits) {
            nan |= (bits & kMagnitude<T>) > BitsOf<T>::kInfinity;
            infinite |= (bits & kMagnitude<T>) == BitsOf<T>::kInfinity;
        };
#pragma unroll kAtOnce
        for (uint32_t i = threadIdx.x; i < n_; i += kThreads) {
            look(x_[i]);
            look(y_[i]);
        }
        return static_cast<uint8_t>((nan ? kHasNaN : 0) | (infinite ? kHasInf : 0));
    }

    template <typename F>
    __device__ void each(F &&f) const {
#pragma unroll kAtOnce
        for (uint32_t i = threadIdx.x; i < n_; i += kThreads) {
            const bits_t<T> x = x_[i], y = y_[i];
            if (x != y) f(x, y);
        }
    }

    static constexpr int kSample = 4;
    __device__ bool sample(int k, int n, bits_t<T> &x, bits_t<T> &y) const {
        const int64_t at = int64_t{n} / kSample * k + threadIdx.x;
        x = y = 0;
        if (at >= n) return false;
        x = x_[at];
        y = y_[at];
        return true;
    }

  private:
    Row<T> x_, y_;
    uint32_t n_;
};

// Ways to the same results, of which the benchmark tells the fastest. Only float32 and bfloat16 have all of them, and
// only for rows that registers hold.
enum class Variant {
    kPlain,
    kInterval,  // gathers without a look at values outside the first and the last bucket that is looked into
    kFast,      // and finds the buckets of float32 without a conversion, and two of bfloat16 at once
};
template <typename T>
constexpr bool kHasVariants = std::is_same_v<T, float> || std::is_same_v<T, BFloat16>;

// Rows of two tables of one shape, and what is asked of each: its h if that is above `floor`, else just `floor`. From
// `stop` on, any value that h reaches is as good as h. Either h or decided is null.
struct BucketProblem {
    Rows x, y;
    int64_t rows, first_row;
    int n;
    int floor, stop;
    int64_t *h;
    uint8_t *decided, *flags;
    Variant variant;
};

// The bucket engine of ks_engine.cuh. It is compiled once for each type, in two files that compile in parallel.
template <typename T>
void launch_bucket_rows(const BucketProblem &problem, const char *what, Stream stream);

extern template void launch_bucket_rows<float>(const BucketProblem &, const char *, Stream);
extern template void launch_bucket_rows<double>(const BucketProblem &, const char *, Stream);
extern template void launch_bucket_rows<Float16>(const BucketProblem &, const char *, Stream);
extern template void launch_bucket_rows<BFloat16>(const BucketProblem &, const char *, Stream);

}  // namespace cuda
}  // namespace ksl
