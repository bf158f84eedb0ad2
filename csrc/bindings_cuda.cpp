// The functions of ksl::cuda for Python: kslottery_fast._C.cuda, and the module of the tests' shim.
#include "bindings.h"

namespace {

using ksl::Address, ksl::DType, ksl::input, ksl::Matrix, ksl::MatrixArgs, ksl::output, ksl::pointer;
namespace cuda = ksl::cuda;

cuda::Stream on(int device, Address stream) { return {device, pointer<void>(stream)}; }

void ks_rows(const MatrixArgs &x, const MatrixArgs &y, Address plus, Address minus, Address plus_at, Address minus_at,
             Address flags, int device, Address stream) {
    cuda::ks_rows(input(x), input(y), pointer<int64_t>(plus), pointer<int64_t>(minus), pointer<double>(plus_at),
                  pointer<double>(minus_at), pointer<uint8_t>(flags), on(device, stream));
}

void ks_statistics(const MatrixArgs &x, const MatrixArgs &y, int64_t threshold, Address h, Address flags, int device,
                   Address stream) {
    cuda::ks_statistics(input(x), input(y), threshold, pointer<int64_t>(h), pointer<uint8_t>(flags),
                        on(device, stream));
}

void ks_decide(const MatrixArgs &x, const MatrixArgs &y, int64_t threshold, Address decided, Address flags, int device,
               Address stream) {
    cuda::ks_decide(input(x), input(y), threshold, pointer<uint8_t>(decided), pointer<uint8_t>(flags),
                    on(device, stream));
}

// table, row_ids, master, grad, exp_avg, exp_avg_sq; (step, lr, lr_dtype, whole_grad), the first two on the device or
// 0; k; (step, lr, beta1, beta2, eps, weight_decay)
using UpdateArgs = std::tuple<MatrixArgs, Address, Address, MatrixArgs, Address, Address,
                              std::tuple<Address, Address, int32_t, bool, Address>, int64_t,
                              std::tuple<int64_t, double, double, double, double, double>>;

cuda::RowUpdate row_update(const UpdateArgs &args) {
    const auto &[table, row_ids, master, grad, exp_avg, exp_avg_sq, scalars, k, hyper] = args;
    const auto &[step_at, lr_at, lr_dtype, whole_grad, read] = scalars;
    const auto &[step, lr, beta1, beta2, eps, weight_decay] = hyper;
    cuda::RowUpdate update{};
    update.table = output(table);
    update.row_ids = pointer<const int64_t>(row_ids);
    update.k = k;
    update.master = pointer<void>(master);
    update.grad = input(grad);
    update.exp_avg = pointer<void>(exp_avg);
    update.exp_avg_sq = pointer<void>(exp_avg_sq);
    update.hyper = {lr, beta1, beta2, eps, weight_decay, step};
    update.step = pointer<float>(step_at);
    update.lr = pointer<const void>(lr_at);
    update.lr_dtype = static_cast<DType>(lr_dtype);
    update.whole_grad = whole_grad;
    update.read = pointer<uint8_t>(read);
    return update;
}

void row_adamw_step(const std::vector<UpdateArgs> &args, Address state, Address grad_scale, Address found_inf,
                    bool skip_nonfinite, int device, Address stream) {
    std::vector<cuda::RowUpdate> updates;
    for (const UpdateArgs &update : args) updates.push_back(row_update(update));
    const cuda::StepControl control{pointer<int32_t>(state), pointer<const float>(grad_scale),
                                    pointer<const float>(found_inf), skip_nonfinite};
    cuda::row_adamw(updates.data(), static_cast<int64_t>(updates.size()), control, on(device, stream));
}

// With the arguments of the CPU's function, but for `read`, the workspace of a lazy update, in place of `lazy`.
void row_adamw(const MatrixArgs &table, Address row_ids, int64_t k, Address master, const MatrixArgs &grad,
               Address exp_avg, Address exp_avg_sq, int64_t step, double lr, double beta1, double beta2, double eps,
               double weight_decay, Address read, int device, Address stream) {
    const cuda::RowUpdate update = row_update({table,
                                               row_ids,
                                               master,
                                               grad,
                                               exp_avg,
                                               exp_avg_sq,
                                               {0, 0, 0, false, read},
                                               k,
                                               {step, lr, beta1, beta2, eps, weight_decay}});
    cuda::row_adamw(&update, 1, {}, on(device, stream));
}

void row_embedding(const MatrixArgs &table, const MatrixArgs &rows, Address slots, Address ids, int64_t n, Address out,
                   int device, Address stream) {
    cuda::row_embedding(input(table), input(rows), pointer<const int32_t>(slots), pointer<const int64_t>(ids), n,
                        pointer<void>(out), on(device, stream));
}

int64_t row_embedding_backward_workspace(int64_t n, int64_t k, int device, Address stream) {
    return cuda::row_embedding_backward_workspace(n, k, on(device, stream));
}

void row_embedding_backward(const MatrixArgs &grad_out, Address slots, int64_t vocab, Address ids, int64_t n, int64_t k,
                            Address workspace, Address grad_rows, int32_t grad_rows_dtype, int device, Address stream) {
    cuda::row_embedding_backward(input(grad_out), pointer<const int32_t>(slots), vocab, pointer<const int64_t>(ids), n,
                                 k, pointer<void>(workspace), pointer<void>(grad_rows),
                                 static_cast<DType>(grad_rows_dtype), on(device, stream));
}

}  // namespace

void ksl::bind_cuda(pybind11::module_ &m) {
    const pybind11::call_guard<pybind11::gil_scoped_release> no_gil;
    m.def("unavailable", pybind11::overload_cast<>(&cuda::unavailable), no_gil);
    m.def("unavailable", pybind11::overload_cast<int>(&cuda::unavailable), no_gil);
    m.def("ks_rows", &::ks_rows, no_gil);
    m.def("ks_statistics", &::ks_statistics, no_gil);
    m.def("ks_decide", &::ks_decide, no_gil);
    m.def("row_adamw", &::row_adamw, no_gil);
    m.def("row_adamw_step", &::row_adamw_step, no_gil);
    m.def("row_embedding", &::row_embedding, no_gil);
    m.def("row_embedding_backward_workspace", &::row_embedding_backward_workspace, no_gil);
    m.def("row_embedding_backward", &::row_embedding_backward, no_gil);
}
