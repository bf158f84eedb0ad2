// The bucket engine for rows of bfloat16.
#include "ks_engine.cuh"

namespace ksl {
namespace cuda {

template void launch_bucket_rows<BFloat16>(const BucketProblem &, const char *, Stream);

}  // namespace cuda
}  // namespace ksl
