// parallel_for is a loop over chunks, which are handed out dynamically to the calling thread and to a few helpers.
//
// The helpers are the threads of the OpenMP runtime that torch has brought into the process. After a parallel region
// they spin for a while, so they start on our loop at once. Threads of our own would have to share the cores with them.
// A loop of a millisecond between two operations of torch would then take half as long again. If there is no such
// runtime, or if it cannot be used (in a child after fork() it has lost its threads without noticing), a small pool of
// our own takes its place.
//
// Every region asks OpenMP for the same number of threads, which is all that the caller may use, however little there
// is to do. Threads that find nothing leave at once. The reason is that GCC's runtime ends the threads beyond a smaller
// team and starts them again for the next larger one, which may be torch's next operator. That costs milliseconds,
// while surplus threads cost microseconds. (Torch does the same: https://github.com/pytorch/pytorch/issues/32008.)
//
// Our own pool:
// - Its threads are started when first needed and then sleep between loops. To start a thread costs 20 to 50
//   microseconds, to wake one only a few.
// - Several threads may run loops at once, and a loop may run inside a loop. A caller always works on its own loop and
//   never waits for a helper that has not started on it, so nothing can deadlock.
// - After fork() the child has no helpers, and a mutex in an unknown state. It abandons that pool and makes its own.
//
// The first exception that a chunk throws ends the loop and is thrown again in the caller. All this is about
// parallel_for. parallel_for_if, below, lets its threads wait for each other once, so its functions must be noexcept. A
// thread that left by an exception would let the others wait for ever.
//
// Both call their functions in IEEE mode (see ieee_mode.h). So the bits of a result do not depend on which thread takes
// a chunk, and subnormals are never taken for zeros.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <type_traits>

#include "ieee_mode.h"
#include "platform.h"

namespace ksl {
namespace detail {

// A parallel region of GCC's OpenMP interface, which LLVM's and Intel's runtimes also offer. It calls work(context) on
// this thread and on up to threads - 1 others.
using OpenMpRegion = void (*)(void (*work)(void *), void *context, unsigned threads, unsigned flags);

inline std::atomic<bool> is_forked_child{false};
inline const int notes_fork = call_in_forked_child([] { is_forked_child.store(true); });

// The parallel region of the process, or null. We do not link to a runtime, because it has to be the one of torch.
inline OpenMpRegion openmp_region() {
    static const auto found = reinterpret_cast<OpenMpRegion>(function_of_process("GOMP_parallel"));
    return is_forked_child.load() ? nullptr : found;
}

struct Job {
    void (*work)(void *);  // must not throw
    void *context;
    int running = 0;  // helpers inside work(); guarded by the pool's mutex
    std::condition_variable idle;
};

class ThreadPool {
  public:
    // The pool of this process. It is never destroyed, because its threads sleep in it until the process ends.
    static ThreadPool &instance() {
        ThreadPool *pool = current_.load();
        if (pool == nullptr) {
            auto *fresh = new ThreadPool;
            if (current_.compare_exchange_strong(pool, fresh)) return *fresh;
            delete fresh;  // another thread was first; `pool` is now its
        }
        return *pool;
    }

    // Calls work(context) here and on up to `helpers` pool threads. Returns when every call has returned.
    void run(void (*work)(void *), void *context, int helpers) {
        Job job{work, context, 0, {}};
        {
            std::lock_guard<std::mutex> lock(mutex_);
            start_threads(helpers);
            queue_.insert(queue_.end(), static_cast<size_t>(std::min(helpers, started_)), &job);
        }
        wake_.notify_all();
        work(context);
        std::unique_lock<std::mutex> lock(mutex_);
        queue_.erase(std::remove(queue_.begin(), queue_.end(), &job),
                     queue_.end());  // helpers that came too late
        job.idle.wait(lock, [&job] { return job.running == 0; });
    }

  private:
    static constexpr int kMaxThreads = 256;

    void start_threads(int wanted) {
        try {
            for (; started_ < std::min(wanted, kMaxThreads); ++started_) std::thread([this] { serve(); }).detach();
        } catch (const std::system_error &) {
            // The system gives no more threads. The loop runs on those that exist, at worst on the caller alone.
        }
    }

    void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [this] { return !queue_.empty(); });
            Job *job = queue_.front();
            queue_.pop_front();
            ++job->running;
            lock.unlock();
            job->work(job->context);
            lock.lock();
            if (--job->running == 0) job->idle.notify_one();
        }
    }

    static inline std::atomic<ThreadPool *> current_{nullptr};
    static inline const int forgotten_in_child_ = call_in_forked_child([] { current_.store(nullptr); });

    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<Job *> queue_;
    int started_ = 0;
};

}  // namespace detail

// Calls f(lo, hi) on disjoint ranges that together cover [begin, end), on up to `threads` threads. These are all
// threads that the caller may use, whatever the range. A range has at most `grain` indices, unless one thread does all
// the work. f must give the same results however the range is cut.
template <typename F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, int threads, F &&f) {
    if (begin >= end) return;
    grain = std::max<int64_t>(grain, 1);
    const int64_t chunks = (end - begin - 1) / grain + 1;
    const int64_t helpers = std::min<int64_t>(threads, chunks) - 1;
    if (helpers <= 0) {
        IeeeMode ieee;
        f(begin, end);
        return;
    }
    std::atomic<int64_t> next{0};
    std::mutex error_mutex;
    std::exception_ptr error;
    auto work = [&] {
        IeeeMode ieee;
        try {
            for (int64_t chunk; (chunk = next.fetch_add(1)) < chunks;) {
                const int64_t lo = begin + chunk * grain;
                f(lo, end - lo < grain ? end : lo + grain);
            }
        } catch (...) {
            next.store(chunks);
            std::lock_guard<std::mutex> lock(error_mutex);
            if (!error) error = std::current_exception();
        }
    };
    const auto run_work = [](void *context) { (*static_cast<decltype(work) *>(context))(); };
    if (const detail::OpenMpRegion region = detail::openmp_region()) {
        region(run_work, &work, static_cast<unsigned>(threads), 0);  // not helpers + 1, see above
    } else {
        detail::ThreadPool::instance().run(run_work, &work, static_cast<int>(helpers));
    }
    if (error) std::rethrow_exception(error);
}

// Two loops over [0, end) on the same threads. work(lo, hi) begins when every check(lo, hi) has returned true, and does
// not begin if one has returned false. Returns whether it began. Both loops are one parallel region, because to begin a
// region costs as much as a short loop.
template <typename Check, typename Work>
bool parallel_for_if(int64_t end, int64_t grain, int threads, Check &&check, Work &&work) {
    static_assert(std::is_nothrow_invocable_r_v<bool, Check &, int64_t, int64_t>);
    static_assert(std::is_nothrow_invocable_v<Work &, int64_t, int64_t>);
    grain = std::max<int64_t>(grain, 1);
    const int64_t chunks = (end + grain - 1) / grain, workers = std::min<int64_t>(threads, chunks);
    if (workers <= 1) {
        IeeeMode ieee;
        if (!check(int64_t{0}, end)) return false;
        work(int64_t{0}, end);
        return true;
    }
    std::atomic<int64_t> to_check{0}, checked{0}, to_work{0};
    std::atomic<bool> good{true};
    const auto range = [&](int64_t chunk, auto &&f) {
        const int64_t lo = chunk * grain;
        return f(lo, std::min(lo + grain, end));
    };
    parallel_for(0, workers, 1, threads, [&](int64_t, int64_t) {
        for (int64_t chunk; (chunk = to_check.fetch_add(1)) < chunks; checked.fetch_add(1)) {
            if (good.load(std::memory_order_relaxed) && !range(chunk, check)) good.store(false);
        }
        // The missing chunks are held by threads that run. A thread that has not begun holds no chunk.
        for (int spins = 0; checked.load() < chunks;) {
            if (++spins > 1000) std::this_thread::yield();
        }
        if (!good.load()) return;
        for (int64_t chunk; (chunk = to_work.fetch_add(1)) < chunks;) range(chunk, work);
    });
    return good.load();
}

}  // namespace ksl
