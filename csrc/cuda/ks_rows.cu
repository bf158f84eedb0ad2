// ks_rows, ks_statistics and ks_decide on a GPU: checks, the choice of a type and of a way, and launches.
#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <string_view>

#include "../ks_checks.h"
#include "ks_sort.cuh"

namespace ksl {
namespace cuda {
namespace {

int bits_for(int64_t n) {
    int bits = 0;
    while (int64_t{1} << bits < n) ++bits;
    return bits;
}

// Rows of one call whose keys shared memory holds, and how much of it they need.
template <typename T>
struct SharedSort {
    int x_bits, y_bits;
    size_t bytes;
    bool fits;

    SharedSort(const SortProblem &problem, Stream stream) : x_bits(bits_for(problem.n)), y_bits(bits_for(problem.m)) {
        bytes = kSortStorage<T> + ((size_t{1} << x_bits) + (size_t{1} << y_bits)) * sizeof(key_t<T>);
        fits = bytes <= static_cast<size_t>(device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, stream.device));
    }
};

// As many long rows at a time as kWorkspace holds, and at least one. Both samples of 2^30 values have 2^31 keys, which
// 32 bits count.
template <typename T>
int64_t long_rows_at_once(const SortProblem &problem, Stream stream) {
    constexpr int64_t kWorkspace = int64_t{1} << 28;
    const LongRows<T> one(problem, 1, nullptr, stream);
    return std::clamp<int64_t>(kWorkspace / static_cast<int64_t>(one.bytes), 1, problem.rows);
}

template <typename T>
WorkspaceSize workspace_of(const SortProblem &problem, Stream stream) {
    if (problem.rows == 0 || SharedSort<T>(problem, stream).fits) return {0, 0};
    const LongRows<T> one(problem, 1, nullptr, stream);
    const LongRows<T> best(problem, long_rows_at_once<T>(problem, stream), nullptr, stream);
    return {static_cast<int64_t>(one.bytes), static_cast<int64_t>(best.bytes)};
}

template <typename T>
void launch_long_rows(const SortProblem &problem, void *workspace, int64_t workspace_bytes, Stream stream) {
    const WorkspaceSize size = workspace_of<T>(problem, stream);
    KSL_CHECK(workspace_bytes >= size.least, "ks_rows has a workspace of ", workspace_bytes, " bytes for rows of ",
              problem.n, " and ", problem.m, " values; it needs ", size.least);
    const int64_t at_once = workspace_bytes >= size.best ? long_rows_at_once<T>(problem, stream) : 1;
    for (int64_t first = 0; first < problem.rows; first += at_once) {
        LongRows<T> batch(problem, std::min(at_once, problem.rows - first), workspace, stream);
        batch.first_row = first;
        const Shape chunks{batch.rows * batch.chunks, kSortThreads};
        const auto count = static_cast<uint32_t>(batch.rows * problem.values());
        check(cudaMemsetAsync(batch.flags, 0, static_cast<size_t>(batch.rows) * sizeof *batch.flags,
                              static_cast<cudaStream_t>(stream.handle)),
              "ks_rows");
        launch("ks_rows", ks_long_keys<T>, chunks, stream, batch);
        sort_pairs("ks_rows", batch.sort, batch.sort_bytes, batch.keys, batch.samples, count, batch.kKeyBits, stream);
        sort_pairs("ks_rows", batch.sort, batch.sort_bytes, batch.samples, batch.keys, count, batch.sample_bits(),
                   stream);
        launch("ks_rows", ks_long_places<T>, chunks, stream, batch);
        launch("ks_rows", ks_long_results<T>, {batch.rows, kSortThreads}, stream, batch);
    }
}

template <typename T>
void launch_sorted_rows(const SortProblem &problem, void *workspace, int64_t workspace_bytes, Stream stream) {
    const SharedSort<T> shared(problem, stream);
    if (!shared.fits) {
        launch_long_rows<T>(problem, workspace, workspace_bytes, stream);
        return;
    }
    const int64_t blocks =
        std::min(problem.rows, resident_blocks(ks_sorted_rows<T>, kSortThreads, shared.bytes, stream));
    launch("ks_rows", ks_sorted_rows<T>, {blocks, kSortThreads, shared.bytes}, stream, problem, shared.x_bits,
           shared.y_bits);
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

// KSL_CUDA_VARIANT in the environment, which the benchmark sets.
Variant chosen_variant() {
    const char *name = std::getenv("KSL_CUDA_VARIANT");
    const std::string_view chosen = name ? name : "plain";
    if (chosen == "plain") return Variant::kPlain;
    if (chosen == "interval") return Variant::kInterval;
    KSL_CHECK(chosen == "fast", "KSL_CUDA_VARIANT is '", chosen, "'; expected plain, interval or fast");
    return Variant::kFast;
}

void bucket_rows(const Matrix &x, const Matrix &y, BucketProblem problem, const char *what, Stream stream) {
    problem.variant = chosen_variant();
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

// f(T{}, problem) with all but the outputs set, unless there are no rows.
template <typename F>
void with_sort_problem(const Matrix &x, const Matrix &y, F &&f) {
    check_samples(x, y);
    if (x.rows == 0) return;
    check_unit(x, y);
    check_row_length_here(x, y);
    const int64_t gcd = std::gcd(x.cols, y.cols);
    with_wide_type(x, y, [&](auto tag, DType compute) {
        SortProblem problem{};
        problem.x = rows_of(x, compute);
        problem.y = rows_of(y, compute);
        problem.rows = x.rows;
        problem.n = x.cols;
        problem.m = y.cols;
        problem.x_unit = y.cols / gcd;
        problem.y_unit = x.cols / gcd;
        f(tag, problem);
    });
}

constexpr int kReachedThreads = 256;
using Counter = unsigned long long;  // what CUDA has 64-bit atomics for

// How many rows were found, whether any was flagged, and how many blocks are done.
enum : int { kFound, kFlagged, kBlocksDone };

// The lanes of a warp that have found a row get places side by side, and write in one go.
__global__ void __launch_bounds__(kReachedThreads)
    ks_reached_rows(const int64_t *h, const uint8_t *flags, int64_t rows, int64_t threshold, uint8_t bits,
                    Counter *state, int64_t *found) {
    const int lane = threadIdx.x % kWarp;
    bool flagged = false;
    const int64_t step = int64_t{gridDim.x} * kReachedThreads;
    for (int64_t first = int64_t{blockIdx.x} * kReachedThreads; first < rows; first += step) {
        const int64_t r = first + threadIdx.x;
        const int64_t own = r < rows ? h[r] : 0;
        const bool reached = r < rows && own >= threshold;
        flagged |= r < rows && (flags[r] & bits) != 0;
        const unsigned lanes = __ballot_sync(kFullWarp, reached);
        if (lanes == 0) continue;
        Counter place = 0;
        if (lane == 0) place = atomicAdd(&state[kFound], static_cast<Counter>(__popc(lanes)));
        place = __shfl_sync(kFullWarp, place, 0) + __popc(lanes & ((1u << lane) - 1));
        if (!reached) continue;
        found[2 + 2 * place] = r;
        found[3 + 2 * place] = own;
    }
    flagged = __syncthreads_or(flagged);
    if (threadIdx.x != 0) return;
    if (flagged) atomicOr(&state[kFlagged], Counter{1});
    __threadfence();
    if (atomicAdd(&state[kBlocksDone], Counter{1}) != gridDim.x - 1) return;
    __threadfence();  // what the others did before they counted themselves is visible from here on
    found[0] = static_cast<int64_t>(atomicAdd(&state[kFound], Counter{0}));
    found[1] = static_cast<int64_t>(atomicAdd(&state[kFlagged], Counter{0}));
}

// The same question about h, which lies in 0..cols, with a threshold in 0..cols + 1.
int clamped(int64_t threshold, int64_t cols) {
    return static_cast<int>(std::min(std::max<int64_t>(threshold, 0), cols + 1));
}

}  // namespace

WorkspaceSize ks_rows_workspace(const Matrix &x, const Matrix &y, Stream stream) {
    WorkspaceSize size{0, 0};
    with_sort_problem(x, y, [&](auto tag, const SortProblem &problem) {
        DeviceGuard guard(stream.device);
        size = workspace_of<decltype(tag)>(problem, stream);
    });
    return size;
}

void ks_rows(const Matrix &x, const Matrix &y, int64_t *plus, int64_t *minus, double *plus_at, double *minus_at,
             uint8_t *flags, void *workspace, int64_t workspace_bytes, Stream stream) {
    with_sort_problem(x, y, [&](auto tag, SortProblem problem) {
        problem.plus = plus;
        problem.minus = minus;
        problem.plus_at = plus_at;
        problem.minus_at = minus_at;
        problem.flags = flags;
        DeviceGuard guard(stream.device);
        launch_sorted_rows<decltype(tag)>(problem, workspace, workspace_bytes, stream);
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

void ks_reached(const int64_t *h, const uint8_t *flags, int64_t rows, int64_t threshold, uint8_t bits, uint64_t *state,
                int64_t *found, Stream stream) {
    const int64_t blocks = std::min((rows + kReachedThreads - 1) / kReachedThreads,
                                    resident_blocks(ks_reached_rows, kReachedThreads, 0, stream));
    launch("ks_reached", ks_reached_rows, {std::max<int64_t>(1, blocks), kReachedThreads}, stream, h, flags, rows,
           threshold, bits, reinterpret_cast<Counter *>(state), found);
}

}  // namespace cuda
}  // namespace ksl
