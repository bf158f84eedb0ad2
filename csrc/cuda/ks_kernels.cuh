// The interface between the checks and the choice of a type (ks_rows.cu) and the bucket engine (ks_engine.cuh, which is
// compiled once for each type, in separate files that compile in parallel).
#pragma once

#include "ks_input.cuh"

namespace ksl {
namespace cuda {

// Rows of two tables of one shape, and what is asked of each: its h if that is above `floor`, else just `floor`. From
// `stop` on, any value that h reaches is as good as h. Either h or decided is null.
struct BucketProblem {
    Rows x, y;
    int64_t rows, first_row;
    int n;
    int floor, stop;
    int64_t *h;
    uint8_t *decided, *flags;
};

template <typename T>
void launch_bucket_rows(const BucketProblem &problem, const char *what, Stream stream);

extern template void launch_bucket_rows<float>(const BucketProblem &, const char *, Stream);
extern template void launch_bucket_rows<double>(const BucketProblem &, const char *, Stream);
extern template void launch_bucket_rows<Float16>(const BucketProblem &, const char *, Stream);
extern template void launch_bucket_rows<BFloat16>(const BucketProblem &, const char *, Stream);

}  // namespace cuda
}  // namespace ksl
