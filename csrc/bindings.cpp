// kslottery_fast._C: the functions of ksl.h for Python, and nothing else.
//
// bindings.h explains how pointers and matrices are passed. The caller keeps the memory alive and has checked the
// sizes, as kslottery_fast/ops does. Every call releases the GIL. std::invalid_argument becomes ValueError.
#include "bindings.h"

namespace py = pybind11;

namespace {

using ksl::Address, ksl::input, ksl::MatrixArgs, ksl::output, ksl::pointer;

void ks_rows(const MatrixArgs &x, const MatrixArgs &y, Address plus, Address minus, Address plus_at, Address minus_at,
             Address flags, int threads) {
    ksl::ks_rows(input(x), input(y), ksl::Sides::kBoth, pointer<int64_t>(plus), pointer<int64_t>(minus),
                 pointer<void>(plus_at), pointer<void>(minus_at), pointer<uint8_t>(flags), threads);
}

void ks_sides(const MatrixArgs &x, const MatrixArgs &y, int32_t sides, Address plus, Address minus, Address plus_at,
              Address minus_at, Address flags, int threads) {
    ksl::ks_rows(input(x), input(y), static_cast<ksl::Sides>(sides), pointer<int64_t>(plus), pointer<int64_t>(minus),
                 pointer<void>(plus_at), pointer<void>(minus_at), pointer<uint8_t>(flags), threads);
}

void ks_statistics(const MatrixArgs &x, const MatrixArgs &y, int64_t threshold, Address h, Address flags, int threads) {
    ksl::ks_statistics(input(x), input(y), threshold, pointer<int64_t>(h), pointer<uint8_t>(flags), threads);
}

void ks_statistics_and_identity(const MatrixArgs &x, const MatrixArgs &y, int64_t threshold, Address h, Address flags,
                                Address identical, int threads) {
    ksl::ks_statistics(input(x), input(y), threshold, pointer<int64_t>(h), pointer<uint8_t>(flags), threads,
                       pointer<uint8_t>(identical));
}

void ks_decide(const MatrixArgs &x, const MatrixArgs &y, int64_t threshold, Address decided, Address flags,
               int threads) {
    ksl::ks_decide(input(x), input(y), threshold, pointer<uint8_t>(decided), pointer<uint8_t>(flags), threads);
}

void ks_outside_probability(Address counts, int64_t k, int64_t n, int64_t m, bool one_sided, Address p, Address log_p,
                            int threads) {
    ksl::ks_outside_probability(pointer<const int64_t>(counts), k, n, m, one_sided, pointer<double>(p),
                                pointer<double>(log_p), threads);
}

// starts, lasts, shifts, bases, cells, count, cell_shift
using IntervalArgs = std::tuple<Address, Address, Address, Address, Address, int64_t, int>;

ksl::KeyIntervals intervals(const IntervalArgs &args) {
    const auto &[starts, lasts, shifts, bases, cells, count, cell_shift] = args;
    return {pointer<const uint64_t>(starts),
            pointer<const uint64_t>(lasts),
            pointer<const uint8_t>(shifts),
            pointer<const int64_t>(bases),
            pointer<const int32_t>(cells),
            count,
            cell_shift};
}

int64_t ks_stream_count(Address values, int64_t n, int32_t dtype, const IntervalArgs &args, Address counts,
                        Address first_keys, Address states, int /*threads*/) {
    return ksl::ks_stream_count(pointer<const void>(values), n, static_cast<ksl::DType>(dtype), intervals(args),
                                pointer<int64_t>(counts), pointer<uint64_t>(first_keys), pointer<uint8_t>(states));
}

std::pair<int64_t, int64_t> ks_stream_collect(Address values, int64_t n, int32_t dtype, const IntervalArgs &args,
                                              Address keys, int /*threads*/) {
    int64_t collected = 0;
    const int64_t nans = ksl::ks_stream_collect(pointer<const void>(values), n, static_cast<ksl::DType>(dtype),
                                                intervals(args), pointer<uint64_t>(keys), &collected);
    return {nans, collected};
}

void row_adamw(const MatrixArgs &table, Address row_ids, int64_t k, Address master, const MatrixArgs &grad,
               Address exp_avg, Address exp_avg_sq, int64_t step, double lr, double beta1, double beta2, double eps,
               double weight_decay, bool lazy, int threads) {
    ksl::row_adamw(output(table), pointer<const int64_t>(row_ids), k, pointer<void>(master), input(grad),
                   pointer<void>(exp_avg), pointer<void>(exp_avg_sq), {lr, beta1, beta2, eps, weight_decay, step}, lazy,
                   threads);
}

bool row_adamw_if_finite(const MatrixArgs &table, Address row_ids, int64_t k, Address master, const MatrixArgs &grad,
                         Address exp_avg, Address exp_avg_sq, Address step, double lr, double beta1, double beta2,
                         double eps, double weight_decay, bool lazy, int threads) {
    return ksl::row_adamw_if_finite(output(table), pointer<const int64_t>(row_ids), k, pointer<void>(master),
                                    input(grad), pointer<void>(exp_avg), pointer<void>(exp_avg_sq),
                                    pointer<float>(step), {lr, beta1, beta2, eps, weight_decay, 0}, lazy, threads);
}

bool all_finite(const MatrixArgs &matrix, int threads) { return ksl::all_finite(input(matrix), threads); }

void row_embedding(const MatrixArgs &table, const MatrixArgs &rows, Address slots, Address ids, int64_t n, Address out,
                   int threads) {
    ksl::row_embedding(input(table), input(rows), pointer<const int32_t>(slots), pointer<const int64_t>(ids), n,
                       pointer<void>(out), threads);
}

void row_embedding_backward(const MatrixArgs &grad_out, Address slots, int64_t vocab, Address ids, int64_t n, int64_t k,
                            Address grad_rows, int32_t grad_rows_dtype, int threads) {
    ksl::row_embedding_backward(input(grad_out), pointer<const int32_t>(slots), vocab, pointer<const int64_t>(ids), n,
                                k, pointer<void>(grad_rows), static_cast<ksl::DType>(grad_rows_dtype), threads);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
    const py::call_guard<py::gil_scoped_release> no_gil;
    m.attr("version") = KSL_VERSION;
    m.attr("cuda_reason") = KSL_CUDA_REASON;  // why there are no CUDA kernels; empty where there are
#ifdef KSL_HAS_CUDA
    py::module_ cuda = m.def_submodule("cuda");
    ksl::bind_cuda(cuda);
#endif
    m.def("active_isa", &ksl::active_isa);
    m.def("ks_rows", &ks_rows, no_gil);
    m.def("ks_sides", &ks_sides, no_gil);
    m.def("ks_statistics", &ks_statistics, no_gil);
    m.def("ks_statistics_and_identity", &ks_statistics_and_identity, no_gil);
    m.def("ks_decide", &ks_decide, no_gil);
    m.def("ks_outside_probability", &ks_outside_probability, no_gil);
    m.def("ks_stream_count", &ks_stream_count, no_gil);
    m.def("ks_stream_collect", &ks_stream_collect, no_gil);
    m.def("row_adamw", &row_adamw, no_gil);
    m.def("row_adamw_if_finite", &row_adamw_if_finite, no_gil);
    m.def("all_finite", &all_finite, no_gil);
    m.def("row_embedding", &row_embedding, no_gil);
    m.def("row_embedding_backward", &row_embedding_backward, no_gil);
}
