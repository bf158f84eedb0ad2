// The Python module of the shim: the functions of kslottery_fast._C.cuda, on the CPU, and what tests ask the shim.
#include "bindings.h"
#include "executor.h"
#include "probes.h"

PYBIND11_MODULE(ksl_shim, m) {
    ksl::bind_cuda(m);
    m.def("set_seed", &shim::set_seed);
    m.def("blocks_executed", &shim::blocks_executed);
    bind_probes(m);
}
