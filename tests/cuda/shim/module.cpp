// The Python module of the shim: the functions of kslottery_fast._C.cuda, on the CPU, and what tests ask the shim.
#include <pybind11/stl.h>

#include "bindings.h"
#include "cuda_runtime.h"
#include "executor.h"
#include "probes.h"

PYBIND11_MODULE(ksl_shim, m) {
    ksl::bind_cuda(m);
    m.def("set_seed", &shim::set_seed);
    m.def("blocks_executed", &shim::blocks_executed);
    m.def("launches_executed", &shim::launches_executed);
    m.def("granted_shared", &shim::granted_shared);
    m.def("bank_conflicts", &shim::bank_conflicts);
    m.def("contexts", &shim::contexts);
    m.def("end_contexts", &shim::end_contexts);
    m.def("current_device", &shim::current_device);
    m.def("take_kernels_from", &shim::take_kernels_from);
    bind_probes(m);
}
