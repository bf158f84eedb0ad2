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

enum class State { kReady, kAtBarrier, kAtWarp, kDone };

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

class Executor {
  public:
    void run(const Launch &launch, const std::function<void()> &body) {
        const uint64_t threads = uint64_t{launch.block.x} * launch.block.y * launch.block.z;
        count_ = static_cast<int>(threads);
        launch_ = &launch;
        body_ = &body;
        make_fibers();
        blockDim = dim3(launch.block.x, launch.block.y, launch.block.z);
        gridDim = dim3(launch.grid.x, launch.grid.y, launch.grid.z);
        const uint64_t blocks = uint64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
        for (uint64_t b = 0; b < blocks; ++b) {
            blockIdx = {static_cast<unsigned>(b % launch.grid.x),
                        static_cast<unsigned>(b / launch.grid.x % launch.grid.y),
                        static_cast<unsigned>(b / launch.grid.x / launch.grid.y)};
            run_block();
            ++blocks_;
        }
    }

    void set_seed(uint64_t seed) {
        seed_ = seed;
        random_.seed(seed);
    }
    uint64_t blocks() const { return blocks_; }
    int current() const { return current_; }

    int64_t barrier(const char *operation, Site site, int64_t value) {
        Fiber &me = fibers_[current_];
        arrive(State::kAtBarrier, operation, site, 0, static_cast<uint64_t>(value));
        if (++at_barrier_ == count_) release_barrier(operation, site);
        leave(me);
        return static_cast<int64_t>(me.value);
    }

    const uint64_t *exchange(const char *operation, Site site, unsigned mask, uint64_t value) {
        Fiber &me = fibers_[current_];
        if ((mask >> (current_ % 32) & 1) == 0) fail(std::string(operation) + " by a lane that is not in its mask");
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

    void at_read(const void *at, size_t bytes, Site site) { reads_[text(site)].add(current_, at, bytes); }

    std::map<std::string, std::pair<int64_t, int64_t>> bank_conflicts() { return std::exchange(conflicts_, {}); }

    void *shared(const void *key, size_t bytes) {
        auto &slot = variables_[key];
        if (!slot) {
            slot = std::make_unique<Guarded>(bytes);
            shared_bytes_ += bytes;
            if (shared_bytes_ > launch_->shared_limit) {
                fail("the block wants " + std::to_string(shared_bytes_) + " bytes of shared memory, allowed are " +
                     std::to_string(launch_->shared_limit));
            }
        }
        return slot->data();
    }

    unsigned char *dynamic() const { return dynamic_->data(); }

  private:
    [[noreturn]] void fail(const std::string &what) const {
        std::ostringstream message;
        message << "block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z << "), thread " << current_
                << ": " << what;
        throw std::logic_error(message.str());
    }

    void make_fibers() {
        while (static_cast<int>(fibers_.size()) < count_) fibers_.emplace_back();
    }

    void run_block() {
        variables_.clear();
        reads_.clear();
        dynamic_ = std::make_unique<Guarded>(launch_->dynamic_shared);
        shared_bytes_ = launch_->dynamic_shared;
        at_barrier_ = 0;
        ready_.clear();
        error_ = nullptr;
        int done = 0;
        for (int t = 0; t < count_; ++t) {
            fibers_[t].state = State::kReady;
            ready_.push_back(t);
        }
        while (!ready_.empty() && !error_) {
            if (seed_ != 0) std::swap(ready_.front(), ready_[random_() % ready_.size()]);
            const int t = ready_.front();
            ready_.pop_front();
            resume(t);
            done += fibers_[t].state == State::kDone;
        }
        if (error_ || done < count_) {
            abandon_fibers();
            if (error_) std::rethrow_exception(error_);
            throw std::logic_error(stuck_message_);
        }
        check_edges();
        for (const auto &[site, reads] : reads_) reads.count(conflicts_[site]);
    }

    void check_edges() const {
        bool intact = dynamic_->intact();
        for (const auto &[key, variable] : variables_) intact = intact && variable->intact();
        if (!intact) fail("shared memory was written outside of what was declared");
    }

    // Stuck or failed: their stacks hold frames that nobody will return to.
    void abandon_fibers() {
        std::ostringstream message;
        message << "block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z << ") is stuck:";
        std::map<std::string, std::pair<int, int>> groups;  // how many threads do the same, and the first of them
        for (int t = 0; t < count_; ++t) {
            const Fiber &fiber = fibers_[t];
            std::ostringstream what;
            if (fiber.state == State::kDone) {
                what << "ended";
            } else if (fiber.state == State::kReady) {
                what << "could go on";  // another thread's error stopped the block
            } else {
                what << "at " << fiber.operation << " in " << text(fiber.site);
                if (fiber.state == State::kAtWarp) what << " with mask 0x" << std::hex << fiber.mask;
            }
            auto &[number, first] = groups.try_emplace(what.str(), 0, t).first->second;
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

    void release_barrier(const char *operation, Site site) {
        at_barrier_ = 0;
        uint64_t sum = 0;
        for (int t = 0; t < count_; ++t) {
            const Fiber &other = fibers_[t];
            if (other.site.line != site.line || std::strcmp(other.site.file, site.file) != 0) {
                fail(std::string("threads wait at different barriers: ") + operation + " in " + text(site) + " and " +
                     other.operation + " in " + text(other.site));
            }
            sum += other.value;
        }
        for (int t = 0; t < count_; ++t) {
            fibers_[t].value = sum;
            fibers_[t].state = State::kReady;
            ready_.push_back(t);
        }
    }

    // Lets the lanes of a warp-wide operation go on if all of them are at it.
    void release_warp(const Fiber &me) {
        const int first = current_ / 32 * 32;
        for (int i = 0; i < 32; ++i) {
            if ((me.mask >> i & 1) == 0) continue;
            if (first + i >= count_) fail(std::string(me.operation) + ": its mask names lanes that do not exist");
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

    void resume(int t) {
        current_ = t;
        threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
        Fiber &fiber = fibers_[t];
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
    std::map<const void *, std::unique_ptr<Guarded>> variables_;
    std::unique_ptr<Guarded> dynamic_;
    std::map<std::string, Reads> reads_;  // of this block
    std::map<std::string, std::pair<int64_t, int64_t>> conflicts_;
    size_t shared_bytes_ = 0;
    std::exception_ptr error_;
    std::string stuck_message_;
    std::mt19937_64 random_;
    uint64_t seed_ = 0, blocks_ = 0;
    int count_ = 0, current_ = 0, at_barrier_ = 0;
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
int lane() { return executor().current() % 32; }

int64_t block_barrier(const char *operation, Site site, int64_t value) {
    return executor().barrier(operation, site, value);
}

const uint64_t *warp_exchange(const char *operation, Site site, unsigned mask, uint64_t value) {
    return executor().exchange(operation, site, mask, value);
}

void *shared_variable(const void *key, size_t bytes) { return executor().shared(key, bytes); }
unsigned char *dynamic_shared() { return executor().dynamic(); }
void at_atomic() { executor().at_atomic(); }
void at_read(const void *at, size_t bytes, Site site) { executor().at_read(at, bytes, site); }
std::map<std::string, std::pair<int64_t, int64_t>> bank_conflicts() { return executor().bank_conflicts(); }

}  // namespace shim
