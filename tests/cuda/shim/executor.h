// Executes a kernel on the CPU: the threads of a block are fibers of one system thread, block after block. The blocks
// of a cluster run beside each other, cluster after cluster.
//
// A fiber runs until it comes to a barrier, a warp-wide operation or its end. Without a seed the fibers go round in the
// order of their numbers; with one, the next to run is drawn at random, and atomics may switch too. What depends on an
// order that CUDA does not promise then gives other results for other seeds.
//
// What is checked, each a std::logic_error that names the threads:
// - a barrier or a warp-wide operation that not all of its threads come to, or come to with other arguments or in
//   another line: hardware may hang there, or worse;
// - shared memory written before its begin or beyond its end; and none of it is ever zero by chance: it is filled with
//   0xa5 before each block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>

namespace shim {

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};

struct Launch {
    Dim grid, block;
    unsigned cluster = 1;  // blocks beside each other
    size_t dynamic_shared = 0;
    size_t shared_limit = 48 * 1024;  // static and dynamic together
};

// Where in the source an operation stands.
struct Site {
    const char *file;
    int line;
};

// Runs all blocks. Throws std::logic_error as above, or what the body throws.
void execute(const Launch &launch, const std::function<void()> &body);

void set_seed(uint64_t seed);  // 0: in the order of the numbers
uint64_t blocks_executed();    // since the process started: shows what a launcher's grid really was
uint64_t launches_executed();  // likewise

// ---- what kernels call, through cuda_runtime.h ----

int lane();

// Waits until all threads of the block are here; the sum of their values.
int64_t block_barrier(const char *operation, Site site, int64_t value);

// Waits until all threads of the blocks of the cluster are here.
void cluster_barrier(Site site);

// Waits until the lanes of the mask are here; values[i] is then what lane i brought, for the lanes of the mask.
const uint64_t *warp_exchange(const char *operation, Site site, unsigned mask, uint64_t value);

// The shared variable of this key in the block that runs; the same memory for all its threads.
void *shared_variable(const void *key, size_t bytes);
unsigned char *dynamic_shared();

void at_atomic();  // a place where another thread may come in between

// A read of shared memory. The k-th reads of a site by the lanes of a warp are one instruction of it: the hardware
// serves 128 bytes at a time, and takes longer where several different words are in one of the 32 banks.
void at_read(const void *at, size_t bytes, Site site);

// For each site ("file:line"), since the last call: how often a warp was served, and how many more turns that took.
std::map<std::string, std::pair<int64_t, int64_t>> bank_conflicts();

}  // namespace shim
