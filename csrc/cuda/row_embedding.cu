// The embedding look-up with some rows replaced, and the gradient of those rows. Its counterpart is
// csrc/cpu/row_embedding.cpp.
//
// Forward: the output is cut into pieces of 16 bytes, and a thread copies four of them. First four ids, then four
// slots, then four pieces of rows are in flight at the same time. An id outside the table ends the kernel like a failed
// assert, as in torch, and reads nothing.
//
// Backward: positions are sorted by slot, stably and by as many bits as slots have (one pass for up to 254 rows). So
// the positions of a slot are adjacent, in the order of the batch. A block then adds 128 columns (256 of 16 bits) of
// one row in that order, without atomics, and gets the same bits as the CPU. A thread owns few columns, so that one
// very frequent token still keeps many threads busy, and it loads eight positions ahead. The host knows all sizes.
#include "device.cuh"

namespace ksl {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPieces = 4;  // for each thread, forward
constexpr int kAhead = 8;   // positions whose gradients are loaded at the same time, backward

struct Lookup {
    Matrix table, rows;
    const int32_t *slots;
    const int64_t *ids;
    int64_t n;
    void *out;
};

__device__ int32_t slot_of(const int32_t *slots, int64_t id, int64_t vocab, int64_t k) {
    KSL_DEVICE_CHECK(0 <= id && id < vocab, "ids holds an id outside the table");
    const int32_t slot = slots[id];
    KSL_DEVICE_CHECK(slot < k, "slots holds a slot without a row");
    return slot;
}

// kWidth elements from `at` on, of a row that has another dtype than the output or needs conversion for another reason.
template <typename T, int kWidth>
__device__ Pack<T, kWidth> converted(const Matrix &rows, int64_t at) {
    Pack<T, kWidth> piece;
    device_dispatch(rows.dtype, [&](auto tag) {
        compute_t<T> values[kWidth];
        load_pack<decltype(tag)>(rows.data, at, values);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) store(&piece.value[j], values[j]);
    });
    return piece;
}

// Pieces of one element work with any strides and alignment.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kThreads) lookup_kernel(const __grid_constant__ Lookup l) {
    const int64_t per_row = l.table.cols / kWidth, pieces = l.n * per_row;
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads * kPieces + threadIdx.x;
    int64_t ids[kPieces], cols[kPieces];
    int32_t slots[kPieces];
    Pack<T, kWidth> values[kPieces];
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
        const int64_t piece = first + j * kThreads;
        if (piece >= pieces) continue;
        const int64_t i = quotient(piece, per_row);
        cols[j] = (piece - i * per_row) * kWidth;
        ids[j] = l.ids[i];
    }
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
        if (first + j * kThreads < pieces) slots[j] = slot_of(l.slots, ids[j], l.table.rows, l.rows.rows);
    }
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
        if (first + j * kThreads >= pieces) continue;
        if (slots[j] >= 0) {
            values[j] = converted<T, kWidth>(l.rows, slots[j] * l.rows.row_stride + cols[j] * l.rows.col_stride);
        } else {
            const int64_t at = ids[j] * l.table.row_stride + cols[j] * l.table.col_stride;
            values[j] = *reinterpret_cast<const Pack<T, kWidth> *>(static_cast<const T *>(l.table.data) + at);
        }
    }
#pragma unroll
    for (int j = 0; j < kPieces; ++j) {
        const int64_t piece = first + j * kThreads;
        if (piece < pieces) static_cast<Pack<T, kWidth> *>(l.out)[piece] = values[j];
    }
}

template <typename T, int kWidth>
void launch_lookup(const Lookup &l, Stream stream) {
    const int64_t pieces = l.n * (l.table.cols / kWidth), per_block = kThreads * kPieces;
    launch("row_embedding", lookup_kernel<T, kWidth>, {(pieces + per_block - 1) / per_block, kThreads}, stream, l);
}

// What the backward sorts: the slot of each position, or k for a position without a trained row.
__global__ void __launch_bounds__(kThreads) slot_kernel(const int32_t *slots, int64_t vocab, const int64_t *ids,
                                                        int64_t n, int64_t k, uint32_t *keys, uint32_t *positions) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= n) return;
    const int32_t slot = slot_of(slots, ids[i], vocab, k);
    keys[i] = static_cast<uint32_t>(slot < 0 ? k : slot);
    positions[i] = static_cast<uint32_t>(i);
}

// The number of keys below `key`, of n sorted ones.
__device__ int64_t lower_bound(const uint32_t *keys, int64_t n, uint32_t key) {
    int64_t lo = 0, hi = n;
    while (lo < hi) {
        const int64_t middle = (lo + hi) / 2;
        if (keys[middle] < key) {
            lo = middle + 1;
        } else {
            hi = middle;
        }
    }
    return lo;
}

template <typename T, typename C, int kWidth>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const __grid_constant__ Matrix grad_out, const uint32_t *keys, const uint32_t *positions, C *grad_rows) {
    const int64_t per_row = (grad_out.cols + kThreads * kWidth - 1) / (kThreads * kWidth);
    const int64_t slot = quotient(blockIdx.x, per_row);
    const int64_t col = ((blockIdx.x - slot * per_row) * kThreads + threadIdx.x) * kWidth;
    KSL_SHARED(limits, int64_t[2]);
    if (threadIdx.x < 2)
        limits[threadIdx.x] = lower_bound(keys, grad_out.rows, static_cast<uint32_t>(slot + threadIdx.x));
    __syncthreads();
    if (col >= grad_out.cols) return;
    const int64_t end = limits[1];
    C sum[kWidth] = {};
    for (int64_t at = limits[0]; at < end; at += kAhead) {
        C grads[kAhead][kWidth];
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
            if (at + j >= end) continue;
            const int64_t place = positions[at + j] * grad_out.row_stride + col * grad_out.col_stride;
            load_pack<T>(grad_out.data, place, grads[j]);
        }
#pragma unroll
        for (int j = 0; j < kAhead; ++j) {
            if (at + j >= end) continue;
#pragma unroll
            for (int c = 0; c < kWidth; ++c) sum[c] += grads[j][c];
        }
    }
    store_pack<C>(grad_rows, slot * grad_out.cols + col, sum);
}

template <typename T, typename C, int kWidth>
void launch_sum(const Matrix &grad_out, int64_t k, const uint32_t *keys, const uint32_t *positions, C *grad_rows,
                Stream stream) {
    const int64_t per_row = (grad_out.cols + kThreads * kWidth - 1) / (kThreads * kWidth);
    launch("row_embedding_backward", sum_kernel<T, C, kWidth>, {k * per_row, kThreads}, stream, grad_out, keys,
           positions, grad_rows);
}

// The parts of the workspace: keys and positions, each twice, and what CUB needs.
struct Workspace {
    SortBuffers<uint32_t> keys, positions;
    size_t sort_bytes;
    void *sort;
    size_t bytes;

    Workspace(void *memory, int64_t n, int64_t k, Stream stream) {
        Parts parts(memory);
        const auto count = static_cast<size_t>(n);
        keys = {parts.take<uint32_t>(count), parts.take<uint32_t>(count)};
        positions = {parts.take<uint32_t>(count), parts.take<uint32_t>(count)};
        sort_bytes = sort_workspace<uint32_t, uint32_t>(static_cast<uint32_t>(n), bits_of_slots(k), stream);
        sort = parts.take<unsigned char>(sort_bytes);
        bytes = parts.bytes();
    }

    static int bits_of_slots(int64_t k) {
        int bits = 1;
        while (k >> bits) ++bits;
        return bits;
    }
};

void check_counts(int64_t n, int64_t k) {
    KSL_CHECK(n <= 0xffffffff, "ids has ", n, " entries; one call takes at most 4,294,967,295: split the batch");
    KSL_CHECK(k <= 0x7fffffff, "k is ", k, "; slots are int32, so there are at most 2,147,483,647 rows");
}

}  // namespace

void row_embedding(const Matrix &table, const Matrix &rows, const int32_t *slots, const int64_t *ids, int64_t n,
                   void *out, Stream stream) {
    KSL_CHECK(rows.cols == table.cols, "rows has ", rows.cols, " columns, table has ", table.cols);
    const Lookup l{table, rows, slots, ids, n, out};
    dispatch(table.dtype, [&](auto tag) {
        using T = decltype(tag);
        constexpr int kWidth = 16 / sizeof(T);
        const bool packs =
            has_packs(table, kWidth) && has_packs(rows, kWidth) && reinterpret_cast<uintptr_t>(out) % 16 == 0;
        packs ? launch_lookup<T, kWidth>(l, stream) : launch_lookup<T, 1>(l, stream);
    });
}

int64_t row_embedding_backward_workspace(int64_t n, int64_t k, Stream stream) {
    check_counts(n, k);
    DeviceGuard guard(stream.device);
    return static_cast<int64_t>(Workspace(nullptr, n, k, stream).bytes);
}

void row_embedding_backward(const Matrix &grad_out, const int32_t *slots, int64_t vocab, const int64_t *ids, int64_t n,
                            int64_t k, void *workspace, void *grad_rows, DType grad_rows_dtype, Stream stream) {
    check_counts(n, k);
    KSL_CHECK(grad_out.rows == n, "grad_out has ", grad_out.rows, " rows for ", n, " ids");
    KSL_CHECK((grad_rows_dtype == DType::kFloat64) == (grad_out.dtype == DType::kFloat64) &&
                  (grad_rows_dtype == DType::kFloat64 || grad_rows_dtype == DType::kFloat32),
              "grad_rows must be float32, or float64 for a float64 grad_out");
    if (k == 0 || grad_out.cols == 0) return;
    DeviceGuard guard(stream.device);
    Workspace parts(workspace, n, k, stream);
    launch("row_embedding_backward", slot_kernel, {(n + kThreads - 1) / kThreads, kThreads}, stream, slots, vocab, ids,
           n, k, parts.keys.data, parts.positions.data);
    if (n > 0) {
        sort_pairs("row_embedding_backward", parts.sort, parts.sort_bytes, parts.keys, parts.positions,
                   static_cast<uint32_t>(n), Workspace::bits_of_slots(k), stream);
    }
    const uint32_t *keys = parts.keys.data, *positions = parts.positions.data;
    dispatch(grad_out.dtype, [&](auto tag) {
        using T = decltype(tag);
        using C = compute_t<T>;
        constexpr int kWidth = sizeof(T) == 2 ? 2 : 1;
        auto *sums = static_cast<C *>(grad_rows);
        // grad_rows is torch's own memory, and with an even number of columns pairs are aligned.
        has_packs(grad_out, kWidth) ? launch_sum<T, C, kWidth>(grad_out, k, keys, positions, sums, stream)
                                    : launch_sum<T, C, 1>(grad_out, k, keys, positions, sums, stream);
    });
}

}  // namespace cuda
}  // namespace ksl
