// The plain exact way, for ks_rows. The keys of both samples are sorted, and each value is looked up in both. Unlike
// the bucket engine, it gives each side's maximum and its place, and it takes samples of different sizes. Its
// counterpart, csrc/cpu/ks_kernels.h, tells which of several places with the same difference is taken.
//
// One block sorts a pair of rows that shared memory holds. Longer rows are sorted by CUB, several at a time: all their
// keys by value and then, stably, by sample. The look-up is then cut over many blocks. Each leaves the best place that
// it has found, and one more block for each row takes the best of these.
#pragma once

#include <algorithm>
#include <cub/block/block_reduce.cuh>
#include <limits>

#include "ks_input.cuh"

namespace ksl {
namespace cuda {

// Sorts 2^bits keys in place, by Batcher's bitonic network. It needs no other memory, and the same steps for any data.
template <typename Key>
__device__ void sort_keys(Key *keys, int bits) {
    const uint32_t half = (1u << bits) >> 1;
    for (int up = 1; up <= bits; ++up) {  // merges runs into sorted runs of 2^up keys, each second one falling
        for (int step = up - 1; step >= 0; --step) {
            const uint32_t distance = 1u << step;
            for (uint32_t i = threadIdx.x; i < half; i += blockDim.x) {
                const uint32_t low = (i & ~(distance - 1)) * 2 + (i & (distance - 1)), high = low + distance;
                const bool rising = (low >> up & 1) == 0;
                const Key a = keys[low], b = keys[high];
                if ((b < a) == rising) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            __syncthreads();
        }
    }
}

// How many of n sorted keys are at most `key`.
template <typename Key>
__device__ int64_t count_to(const Key *keys, int64_t n, Key key) {
    int64_t low = 0, high = n;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (keys[middle] <= key) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

// One side of the statistic: the exact maximum, and the place that scipy.stats.ks_2samp reports for it.
template <typename Key>
struct Side {
    int64_t count;
    double difference;
    bool in_x;
    Key at;

    // Of places with the same exact difference, prefers the one with the largest float64 difference, then one whose
    // value is in x, then the smallest value.
    __device__ bool better_than(const Side &other) const {
        if (count != other.count) return count > other.count;
        if (difference != other.difference) return difference > other.difference;
        if (in_x != other.in_x) return in_x;
        return at < other.at;
    }
};

// Worse than any place.
template <typename Key>
__device__ Side<Key> no_place() {
    return {INT64_MIN, 0, false, 0};
}

struct BetterSide {
    template <typename Side>
    __device__ Side operator()(const Side &a, const Side &b) const {
        return b.better_than(a) ? b : a;
    }
};

// Sorted samples of n and m values, and the units in which their ranks are counted.
template <typename Key>
struct SortedPair {
    const Key *x, *y;
    int64_t n, m, x_unit, y_unit;

    // The best places that this thread looks at, of values `from` to `to` of both samples: the first where x is ahead,
    // the second where y is.
    __device__ void best_sides(int64_t from, int64_t to, Side<Key> (&best)[2]) const {
        best[0] = best[1] = no_place<Key>();
        for (int64_t k = from + threadIdx.x; k < to; k += blockDim.x) {
            const Key at = k < n ? x[k] : y[k - n];
            const int64_t i = count_to(x, n, at), j = count_to(y, m, at), ahead = i * x_unit - j * y_unit;
            const double difference =
                static_cast<double>(i) / static_cast<double>(n) - static_cast<double>(j) / static_cast<double>(m);
            const bool in_x = i > 0 && x[i - 1] == at;
            const Side<Key> plus{ahead, difference, in_x, at}, minus{-ahead, -difference, in_x, at};
            if (plus.better_than(best[0])) best[0] = plus;
            if (minus.better_than(best[1])) best[1] = minus;
        }
    }
};

// What ks_rows is asked, and where its results go.
struct SortProblem {
    Rows x, y;
    int64_t rows, n, m, x_unit, y_unit;
    int64_t *plus, *minus;
    double *plus_at, *minus_at;
    uint8_t *flags;

    __host__ __device__ int64_t values() const { return n + m; }

    // s is 0 for the side where x is ahead, and 1 for the other.
    template <typename T>
    __device__ void write_side(int64_t r, int s, bool nan, const Side<key_t<T>> &side) const {
        (s == 0 ? plus : minus)[r] = nan ? -1 : side.count;
        double *places = s == 0 ? plus_at : minus_at;
        if (places == nullptr) return;
        places[r] = nan ? std::numeric_limits<double>::quiet_NaN() : static_cast<double>(value_of_key<T>(side.at));
    }
};

constexpr int kSortThreads = 256;

// Reduces a value of each thread of a block. Only thread 0 gets the result. All threads call it. The storage is shared
// memory. Between two uses of it there must be a __syncthreads().
template <typename T, int kThreads>
struct BlockReduce {
    using Reduce = cub::BlockReduce<T, kThreads>;
    using Storage = typename Reduce::TempStorage;

    template <typename Operator>
    static __device__ T reduce(Storage &storage, T value, Operator op) {
        return Reduce(storage).Reduce(value, op);
    }
};

template <typename T>
using SideReduce = BlockReduce<Side<key_t<T>>, kSortThreads>;

template <typename T>
__device__ uint8_t flags_of(bits_t<T> value) {
    const bits_t<T> magnitude = value & kMagnitude<T>;
    return static_cast<uint8_t>((magnitude > BitsOf<T>::kInfinity ? kHasNaN : 0) |
                                (magnitude == BitsOf<T>::kInfinity ? kHasInf : 0));
}

// ---- rows that shared memory holds: a block each ----

// Writes the keys of a row, padded with keys that no value has and that come last. Returns the flags of this thread's
// keys.
template <typename T>
__device__ uint8_t read_keys(const Row<T> &row, int64_t n, int bits, key_t<T> *keys) {
    uint8_t flags = 0;
    for (int64_t i = threadIdx.x; i < int64_t{1} << bits; i += kSortThreads) {
        keys[i] = static_cast<key_t<T>>(~key_t<T>{0});
        if (i >= n) continue;
        const bits_t<T> value = row[i];
        flags |= flags_of<T>(value);
        keys[i] = ordered_key(value);
    }
    return flags;
}

// Bytes of the reduction's storage, rounded up to a multiple of 16.
template <typename T>
constexpr size_t kSortStorage = (sizeof(typename SideReduce<T>::Storage) + 15) / 16 * 16;

// The samples' buffers hold 2^x_bits and 2^y_bits keys.
template <typename T>
__global__ void __launch_bounds__(kSortThreads, 4)
    ks_sorted_rows(const __grid_constant__ SortProblem problem, int x_bits, int y_bits) {
    using Key = key_t<T>;
    KSL_DYNAMIC_SHARED(memory);  // the storage of the reduction, then the keys
    auto &storage = *reinterpret_cast<typename SideReduce<T>::Storage *>(memory);
    Key *x_keys = reinterpret_cast<Key *>(memory + kSortStorage<T>), *y_keys = x_keys + (int64_t{1} << x_bits);
    for (int64_t r = blockIdx.x; r < problem.rows; r += gridDim.x) {
        const int own = read_keys(problem.x.row<T>(r), problem.n, x_bits, x_keys) |
                        read_keys(problem.y.row<T>(r), problem.m, y_bits, y_keys);
        const uint8_t flags = all_flags(own);
        const bool nan = flags & kHasNaN;
        if (!nan) {
            sort_keys(x_keys, x_bits);
            sort_keys(y_keys, y_bits);
        }
        const SortedPair<Key> sorted{x_keys, y_keys, problem.n, problem.m, problem.x_unit, problem.y_unit};
        Side<Key> best[2] = {no_place<Key>(), no_place<Key>()};
        if (!nan) sorted.best_sides(0, problem.values(), best);
#pragma unroll
        for (int s = 0; s < 2; ++s) {
            const auto side = SideReduce<T>::reduce(storage, best[s], BetterSide{});
            __syncthreads();  // before the storage or the keys are used again
            if (threadIdx.x == 0) problem.write_side<T>(r, s, nan, side);
        }
        if (threadIdx.x == 0) problem.flags[r] = flags;
    }
}

// ---- longer rows: `rows` of them at a time, from first_row on, each cut into chunks for one block ----

constexpr int64_t kChunk = 16 * kSortThreads;

template <typename T>
struct LongRows {
    using Key = key_t<T>;

    SortProblem problem;
    int64_t first_row = 0, rows, chunks;
    SortBuffers<Key> keys;          // [rows, n + m]
    SortBuffers<uint32_t> samples;  // likewise: 2 r for x of row r, 2 r + 1 for y
    Side<Key> *best;                // [2, rows, chunks], one for each block of the look-up
    unsigned *flags;                // [rows]
    void *sort;
    size_t sort_bytes, bytes;

    // For so many rows at a time, in a workspace of that many bytes. With a null workspace, for its size alone.
    LongRows(const SortProblem &problem, int64_t at_once, void *workspace, Stream stream)
        : problem(problem), rows(at_once), chunks((problem.values() + kChunk - 1) / kChunk) {
        Parts parts(workspace);
        const auto count = static_cast<size_t>(rows * problem.values());
        keys = {parts.take<Key>(count), parts.take<Key>(count)};
        samples = {parts.take<uint32_t>(count), parts.take<uint32_t>(count)};
        best = parts.take<Side<Key>>(static_cast<size_t>(2 * rows * chunks));
        flags = parts.take<unsigned>(static_cast<size_t>(rows));
        sort_bytes = std::max(sort_workspace<Key, uint32_t>(static_cast<uint32_t>(count), kKeyBits, stream),
                              sort_workspace<uint32_t, Key>(static_cast<uint32_t>(count), sample_bits(), stream));
        sort = parts.take<unsigned char>(sort_bytes);
        bytes = parts.bytes();
    }

    static constexpr int kKeyBits = 8 * sizeof(Key);
    int sample_bits() const {
        int bits = 1;
        while ((2 * rows - 1) >> bits) ++bits;
        return bits;
    }

    // The row and the first value of a block's chunk, and the end of that chunk.
    __device__ int64_t row() const { return blockIdx.x / chunks; }
    __device__ int64_t from() const { return blockIdx.x % chunks * kChunk; }
    __device__ int64_t to() const { return min(from() + kChunk, problem.values()); }
};

template <typename T>
__global__ void __launch_bounds__(kSortThreads) ks_long_keys(const __grid_constant__ LongRows<T> batch) {
    const SortProblem &problem = batch.problem;
    const int64_t row = batch.row(), r = batch.first_row + row, begin = row * problem.values();
    const Row<T> x = problem.x.row<T>(r), y = problem.y.row<T>(r);
    int own = 0;
    for (int64_t i = batch.from() + threadIdx.x; i < batch.to(); i += kSortThreads) {
        const bool in_x = i < problem.n;
        const bits_t<T> value = in_x ? x[i] : y[i - problem.n];
        own |= flags_of<T>(value);
        batch.keys.data[begin + i] = ordered_key(value);
        batch.samples.data[begin + i] = static_cast<uint32_t>(2 * row + !in_x);
    }
    const uint8_t flags = all_flags(own);
    if (threadIdx.x == 0 && flags != 0) atomicOr(&batch.flags[row], unsigned{flags});
}

template <typename T>
__global__ void __launch_bounds__(kSortThreads) ks_long_places(const __grid_constant__ LongRows<T> batch) {
    KSL_SHARED(storage, typename SideReduce<T>::Storage);
    const SortProblem &problem = batch.problem;
    const auto *keys = batch.keys.data + batch.row() * problem.values();
    const SortedPair<key_t<T>> sorted{keys, keys + problem.n, problem.n, problem.m, problem.x_unit, problem.y_unit};
    Side<key_t<T>> best[2];
    sorted.best_sides(batch.from(), batch.to(), best);
#pragma unroll
    for (int s = 0; s < 2; ++s) {
        const auto side = SideReduce<T>::reduce(storage, best[s], BetterSide{});
        __syncthreads();  // before the storage is used again
        if (threadIdx.x == 0) batch.best[s * int64_t{gridDim.x} + blockIdx.x] = side;
    }
}

template <typename T>
__global__ void __launch_bounds__(kSortThreads) ks_long_results(const __grid_constant__ LongRows<T> batch) {
    KSL_SHARED(storage, typename SideReduce<T>::Storage);
    const int64_t r = batch.first_row + blockIdx.x;
    const unsigned flags = batch.flags[blockIdx.x];
    for (int s = 0; s < 2; ++s) {
        const auto *found = batch.best + (s * int64_t{gridDim.x} + blockIdx.x) * batch.chunks;
        auto side = no_place<key_t<T>>();
        for (int64_t c = threadIdx.x; c < batch.chunks; c += kSortThreads) {
            if (found[c].better_than(side)) side = found[c];
        }
        side = SideReduce<T>::reduce(storage, side, BetterSide{});
        __syncthreads();  // before the storage is used again
        if (threadIdx.x == 0) batch.problem.template write_side<T>(r, s, flags & kHasNaN, side);
    }
    if (threadIdx.x == 0) batch.problem.flags[r] = static_cast<uint8_t>(flags);
}

}  // namespace cuda
}  // namespace ksl
