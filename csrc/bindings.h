// What the bindings share. Pointers are passed as integers, and a matrix as the tuple (pointer, rows, cols, row_stride,
// col_stride, dtype). Pointers may be 0 where ksl.h says "or null".
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>

#include "ksl.h"

namespace ksl {

using Address = uintptr_t;
using MatrixArgs = std::tuple<Address, int64_t, int64_t, int64_t, int64_t, int32_t>;

template <typename T>
T *pointer(Address address) {
    return reinterpret_cast<T *>(address);
}

template <typename M, typename T>
M matrix(const MatrixArgs &args) {
    const auto &[data, rows, cols, row_stride, col_stride, dtype] = args;
    return {pointer<T>(data), rows, cols, row_stride, col_stride, static_cast<DType>(dtype)};
}

inline Matrix input(const MatrixArgs &args) { return matrix<Matrix, const void>(args); }

inline MutableMatrix output(const MatrixArgs &args) { return matrix<MutableMatrix, void>(args); }

// Adds the functions of ksl::cuda; each ends with the arguments (device, stream).
void bind_cuda(pybind11::module_ &m);

}  // namespace ksl
