#include <pybind11/stl.h>

#include <vector>

#include "cuda/ks_counts.cuh"
#include "cuda/ks_maps.cuh"
#include "cuda/ks_sort.cuh"
#include "probes.h"

namespace {

using ksl::cuda::BlockMax;
using ksl::cuda::BlockReduce;
using ksl::cuda::BlockSum;
using ksl::cuda::kFullWarp;

// What a probe writes, one value per thread.
using Out = std::vector<int64_t>;

__global__ void numbers(int64_t *out) { out[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x * 1000 + threadIdx.x; }

__global__ void reversed(int64_t *out, bool with_barrier) {
    KSL_SHARED(values, int[256]);
    values[threadIdx.x] = static_cast<int>(threadIdx.x);
    if (with_barrier) __syncthreads();
    out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

template <int kThreads>
__global__ void sums(int64_t *out) {
    KSL_SHARED(storage, typename BlockSum<kThreads>::Storage);
    out[threadIdx.x] = BlockSum<kThreads>::before(storage, static_cast<int>(threadIdx.x * 37 % 64) - 20);
}

__global__ void reduces(int64_t *out) {
    KSL_SHARED(storage, BlockReduce<int64_t, 64>::Storage);
    KSL_SHARED(max, BlockMax<64, 2>::Storage);
    const int number = static_cast<int>(threadIdx.x * 37 % 64);
    const auto product = [](int64_t a, int64_t b) { return a * (b + 1) % 1000003; };
    const int64_t all = BlockReduce<int64_t, 64>::reduce(storage, number, product);
    int numbers[2] = {number, -number};
    BlockMax<64, 2>::reduce(max, numbers);
    out[threadIdx.x] = numbers[0] == 63 && numbers[1] == 0;
    if (threadIdx.x == 0) out[64] = all;
}

__global__ void warps(int64_t *out) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    const unsigned odd = __ballot_sync(kFullWarp, lane & 1);
    int sum = lane;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kFullWarp, sum, step);
    const int up = __shfl_up_sync(kFullWarp, lane, 1), down = __shfl_down_sync(kFullWarp, lane, 2);
    unsigned half = 0;  // only the lanes of the mask come here
    if (lane < 16) half = __reduce_add_sync(0xffffu, static_cast<unsigned>(lane));
    out[threadIdx.x] = odd == 0xaaaaaaaau ? sum * 1000000 + up * 10000 + down * 100 + half % 100 : -1;
}

__global__ void atomics(int64_t *out) {
    KSL_SHARED(count, unsigned);
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    atomicAdd(&count, 2u);
    __syncthreads();
    out[threadIdx.x] = count;
}

__global__ void poison(int64_t *out) {
    KSL_SHARED(fixed, unsigned[64]);
    KSL_DYNAMIC_SHARED(memory);
    out[threadIdx.x] = fixed[threadIdx.x] == 0xa5a5a5a5u && memory[threadIdx.x] == 0xa5;
    fixed[threadIdx.x] = memory[threadIdx.x] = 0;  // the next block must not find this
}

// Each lane reads its word, or its vector of 16 bytes, at a stride of so many words or vectors.
template <typename T>
__global__ void strided(int64_t *out, int stride) {
    KSL_DYNAMIC_SHARED(memory);
    const auto *values = reinterpret_cast<const T *>(memory);
    const T value = KSL_WATCHED(values + threadIdx.x * stride);
    out[threadIdx.x] = reinterpret_cast<const unsigned char &>(value);
}

// Every block writes a number, and every thread adds up those of its cluster of four.
constexpr int kCluster = 4;
__global__ void cluster_sums(int64_t *numbers, bool with_barrier) {
    KSL_SHARED(own, int);
    if (threadIdx.x == 0) own = 1 << blockIdx.x;
    __syncthreads();
    if (threadIdx.x == 0) numbers[blockIdx.x] = own;
    if (with_barrier) ksl::cuda::cluster_barrier();
    int64_t sum = 0;
    for (unsigned b = 0; b < kCluster; ++b) sum += numbers[blockIdx.x / kCluster * kCluster + b];
    numbers[gridDim.x + blockIdx.x * blockDim.x + threadIdx.x] = sum + __shfl_sync(kFullWarp, 0, 0);
}

__global__ void some_leave_before_a_cluster_barrier() {
    if (blockIdx.x == 1 && threadIdx.x < 7) return;
    ksl::cuda::cluster_barrier();
}

__global__ void some_leave_before_a_barrier() {
    if (threadIdx.x == 5) return;
    __syncthreads();
}

__global__ void two_barriers() {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

__global__ void shuffle_in_a_branch() {
    if (threadIdx.x % 2 == 0) __shfl_sync(kFullWarp, 1, 0);
}

__global__ void shuffle_outside_the_mask() { __shfl_sync(0xffffu, 1, 0); }

__global__ void beyond_dynamic_shared(int where) {
    KSL_DYNAMIC_SHARED(memory);
    if (threadIdx.x == 0) memory[where] = 0;
}

__global__ void large_static_shared() {
    KSL_SHARED(first, char[40000]);
    KSL_SHARED(second, char[10000]);
    first[0] = second[0] = 0;
}

__global__ void quotients(int64_t *out) {
    const int64_t numbers[] = {0, 1, 7, 0xffffffff, 0x100000000, 0x700000003, 0x7fffffffffffffff};
    for (int i = 0; i < 49; ++i) {
        const int64_t b = numbers[i % 7];
        out[i] = b == 0 ? 0 : ksl::cuda::quotient(numbers[i / 7], b) - numbers[i / 7] / b;
    }
}

// Pairs whose sample is one magnitude, to which a map is fitted.
struct OneMagnitude {
    using Bits = uint16_t;
    static constexpr bool kTwoAWord = false;
    static constexpr int kSample = 1;
    Bits magnitude;

    __device__ bool differ(bool &) const { return true; }
    template <typename F>
    __device__ void each(F &&) const {}
    __device__ bool sample(int, int, Bits &x, Bits &y) const {
        x = y = magnitude;
        return true;
    }
};

// For how many words the buckets of two bfloat16 at once are not those of each. Every value is in either half once.
__global__ void two_buckets(int64_t *out, int magnitude) {
    ksl::cuda::PairedBitMap<ksl::BFloat16, 2048> map;
    map.fit(OneMagnitude{static_cast<uint16_t>(magnitude)}, 1);
    int64_t different = 0;
    for (uint32_t low = threadIdx.x; low < 0x10000u; low += blockDim.x) {
        const uint32_t high = low * 40503u & 0xffffu;  // an odd factor, so that each value occurs
        const uint32_t both = static_cast<uint32_t>(map.bucket(static_cast<uint16_t>(high))) << 16 |
                              static_cast<uint32_t>(map.bucket(static_cast<uint16_t>(low)));
        different += map.two_buckets(high << 16 | low) != both;
    }
    out[threadIdx.x] = different;
}

template <typename... Parameters, typename... Arguments>
void start(void (*kernel)(Parameters...), ksl::cuda::Shape shape, Arguments... arguments) {
    ksl::cuda::launch("probe", kernel, shape, {0, nullptr}, arguments...);
}

template <typename... Parameters, typename... Arguments>
Out outputs(size_t size, void (*kernel)(Parameters...), ksl::cuda::Shape shape, Arguments... arguments) {
    Out out(size, -7);
    start(kernel, shape, out.data(), arguments...);
    return out;
}

Out run(const std::string &name, int64_t argument) {
    if (name == "numbers") return outputs(3 * 40, numbers, {3, 40});
    if (name == "reversed") return outputs(256, reversed, {1, 256}, argument != 0);
    if (name == "sums") return argument == 64 ? outputs(64, sums<64>, {1, 64}) : outputs(512, sums<512>, {1, 512});
    if (name == "reduces") return outputs(65, reduces, {1, 64});
    if (name == "warps") return outputs(64, warps, {1, 64});
    if (name == "atomics") return outputs(100, atomics, {1, 100});
    if (name == "cluster sums") return outputs(8 + 8 * 64, cluster_sums, {8, 64, 0, kCluster}, argument != 0);
    if (name == "quotients") return outputs(49, quotients, {1, 1});
    if (name == "two buckets") return outputs(32, two_buckets, {1, 32}, static_cast<int>(argument));
    if (name == "words") return outputs(32, strided<unsigned>, {1, 32, 32 * 33 * 4}, static_cast<int>(argument));
    if (name == "vectors") return outputs(32, strided<uint4>, {1, 32, 32 * 5 * 16}, static_cast<int>(argument));
    if (name == "poison") return outputs(64, poison, {2, 64, 64});
    if (name == "some leave before a barrier") start(some_leave_before_a_barrier, {1, 64});
    if (name == "two barriers") start(two_barriers, {1, 64});
    if (name == "shuffle in a branch") start(shuffle_in_a_branch, {1, 32});
    if (name == "shuffle outside the mask") start(shuffle_outside_the_mask, {1, 32});
    if (name == "beyond dynamic shared") start(beyond_dynamic_shared, {1, 32, 100}, static_cast<int>(argument));
    if (name == "large static shared") start(large_static_shared, {1, 32});
    if (name == "some leave before a cluster barrier") start(some_leave_before_a_cluster_barrier, {2, 64, 0, 2});
    if (name == "cluster of") start(two_barriers, {16, 32, 0, static_cast<int>(argument)});
    if (name == "threads") start(two_barriers, {1, static_cast<int>(argument)});
    if (name == "blocks") start(two_barriers, {argument, 32});
    return {};
}

}  // namespace

void bind_probes(pybind11::module_ &m) { m.def("probe", &run, pybind11::arg("name"), pybind11::arg("argument") = 0); }
