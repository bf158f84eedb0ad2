// The memory floor: reads two tables once, on the threads and by the loop that the kernels use, and does nothing else
// with them.
//
// `block` bytes of the one table and then of the other, until both are read; `ahead` > 0 asks for the line that many
// bytes further on. Which pair of the two is fastest depends on the machine, so the caller tries several.
#include <atomic>
#include <cstdint>

#include "../csrc/parallel.h"

namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kChunk = int64_t{1} << 22;  // bytes of each table that a thread takes at once

// XOR of everything, so that no read can be left out. Eight lanes: more than the memory can feed.
uint64_t read(const char *bytes, int64_t count, int64_t ahead) {
    uint64_t lanes[kLine / 8] = {};
    for (int64_t at = 0; at < count; at += kLine) {
        if (ahead) __builtin_prefetch(bytes + at + ahead);
        const auto *line = reinterpret_cast<const uint64_t *>(bytes + at);
        for (int lane = 0; lane < 8; ++lane) lanes[lane] ^= line[lane];
    }
    uint64_t all = 0;
    for (const uint64_t lane : lanes) all ^= lane;
    return all;
}

}  // namespace

// `bytes` is the size of each table and a multiple of `block`; `block` is one of 64.
extern "C" uint64_t memory_read(const char *x, const char *y, int64_t bytes, int64_t block, int64_t ahead,
                                int threads) {
    std::atomic<uint64_t> all{0};
    ksl::parallel_for(0, bytes / block, kChunk / block, threads, [&](int64_t first, int64_t last) {
        uint64_t mine = 0;
        for (int64_t i = first; i < last; ++i)
            mine ^= read(x + i * block, block, ahead) ^ read(y + i * block, block, ahead);
        all ^= mine;
    });
    return all;
}
