// Small kernels, most of them wrong on purpose, by which tests/cuda/test_shim.py tests the shim itself.
#pragma once

#include <pybind11/pybind11.h>

void bind_probes(pybind11::module_ &m);
