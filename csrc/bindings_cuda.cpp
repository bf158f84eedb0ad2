// The functions of ksl::cuda for Python: kslottery_fast._C.cuda, and the module of the tests' shim.
#include "bindings.h"

namespace {

namespace py = pybind11;
using ksl::Address, ksl::DType, ksl::input, ksl::MatrixArgs, ksl::output, ksl::pointer;
namespace cuda = ksl::cuda;

cuda::Stream on(int device, Address stream) { return {device, pointer<void>(stream)}; }

std::pair<int64_t, int64_t> ks_rows_workspace(const MatrixArgs &x, const MatrixArgs &y, int device, Address stream) {
    const cuda::WorkspaceSize size = cuda::ks_rows_workspace(input(x), input(y), on(device, stream));
    return {size.least, size.best};
}

void ks_rows(const MatrixArgs &x, const MatrixArgs &y, Address plus, Address minus, Address plus_at, Address minus_at,
             Address flags, Address workspace, int64_t workspace_bytes, int device, Address stream) {
    cuda::ks_rows(input(x), input(y), pointer<int64_t>(plus), pointer<int64_t>(minus), pointer<double>(plus_at),
                  pointer<double>(minus_at), pointer<uint8_t>(flags), pointer<void>(workspace), workspace_bytes,
                  on(device, stream));
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

void ks_reached(Address h, Address flags, int64_t rows, int64_t threshold, uint8_t bits, Address state, Address found,
                int device, Address stream) {
    cuda::ks_reached(pointer<const int64_t>(h), pointer<const uint8_t>(flags), rows, threshold, bits,
                     pointer<uint64_t>(state), pointer<int64_t>(found), on(device, stream));
}

// Python gives every argument by its name, so no two pointers can be swapped unseen.
void bind_row_update(py::module_ &m) {
    const auto make = [](const MatrixArgs &table, Address row_ids, int64_t k, Address master, const MatrixArgs &grad,
                         bool whole_grad, Address exp_avg, Address exp_avg_sq, Address read, Address step_at,
                         int64_t step, Address lr_at, int32_t lr_dtype, double lr, double beta1, double beta2,
                         double eps, double weight_decay) {
        cuda::RowUpdate update{};
        update.table = output(table);
        update.row_ids = pointer<const int64_t>(row_ids);
        update.k = k;
        update.master = pointer<void>(master);
        update.grad = input(grad);
        update.whole_grad = whole_grad;
        update.exp_avg = pointer<void>(exp_avg);
        update.exp_avg_sq = pointer<void>(exp_avg_sq);
        update.read = pointer<uint8_t>(read);
        update.step = pointer<float>(step_at);
        update.lr = pointer<const void>(lr_at);
        update.lr_dtype = static_cast<DType>(lr_dtype);
        update.hyper = {lr, beta1, beta2, eps, weight_decay, step};
        return update;
    };
    // The module of the tests' shim has a type of the same name.
    py::class_<cuda::RowUpdate>(m, "RowUpdate", py::module_local())
        .def(py::init(make), py::kw_only(), py::arg("table"), py::arg("row_ids"), py::arg("k"), py::arg("master"),
             py::arg("grad"), py::arg("whole_grad"), py::arg("exp_avg"), py::arg("exp_avg_sq"), py::arg("read"),
             py::arg("step_at"), py::arg("step"), py::arg("lr_at"), py::arg("lr_dtype"), py::arg("lr"),
             py::arg("beta1"), py::arg("beta2"), py::arg("eps"), py::arg("weight_decay"));
}

std::string row_adamw_step(const std::vector<cuda::RowUpdate> &updates, Address state, Address grad_scale,
                           Address found_inf, bool skip_nonfinite, int device, Address stream) {
    const cuda::StepControl control{pointer<int32_t>(state), pointer<const float>(grad_scale),
                                    pointer<const float>(found_inf), skip_nonfinite};
    return cuda::row_adamw(updates.data(), static_cast<int64_t>(updates.size()), control, on(device, stream));
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
    const py::call_guard<py::gil_scoped_release> no_gil;
    m.def("unavailable", py::overload_cast<>(&cuda::unavailable), no_gil);
    m.def("unavailable", py::overload_cast<int>(&cuda::unavailable), no_gil);
    m.def("ks_rows_workspace", &::ks_rows_workspace, no_gil);
    m.def("ks_rows", &::ks_rows, no_gil);
    m.def("ks_statistics", &::ks_statistics, no_gil);
    m.def("ks_decide", &::ks_decide, no_gil);
    m.def("ks_reached", &::ks_reached, no_gil);
    bind_row_update(m);
    m.def("row_adamw_step", &::row_adamw_step, no_gil);
    m.def("row_embedding", &::row_embedding, no_gil);
    m.def("row_embedding_backward_workspace", &::row_embedding_backward_workspace, no_gil);
    m.def("row_embedding_backward", &::row_embedding_backward, no_gil);
}
