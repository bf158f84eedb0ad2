// A long row, cut over threads. Each chunk has its own table of counts. From all tables together follow the places to
// which each chunk copies the keys of the wanted buckets, so the threads need no locks.
#pragma once

#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>

#include "../parallel.h"
#include "ks_kernels.h"
#include "rows.h"

namespace ksl {

template <typename T>
class LongRow {
  public:
    using Key = element_key_t<T>;

    LongRow(const T *x, const T *y, Search<Key> &search, const SideKernels<T> &kernels, SideWorkspace &w, int threads)
        : x_(x),
          y_(y),
          search_(search),
          kernels_(kernels),
          w_(w),
          row_(w.tables),
          threads_(threads),
          chunk_(std::max(kChunk, (search.n + search.m) / (kChunks * threads) + 1)),
          x_chunks_((search.n - 1) / chunk_ + 1),
          chunks_(x_chunks_ + (search.m - 1) / chunk_ + 1) {}

    // Returns false, and leaves the row to the caller, if it is not an ordinary one.
    bool look() {
        if (!kernels_.fit(x_, search_.n, y_, search_.m, map_)) return false;
        tables_.reset(new int32_t[static_cast<size_t>(chunks_) << map_.bits]);
        if (!count()) return false;
        add_tables();
        kernels_.plan(search_, row_);
        if (row_.values() > (search_.n + search_.m) / 4) return false;
        const auto buffers = w_.template keys<Key>(row_.values());
        find_places();
        gather(buffers.keys);
        look_into_parts(buffers);
        return true;
    }

  private:
    // A chunk has at least kChunk values, and a thread about kChunks chunks at most. Each has a table of up to 256 KiB,
    // a counter for every four values. With many threads one alone would need longer for all tables than they for the
    // values. So a table is cleared by the thread that counts its chunk, and threads add up and walk through buckets of
    // all tables.
    static constexpr int64_t kChunk = int64_t{1} << 18, kChunks = 8;

    int32_t *table(int64_t chunk) { return tables_.get() + (chunk << map_.bits); }

    // f(first bucket, last bucket) on all threads.
    template <typename F>
    void over_buckets(F &&f) const {
        const int64_t buckets = int64_t{1} << map_.bits;
        parallel_for(0, buckets, std::max(kBuckets, buckets / threads_), threads_, f);
    }

    // f(first value, number of values) of a chunk.
    template <typename F>
    auto with_chunk(int64_t chunk, F &&f) const {
        const bool of_x = chunk < x_chunks_;
        const int64_t start = (of_x ? chunk : chunk - x_chunks_) * chunk_, size = of_x ? search_.n : search_.m;
        return f((of_x ? x_ : y_) + start, std::min(chunk_, size - start));
    }

    bool count() {
        std::atomic<bool> finite{true};
        parallel_for(0, chunks_, 1, threads_, [&](int64_t first, int64_t last) {
            const std::unique_ptr<uint16_t[]> location(new uint16_t[kSideBlock + kSlack]);
            for (int64_t chunk = first; chunk < last && finite.load(std::memory_order_relaxed); ++chunk) {
                std::memset(table(chunk), 0, sizeof(int32_t) << map_.bits);
                const bool good = with_chunk(chunk, [&](const T *values, int64_t n) {
                    return kernels_.count(map_, values, n, location.get(), table(chunk));
                });
                if (!good) finite.store(false);
            }
        });
        return finite.load();
    }

    void add_tables() {
        row_.begin(map_.bits);
        over_buckets([&](int64_t first, int64_t last) {
            for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
                int32_t *sum = chunk < x_chunks_ ? row_.x_counters() : row_.y_counters();
                const int32_t *counts = table(chunk);
                for (int64_t b = first; b < last; ++b) sum[b] += counts[b];
            }
        });
    }

    // The tables of the chunks become the numbers of keys that earlier chunks copy to a bucket.
    void find_places() {
        over_buckets([&](int64_t first, int64_t last) {
            for (int64_t b = first; b < last; ++b) {
                if (!row_.is_wanted(b)) continue;
                int32_t done = 0;
                for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
                    if (chunk == x_chunks_) done = 0;
                    const int32_t count = table(chunk)[b];
                    table(chunk)[b] = done;
                    done += count;
                }
            }
        });
    }

    void gather(Key *keys) {
        parallel_for(0, chunks_, 1, threads_, [&](int64_t first, int64_t last) {
            const auto own = std::make_unique<SideScratch>();
            for (int64_t chunk = first; chunk < last; ++chunk) {
                const int64_t *begin = chunk < x_chunks_ ? row_.x_begin() : row_.y_begin();
                with_chunk(chunk, [&](const T *values, int64_t n) {
                    kernels_.gather(map_, row_, values, n, begin, table(chunk), *own, keys);
                });
            }
        });
    }

    void look_into_parts(KeyBuffers<Key> buffers) {
        std::mutex mutex;
        const int64_t parts = row_.part_count(), grain = row_.values() < kFew ? parts : parts / (8 * threads_) + 1;
        parallel_for(0, parts, grain, threads_, [&](int64_t first, int64_t last) {
            const auto zoom = std::make_unique<ZoomMemory<SidePart>>();
            Search<Key> mine = [&] {
                std::lock_guard<std::mutex> lock(mutex);
                return search_;
            }();
            kernels_.look(row_.parts() + first, last - first, buffers, mine, zoom->room());
            std::lock_guard<std::mutex> lock(mutex);
            merge(search_, mine);
        });
    }

    static constexpr int64_t kFew = 1 << 14;      // keys that are not worth several threads
    static constexpr int64_t kBuckets = 1 << 11;  // of a piece of all tables, at least

    const T *const x_, *const y_;
    Search<Key> &search_;
    const SideKernels<T> &kernels_;
    SideWorkspace &w_;
    SideTables &row_;
    SideMap map_{};
    const int threads_;
    const int64_t chunk_, x_chunks_, chunks_;
    std::unique_ptr<int32_t[]> tables_;
};

// Returns the flags of the row.
template <typename T>
uint8_t long_row(const T *x, const T *y, Search<element_key_t<T>> &search, const SideKernels<T> &kernels,
                 SideWorkspace &w, int threads) {
    const bool alike = search.n == search.m && std::memcmp(x, y, sizeof(T)) == 0;  // perhaps a row and its copy
    if (!alike && LongRow<T>(x, y, search, kernels, w, threads).look()) return 0;
    return kernels.row(x, y, search, w);
}

}  // namespace ksl
