// The embedding look-up with some rows replaced, and the gradient of those rows.
#include <algorithm>
#include <cstring>
#include <vector>

#include "check.h"
#include "cpu/rows.h"
#include "ksl.h"
#include "parallel.h"

namespace ksl {
namespace {

void copy_row(const Matrix &from, int64_t row, const MutableMatrix &to, int64_t i) {
    for (int64_t col = 0; col < from.cols; col += kSpan) {
        const int64_t n = std::min(kSpan, from.cols - col);
        dispatch(to.dtype, [&](auto tag) {
            compute_t<decltype(tag)> buffer[kSpan];
            load_span(from, row, col, n, buffer);
            store_span(to, i, col, n, buffer);
        });
    }
}

size_t element_size(DType dtype) {
    return dispatch(dtype, [](auto tag) { return sizeof tag; });
}

// A position of the batch whose token has a trained row.
struct Occurrence {
    int64_t position;
    int32_t slot;
};

// The positions of every slot, grouped by slot, in the order of the batch: those of slot s are [starts[s],
// starts[s+1]).
struct Occurrences {
    std::vector<int64_t> starts, positions;
};

Occurrences group_by_slot(const int32_t *slots, int64_t vocab, const int64_t *ids, int64_t n, int64_t k) {
    Occurrences grouped;
    grouped.starts.assign(static_cast<size_t>(k) + 1, 0);
    std::vector<Occurrence> found;
    for (int64_t i = 0; i < n; ++i) {
        KSL_CHECK(0 <= ids[i] && ids[i] < vocab, "ids holds ", ids[i], ", outside the table's rows 0 to ", vocab - 1);
        const int32_t slot = slots[ids[i]];
        if (slot < 0) continue;
        KSL_CHECK(slot < k, "slots[", ids[i], "] is ", slot, ", but there are ", k, " rows");
        found.push_back({i, slot});
        ++grouped.starts[static_cast<size_t>(slot) + 1];
    }
    for (size_t s = 0; s < static_cast<size_t>(k); ++s) grouped.starts[s + 1] += grouped.starts[s];
    grouped.positions.resize(found.size());
    std::vector<int64_t> next(grouped.starts);
    for (const Occurrence &o : found) {
        grouped.positions[static_cast<size_t>(next[static_cast<size_t>(o.slot)]++)] = o.position;
    }
    return grouped;
}

template <typename C>
void sum_rows(const Matrix &grad_out, const Occurrences &grouped, int64_t k, C *grad_rows, int threads) {
    const int64_t cols = grad_out.cols, spans = (cols + kSpan - 1) / kSpan;
    // A piece of a row at a time, so that a token as frequent as the newline keeps several threads busy.
    parallel_for(0, k * spans, 1, threads, [&](int64_t lo, int64_t hi) {
        C buffer[kSpan];
        for (int64_t piece = lo; piece < hi; ++piece) {
            const int64_t slot = piece / spans, col = piece % spans * kSpan, n = std::min(kSpan, cols - col);
            C *sum = grad_rows + slot * cols + col;
            std::fill(sum, sum + n, C(0));
            const auto s = static_cast<size_t>(slot);
            for (int64_t j = grouped.starts[s]; j < grouped.starts[s + 1]; ++j) {
                load_span(grad_out, grouped.positions[static_cast<size_t>(j)], col, n, buffer);
                for (int64_t c = 0; c < n; ++c) sum[c] += buffer[c];
            }
        }
    });
}

}  // namespace

void row_embedding(const Matrix &table, const Matrix &rows, const int32_t *slots, const int64_t *ids, int64_t n,
                   void *out, int threads) {
    KSL_CHECK(rows.cols == table.cols, "rows has ", rows.cols, " columns, table has ", table.cols);
    const MutableMatrix result{out, n, table.cols, table.cols, 1, table.dtype};
    const auto size = static_cast<int64_t>(element_size(table.dtype));
    parallel_for(0, n, rows_per_chunk(table.cols), threads, [&](int64_t lo, int64_t hi) {
        for (int64_t i = lo; i < hi; ++i) {
            const int64_t id = ids[i];
            KSL_CHECK(0 <= id && id < table.rows, "ids holds ", id, ", outside the table's rows 0 to ", table.rows - 1);
            const int32_t slot = slots[id];
            KSL_CHECK(slot < rows.rows, "slots[", id, "] is ", slot, ", but there are ", rows.rows, " rows");
            if (slot >= 0) {
                copy_row(rows, slot, result, i);
            } else if (table.col_stride == 1) {
                std::memcpy(static_cast<char *>(out) + i * table.cols * size,
                            static_cast<const char *>(table.data) + id * table.row_stride * size,
                            static_cast<size_t>(table.cols * size));
            } else {
                copy_row(table, id, result, i);
            }
        }
    });
}

void row_embedding_backward(const Matrix &grad_out, const int32_t *slots, int64_t vocab, const int64_t *ids, int64_t n,
                            int64_t k, void *grad_rows, DType grad_rows_dtype, int threads) {
    KSL_CHECK(grad_out.rows == n, "grad_out has ", grad_out.rows, " rows for ", n, " ids");
    const Occurrences grouped = group_by_slot(slots, vocab, ids, n, k);
    if (grad_rows_dtype == DType::kFloat64) {
        sum_rows(grad_out, grouped, k, static_cast<double *>(grad_rows), threads);
    } else {
        KSL_CHECK(grad_rows_dtype == DType::kFloat32, "grad_rows must be float32 or float64");
        sum_rows(grad_out, grouped, k, static_cast<float *>(grad_rows), threads);
    }
}

}  // namespace ksl
