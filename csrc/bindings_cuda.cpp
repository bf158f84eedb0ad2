// The functions of ksl::cuda for Python: kslottery_fast._C.cuda, and the module of the tests' shim.
#include "bindings.h"

namespace {

using ksl::Address, ksl::input, ksl::MatrixArgs, ksl::pointer;
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

}  // namespace

void ksl::bind_cuda(pybind11::module_ &m) {
    const pybind11::call_guard<pybind11::gil_scoped_release> no_gil;
    m.def("unavailable", &cuda::unavailable, no_gil);
    m.def("ks_rows", &::ks_rows, no_gil);
    m.def("ks_statistics", &::ks_statistics, no_gil);
    m.def("ks_decide", &::ks_decide, no_gil);
}
