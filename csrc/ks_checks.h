// Checks of the arguments of the KS functions, for every backend.
#pragma once

#include <numeric>

#include "check.h"
#include "ksl.h"

namespace ksl {

inline void check_samples(const Matrix &x, const Matrix &y) {
    KSL_CHECK(x.rows == y.rows, "x has ", x.rows, " rows and y has ", y.rows, "; expected as many");
    KSL_CHECK(x.rows == 0 || (x.cols > 0 && y.cols > 0), "a row of x has ", x.cols, " values and a row of y ", y.cols,
              "; expected at least one in each");
}

inline void check_tables(const Matrix &x, const Matrix &y) {
    KSL_CHECK(x.rows == y.rows && x.cols == y.cols, "the tables have shapes [", x.rows, ", ", x.cols, "] and [", y.rows,
              ", ", y.cols, "]; expected one shape");
    check_samples(x, y);
}

// For ks_statistics and ks_decide, which count in 32 bits.
inline void check_row_length(const Matrix &x) {
    KSL_CHECK(x.cols < INT32_MAX, "rows of ", x.cols, " values; expected fewer than 2^31 - 1");
}

// For ks_rows, whose unit is the least common multiple.
inline void check_unit(const Matrix &x, const Matrix &y) {
    KSL_CHECK(y.cols / std::gcd(x.cols, y.cols) <= INT64_MAX / x.cols, "rows of ", x.cols, " and ", y.cols,
              " values: their least common multiple does not fit 64 bits");
}

}  // namespace ksl
