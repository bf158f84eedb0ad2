// ks_rows, ks_statistics and ks_decide on a GPU: checks, the choice of a type, and the kernel of ks_rows.
#include <algorithm>
#include <limits>
#include <numeric>

#include "../ks_checks.h"
#include "ks_kernels.cuh"
#include "ks_sort.cuh"

namespace ksl {
namespace cuda {
namespace {

constexpr int kSortThreads = 256;
constexpr int64_t kScratch = int64_t{1} << 28;

struct SortProblem {
    Rows x, y;
    int64_t rows, n, m, x_unit, y_unit;
    int x_bits, y_bits;  // the size of each sample's sorting buffer, as a power of two of keys
    void *scratch;       // for the buffers of all blocks; null if they are in shared memory
    int64_t *plus, *minus;
    double *plus_at, *minus_at;
    uint8_t *flags;
};

// Writes the keys of a row, padded with keys that no value has and that come last. Returns the flags of this thread's
// keys.
template <typename T>
__device__ uint8_t read_keys(const Row<T> &row, int64_t n, int bits, key_t<T> *keys) {
    bool infinite = false, nan = false;
    for (int64_t i = threadIdx.x; i < int64_t{1} << bits; i += kSortThreads) {
        keys[i] = static_cast<key_t<T>>(~key_t<T>{0});
        if (i >= n) continue;
        const bits_t<T> value = row[i];
        nan |= (value & kMagnitude<T>) > BitsOf<T>::kInfinity;
        infinite |= (value & kMagnitude<T>) == BitsOf<T>::kInfinity;
        keys[i] = ordered_key(value);
    }
    return static_cast<uint8_t>((nan ? kHasNaN : 0) | (infinite ? kHasInf : 0));
}

// Bytes of the storage, rounded up to a multiple of 16.
template <typename Key>
constexpr size_t kSortStorage = (sizeof(typename BlockReduce<Side<Key>, kSortThreads>::Storage) + 15) / 16 * 16;

template <typename T>
__global__ void __launch_bounds__(kSortThreads, 4) ks_sorted_rows(SortProblem problem) {
    using Key = key_t<T>;
    using Reduce = BlockReduce<Side<Key>, kSortThreads>;
    KSL_DYNAMIC_SHARED(memory);  // the storage of the reduction, then the keys
    auto &storage = *reinterpret_cast<typename Reduce::Storage *>(memory);
    const int64_t x_size = int64_t{1} << problem.x_bits, y_size = int64_t{1} << problem.y_bits;
    Key *x_keys = reinterpret_cast<Key *>(memory + kSortStorage<Key>);
    if (problem.scratch) x_keys = static_cast<Key *>(problem.scratch) + blockIdx.x * (x_size + y_size);
    Key *y_keys = x_keys + x_size;
    for (int64_t r = blockIdx.x; r < problem.rows; r += gridDim.x) {
        const int own = read_keys(problem.x.row<T>(r), problem.n, problem.x_bits, x_keys) |
                        read_keys(problem.y.row<T>(r), problem.m, problem.y_bits, y_keys);
        const uint8_t flags = all_flags(own);
        const bool nan = flags & kHasNaN;
        if (!nan) {
            sort_keys(x_keys, problem.x_bits);
            sort_keys(y_keys, problem.y_bits);
        }
        const SortedPair<Key> sorted{x_keys, y_keys, problem.n, problem.m, problem.x_unit, problem.y_unit};
        for (int sign = 1; sign >= -1; sign -= 2) {
            Side<Key> side{-1, 0, false, 0};
            if (!nan) side = Reduce::reduce(storage, sorted.best_side(sign), BetterSide{});
            __syncthreads();  // before the storage or the keys are used again
            if (threadIdx.x != 0) continue;
            (sign > 0 ? problem.plus : problem.minus)[r] = side.count;
            double *places = sign > 0 ? problem.plus_at : problem.minus_at;
            if (places == nullptr) continue;
            places[r] = nan ? std::numeric_limits<double>::quiet_NaN() : static_cast<double>(value_of_key<T>(side.at));
        }
        if (threadIdx.x == 0) problem.flags[r] = flags;
    }
}

int bits_for(int64_t n) {
    int bits = 0;
    while (int64_t{1} << bits < n) ++bits;
    return bits;
}

template <typename T>
void launch_sorted_rows(SortProblem problem, Stream stream) {
    const size_t bytes = ((size_t{1} << problem.x_bits) + (size_t{1} << problem.y_bits)) * sizeof(key_t<T>);
    constexpr size_t kStorage = kSortStorage<key_t<T>>;
    const auto most = static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device));
    const bool fits = kStorage + bytes <= most;
    const size_t shared = fits ? kStorage + bytes : kStorage;
    int64_t blocks = std::min(problem.rows, resident_blocks(ks_sorted_rows<T>, kSortThreads, shared, stream));
    // Rows that are too long for shared memory are sorted in device memory, as many at a time as kScratch holds.
    if (!fits) blocks = std::clamp<int64_t>(kScratch / static_cast<int64_t>(bytes), 1, blocks);
    const ScratchMemory scratch(fits ? 0 : static_cast<size_t>(blocks) * bytes, stream);
    problem.scratch = scratch.data();
    launch("ks_rows", ks_sorted_rows<T>, {blocks, kSortThreads, shared}, stream, problem);
}

// f(T{}, code of T) with the narrower of float and double that holds the values of both.
template <typename F>
void with_wide_type(const Matrix &x, const Matrix &y, F &&f) {
    if (x.dtype == DType::kFloat64 || y.dtype == DType::kFloat64) {
        f(double{}, DType::kFloat64);
    } else {
        f(float{}, DType::kFloat32);
    }
}

void bucket_rows(const Matrix &x, const Matrix &y, BucketProblem problem, const char *what, Stream stream) {
    const auto run = [&](auto tag, DType compute) {
        problem.x = rows_of(x, compute);
        problem.y = rows_of(y, compute);
        problem.rows = x.rows;
        problem.n = static_cast<int>(x.cols);
        launch_bucket_rows<decltype(tag)>(problem, what, stream);
    };
    if (x.dtype == DType::kFloat16 && y.dtype == DType::kFloat16) {
        run(Float16{}, DType::kFloat16);
    } else if (x.dtype == DType::kBFloat16 && y.dtype == DType::kBFloat16) {
        run(BFloat16{}, DType::kBFloat16);
    } else {
        with_wide_type(x, y, run);
    }
}

// Counts of both rows together fit 32 bits.
void check_row_length_here(const Matrix &x, const Matrix &y) {
    KSL_CHECK(std::max(x.cols, y.cols) <= int64_t{1} << 30, "rows of ", x.cols, " and ", y.cols,
              " values; expected at most 2^30 on a GPU: compare them on the CPU");
}

// The same question about h, which lies in 0..cols, with a threshold in 0..cols + 1.
int clamped(int64_t threshold, int64_t cols) {
    return static_cast<int>(std::min(std::max<int64_t>(threshold, 0), cols + 1));
}

}  // namespace

void ks_rows(const Matrix &x, const Matrix &y, int64_t *plus, int64_t *minus, double *plus_at, double *minus_at,
             uint8_t *flags, Stream stream) {
    check_samples(x, y);
    if (x.rows == 0) return;
    check_unit(x, y);
    check_row_length_here(x, y);
    const int64_t gcd = std::gcd(x.cols, y.cols);
    with_wide_type(x, y, [&](auto tag, DType compute) {
        const SortProblem problem{rows_of(x, compute),
                                  rows_of(y, compute),
                                  x.rows,
                                  x.cols,
                                  y.cols,
                                  y.cols / gcd,
                                  x.cols / gcd,
                                  bits_for(x.cols),
                                  bits_for(y.cols),
                                  nullptr,
                                  plus,
                                  minus,
                                  plus_at,
                                  minus_at,
                                  flags};
        launch_sorted_rows<decltype(tag)>(problem, stream);
    });
}

void ks_statistics(const Matrix &x, const Matrix &y, int64_t threshold, int64_t *h, uint8_t *flags, Stream stream) {
    check_tables(x, y);
    if (x.rows == 0) return;
    check_row_length_here(x, y);
    BucketProblem problem{};
    problem.floor = std::max(clamped(threshold, x.cols), 1) - 1;
    problem.stop = INT32_MAX;
    problem.h = h;
    problem.flags = flags;
    bucket_rows(x, y, problem, "ks_statistics", stream);
}

void ks_decide(const Matrix &x, const Matrix &y, int64_t threshold, uint8_t *decided, uint8_t *flags, Stream stream) {
    check_tables(x, y);
    if (x.rows == 0) return;
    check_row_length_here(x, y);
    BucketProblem problem{};
    problem.stop = clamped(threshold, x.cols);
    problem.floor = std::max(problem.stop, 1) - 1;
    problem.decided = decided;
    problem.flags = flags;
    bucket_rows(x, y, problem, "ks_decide", stream);
}

}  // namespace cuda
}  // namespace ksl
