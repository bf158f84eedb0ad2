// Fibers by makecontext, which start once and are used for block after block; from then on they change places by
// _setjmp and _longjmp, which need no system call.
#include "executor.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <csetjmp>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace shim {
namespace {

constexpr size_t kStack = 256 * 1024;  // untouched pages cost nothing
constexpr size_t kEdge = 64;           // bytes watched at both ends of shared memory
constexpr unsigned char kPoison = 0xa5, kEdgeMark = 0x5a;

enum class State { kReady, kAtBarrier, kAtWarp, kAtCluster, kDone };

struct Fiber {
    State state = State::kDone;
    jmp_buf place;
    ucontext_t start;
    void *stack = nullptr;
    const char *operation = "";
    Site site{};
    unsigned mask = 0;
    uint64_t value = 0;
    uint64_t gathered[32];
    bool started = false;
};

// Shared memory with marked edges, exactly as large as asked for.
class Guarded {
  public:
    explicit Guarded(size_t bytes) : bytes_(bytes), memory_(new unsigned char[bytes + 2 * kEdge + 16]) {
        std::memset(memory_.get(), kEdgeMark, bytes + 2 * kEdge + 16);
        std::memset(data(), kPoison, bytes);
    }
    unsigned char *data() const {
        const auto begin = reinterpret_cast<uintptr_t>(memory_.get()) + kEdge;
        return reinterpret_cast<unsigned char *>((begin + 15) / 16 * 16);
    }
    size_t size() const { return bytes_; }
    bool intact() const {
        for (const unsigned char *at = memory_.get(); at < memory_.get() + bytes_ + 2 * kEdge + 16; ++at) {
            if ((at < data() || at >= data() + bytes_) && *at != kEdgeMark) return false;
        }
        return true;
    }

  private:
    size_t bytes_;
    std::unique_ptr<unsigned char[]> memory_;
};

std::string text(Site site) {
    const char *slash = std::strrchr(site.file, '/');
    return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

// The reads of one line by the threads of a block, and how many turns the banks need for them.
class Reads {
  public:
    void add(int thread, const void *at, size_t bytes) {
        bytes_ = bytes;
        by_thread_[thread].push_back(reinterpret_cast<uintptr_t>(at) / 4);
    }

    // Adds the number of times that 128 bytes or less were served, and of turns beyond the first of each.
    void count(std::pair<int64_t, int64_t> &served) const {
        const int together = static_cast<int>(std::min<size_t>(32, 128 / bytes_));  // lanes
        std::map<std::pair<int, size_t>, std::array<std::set<uintptr_t>, 32>> banks;
        for (const auto &[thread, words] : by_thread_) {
            for (size_t k = 0; k < words.size(); ++k) {
                auto &of_group = banks[{thread / together, k}];
                for (uintptr_t w = words[k]; w < words[k] + bytes_ / 4; ++w) of_group[w % 32].insert(w);
            }
        }
        for (const auto &[group, of_group] : banks) {
            size_t turns = 1;
            for (const auto &words : of_group) turns = std::max(turns, words.size());
            ++served.first;
            served.second += static_cast<int64_t>(turns) - 1;
        }
    }

  private:
    size_t bytes_ = 4;
    std::map<int, std::vector<uintptr_t>> by_thread_;
};

// A block that runs.
struct Block {
    uint3 index;
    std::map<const void *, std::unique_ptr<Guarded>> variables;
    std::unique_ptr<Guarded> dynamic;
    size_t shared_bytes;
    int at_barrier = 0;
    std::map<std::string, Reads> reads;

    bool intact() const {
        bool all = dynamic->intact();
        for (const auto &[key, variable] : variables) all = all && variable->intact();
        return all;
    }
};

class Executor {
  public:
    void run(const Launch &launch, const std::function<void()> &body) {
        const uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
        count_ = static_cast<int>(threads);
        launch_ = &launch;
        body_ = &body;
        fibers_here_ = count_ * static_cast<int>(launch.cluster);
        make_fibers();
        blockDim = dim3(launch.block.x, launch.block.y, launch.block.z);
        gridDim = dim3(launch.grid.x, launch.grid.y, launch.grid.z);
        ++launches_;
        const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
        for (uint64_t b = 0; b < blocks; b += launch.cluster) {
            begin_blocks(b);
            run_blocks();
            blocks_ += launch.cluster;
        }
    }

    void set_seed(uint64_t seed) {
        seed_ = seed;
        random_.seed(seed);
    }
    uint64_t blocks() const { return blocks_; }
    uint64_t launches() const { return launches_; }
    int thread() const { return current_ % count_; }  // of its block

    int64_t barrier(const char *operation, Site site, int64_t value) {
        Fiber &me = fibers_[current_];
        arrive(State::kAtBarrier, operation, site, 0, static_cast<uint64_t>(value));
        if (++block().at_barrier == count_) {
            block().at_barrier = 0;
            release(first_of_block(), count_, State::kAtBarrier, operation, site);
        }
        leave(me);
        return static_cast<int64_t>(me.value);
    }

    void cluster_barrier(Site site) {
        constexpr const char *kOperation = "cluster_barrier";
        Fiber &me = fibers_[current_];
        arrive(State::kAtCluster, kOperation, site, 0, 0);
        if (++at_cluster_ == fibers_here_) {
            at_cluster_ = 0;
            release(0, fibers_here_, State::kAtCluster, kOperation, site);
        }
        leave(me);
    }

    const uint64_t *exchange(const char *operation, Site site, unsigned mask, uint64_t value) {
        Fiber &me = fibers_[current_];
        if ((mask >> (thread() % 32) & 1) == 0) fail(std::string(operation) + " by a lane that is not in its mask");
        arrive(State::kAtWarp, operation, site, mask, value);
        release_warp(me);
        leave(me);
        return me.gathered;
    }

    void at_atomic() {
        if (seed_ == 0 || random_() % 8 != 0) return;
        Fiber &me = fibers_[current_];
        me.state = State::kReady;
        ready_.push_back(current_);
        leave(me);
    }

    void at_read(const void *at, size_t bytes, Site site) { block().reads[text(site)].add(thread(), at, bytes); }

    std::map<std::string, std::pair<int64_t, int64_t>> bank_conflicts() { return std::exchange(conflicts_, {}); }

    void *shared(const void *key, size_t bytes) {
        auto &slot = block().variables[key];
        if (!slot) {
            slot = std::make_unique<Guarded>(bytes);
            block().shared_bytes += bytes;
            if (block().shared_bytes > launch_->shared_limit) {
                fail("the block wants " + std::to_string(block().shared_bytes) +
                     " bytes of shared memory, allowed are " + std::to_string(launch_->shared_limit));
            }
        }
        return slot->data();
    }

    unsigned char *dynamic() { return block().dynamic->data(); }

  private:
    Block &block() { return here_[static_cast<size_t>(current_ / count_)]; }
    int first_of_block() const { return current_ - thread(); }

    [[noreturn]] void fail(const std::string &what) const {
        std::ostringstream message;
        message << "block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z << "), thread " << thread()
                << ": " << what;
        throw std::logic_error(message.str());
    }

    void make_fibers() {
        while (static_cast<int>(fibers_.size()) < fibers_here_) fibers_.emplace_back();
    }

    // As many as a cluster has, from number `first` on.
    void begin_blocks(uint64_t first) {
        const Dim &grid = launch_->grid;
        here_.clear();
        for (uint64_t b = first; b < first + launch_->cluster; ++b) {
            Block &fresh = here_.emplace_back();
            fresh.index = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                           static_cast<unsigned>(b / grid.x / grid.y)};
            fresh.dynamic = std::make_unique<Guarded>(launch_->dynamic_shared);
            fresh.shared_bytes = launch_->dynamic_shared;
        }
    }

    void run_blocks() {
        at_cluster_ = 0;
        ready_.clear();
        error_ = nullptr;
        int done = 0;
        for (int f = 0; f < fibers_here_; ++f) {
            fibers_[f].state = State::kReady;
            ready_.push_back(f);
        }
        while (!ready_.empty() && !error_) {
            if (seed_ != 0) std::swap(ready_.front(), ready_[random_() % ready_.size()]);
            const int f = ready_.front();
            ready_.pop_front();
            resume(f);
            done += fibers_[f].state == State::kDone;
        }
        if (error_ || done < fibers_here_) {
            abandon_fibers();
            if (error_) std::rethrow_exception(error_);
            throw std::logic_error(stuck_message_);
        }
        for (const Block &each : here_) {
            blockIdx = each.index;
            if (!each.intact()) fail("shared memory was written outside of what was declared");
            for (const auto &[site, reads] : each.reads) reads.count(conflicts_[site]);
        }
    }

    // Stuck or failed: their stacks hold frames that nobody will return to.
    void abandon_fibers() {
        std::ostringstream message;
        const uint3 &first = here_.front().index;
        message << (here_.size() > 1 ? "the cluster of " : "") << "block (" << first.x << ", " << first.y << ", "
                << first.z << ") is stuck:";
        std::map<std::string, std::pair<int, int>> groups;  // how many threads do the same, and the first of them
        for (int f = 0; f < fibers_here_; ++f) {
            const Fiber &fiber = fibers_[f];
            std::ostringstream what;
            if (fiber.state == State::kDone) {
                what << "ended";
            } else if (fiber.state == State::kReady) {
                what << "could go on";  // another thread's error stopped the block
            } else {
                what << "at " << fiber.operation << " in " << text(fiber.site);
                if (fiber.state == State::kAtWarp) what << " with mask 0x" << std::hex << fiber.mask;
            }
            auto &[number, thread] = groups.try_emplace(what.str(), 0, f % count_).first->second;
            ++number;
        }
        for (const auto &[what, group] : groups) {
            message << " " << group.first << " threads, first " << group.second << ", " << what << ";";
        }
        stuck_message_ = message.str();
        for (Fiber &fiber : fibers_) fiber.started = false;
    }

    void arrive(State state, const char *operation, Site site, unsigned mask, uint64_t value) {
        Fiber &me = fibers_[current_];
        me.state = state;
        me.operation = operation;
        me.site = site;
        me.mask = mask;
        me.value = value;
    }

    // Lets `count` fibers from `first` on go on, which are all at the same kind of barrier.
    void release(int first, int count, State at, const char *operation, Site site) {
        uint64_t sum = 0;
        for (int f = first; f < first + count; ++f) {
            const Fiber &other = fibers_[f];
            if (other.state != at || other.site.line != site.line || std::strcmp(other.site.file, site.file) != 0) {
                fail(std::string("threads wait at different barriers: ") + operation + " in " + text(site) + " and " +
                     other.operation + " in " + text(other.site));
            }
            sum += other.value;
        }
        for (int f = first; f < first + count; ++f) {
            fibers_[f].value = sum;
            fibers_[f].state = State::kReady;
            ready_.push_back(f);
        }
    }

    // Lets the lanes of a warp-wide operation go on if all of them are at it.
    void release_warp(const Fiber &me) {
        const int first = first_of_block() + thread() / 32 * 32;
        for (int i = 0; i < 32; ++i) {
            if ((me.mask >> i & 1) == 0) continue;
            if (thread() / 32 * 32 + i >= count_)
                fail(std::string(me.operation) + ": its mask names lanes that do not exist");
            const Fiber &other = fibers_[first + i];
            if (other.state != State::kAtWarp || other.mask != me.mask || other.site.line != me.site.line ||
                std::strcmp(other.operation, me.operation) != 0 || std::strcmp(other.site.file, me.site.file) != 0) {
                return;
            }
        }
        for (int i = 0; i < 32; ++i) {
            if ((me.mask >> i & 1) == 0) continue;
            Fiber &lane = fibers_[first + i];
            for (int k = 0; k < 32; ++k) {
                if (me.mask >> k & 1) lane.gathered[k] = fibers_[first + k].value;
            }
            lane.state = State::kReady;
            ready_.push_back(first + i);
        }
    }

    // ---- changing places ----

    void resume(int f) {
        current_ = f;
        const unsigned t = static_cast<unsigned>(thread());
        threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
        blockIdx = block().index;
        Fiber &fiber = fibers_[f];
#if defined(__SANITIZE_ADDRESS__)
        void *fake = nullptr;
        if (!fiber.stack) allocate(fiber);
        __sanitizer_start_switch_fiber(&fake, fiber.stack, kStack);
#endif
        if (_setjmp(scheduler_) == 0) {
            if (fiber.started) _longjmp(fiber.place, 1);
            start(fiber);
        }
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    }

    void leave(Fiber &me) {
#if defined(__SANITIZE_ADDRESS__)
        void *fake = nullptr;
        __sanitizer_start_switch_fiber(&fake, main_stack_, main_stack_size_);
#endif
        if (_setjmp(me.place) == 0) _longjmp(scheduler_, 1);
#if defined(__SANITIZE_ADDRESS__)
        __sanitizer_finish_switch_fiber(fake, &main_stack_, &main_stack_size_);
#endif
    }

    static void allocate(Fiber &fiber) {
        fiber.stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (fiber.stack == MAP_FAILED) throw std::bad_alloc();
    }

    void start(Fiber &fiber) {
        if (!fiber.stack) allocate(fiber);
        fiber.started = true;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack;
        fiber.start.uc_stack.ss_size = kStack;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, &Executor::entry, 0);
        setcontext(&fiber.start);
    }

    static void entry();

    std::deque<Fiber> fibers_;
    std::deque<int> ready_;
    jmp_buf scheduler_;
    const Launch *launch_ = nullptr;
    const std::function<void()> *body_ = nullptr;
    std::vector<Block> here_;  // the blocks that run beside each other
    std::map<std::string, std::pair<int64_t, int64_t>> conflicts_;
    std::exception_ptr error_;
    std::string stuck_message_;
    std::mt19937_64 random_;
    uint64_t seed_ = 0, blocks_ = 0, launches_ = 0;
    int count_ = 0, fibers_here_ = 0, current_ = 0, at_cluster_ = 0;  // count_: threads of a block
#if defined(__SANITIZE_ADDRESS__)
    const void *main_stack_ = nullptr;
    size_t main_stack_size_ = 0;
#endif
};

Executor &executor() {
    static auto *instance = new Executor;
    return *instance;
}

// What a fiber does, for ever: the body of the kernel, then wait for the next block.
void Executor::entry() {
    Executor &me = executor();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &me.main_stack_, &me.main_stack_size_);
#endif
    for (;;) {
        Fiber &fiber = me.fibers_[me.current_];
        try {
            (*me.body_)();
        } catch (...) {
            me.error_ = std::current_exception();
        }
        fiber.state = State::kDone;
        me.leave(fiber);
    }
}

}  // namespace

void execute(const Launch &launch, const std::function<void()> &body) { executor().run(launch, body); }
void set_seed(uint64_t seed) { executor().set_seed(seed); }
uint64_t blocks_executed() { return executor().blocks(); }
uint64_t launches_executed() { return executor().launches(); }
int lane() { return executor().thread() % 32; }

int64_t block_barrier(const char *operation, Site site, int64_t value) {
    return executor().barrier(operation, site, value);
}

void cluster_barrier(Site site) { executor().cluster_barrier(site); }

const uint64_t *warp_exchange(const char *operation, Site site, unsigned mask, uint64_t value) {
    return executor().exchange(operation, site, mask, value);
}

void *shared_variable(const void *key, size_t bytes) { return executor().shared(key, bytes); }
unsigned char *dynamic_shared() { return executor().dynamic(); }
void at_atomic() { executor().at_atomic(); }
void at_read(const void *at, size_t bytes, Site site) { executor().at_read(at, bytes, site); }
std::map<std::string, std::pair<int64_t, int64_t>> bank_conflicts() { return executor().bank_conflicts(); }

}  // namespace shim
