// The bucket engine for rows of float32 and float64.
#include "ks_engine.cuh"

namespace ksl {
namespace cuda {

template void launch_bucket_rows<float>(const BucketProblem &, const char *, Stream);
template void launch_bucket_rows<double>(const BucketProblem &, const char *, Stream);

}  // namespace cuda
}  // namespace ksl
