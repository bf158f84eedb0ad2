// A long row, cut over threads. Each chunk has its own table of counts. From all tables together follow the places to
// which each chunk copies the keys of the wanted buckets, so the threads need no locks.
#pragma once

#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

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
          threads_(threads),
          x_chunks_((search.n - 1) / kChunk + 1),
          chunks_(x_chunks_ + (search.m - 1) / kChunk + 1) {}

    // Returns false, and leaves the row to the caller, if it is not an ordinary one.
    bool look() {
        if (!kernels_.fit(x_, search_.n, y_, search_.m, w_)) return false;
        tables_.assign(static_cast<size_t>(chunks_) << w_.bits, 0);
        if (!count()) return false;
        add_tables();
        const Wanted wanted = kernels_.plan(search_, w_);
        if (wanted.values > (search_.n + search_.m) / 4) return false;
        Key *keys = w_.template keys<Key>(wanted.values);
        find_places();
        gather(keys);
        look_into_parts(wanted, keys);
        return true;
    }

  private:
    static constexpr int64_t kChunk = int64_t{1} << 18;

    int32_t *table(int64_t chunk) { return tables_.data() + (chunk << w_.bits); }

    // f(first value, number of values) of a chunk.
    template <typename F>
    auto with_chunk(int64_t chunk, F &&f) const {
        const bool of_x = chunk < x_chunks_;
        const int64_t start = (of_x ? chunk : chunk - x_chunks_) * kChunk, size = of_x ? search_.n : search_.m;
        return f((of_x ? x_ : y_) + start, std::min(kChunk, size - start));
    }

    bool count() {
        std::atomic<bool> finite{true};
        parallel_for(0, chunks_, 1, threads_, [&](int64_t first, int64_t last) {
            const std::unique_ptr<uint16_t[]> location(new uint16_t[SideWorkspace::kBlock + SideWorkspace::kSlack]);
            for (int64_t chunk = first; chunk < last && finite.load(std::memory_order_relaxed); ++chunk) {
                const bool good = with_chunk(chunk, [&](const T *values, int64_t n) {
                    return kernels_.count(w_, values, n, location.get(), table(chunk));
                });
                if (!good) finite.store(false);
            }
        });
        return finite.load();
    }

    void add_tables() {
        const int64_t buckets = int64_t{1} << w_.bits;
        std::memset(w_.x_count, 0, sizeof w_.x_count);
        std::memset(w_.y_count, 0, sizeof w_.y_count);
        for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
            int32_t *sum = chunk < x_chunks_ ? w_.x_count : w_.y_count;
            const int32_t *counts = table(chunk);
            for (int64_t b = 0; b < buckets; ++b) sum[b] += counts[b];
        }
    }

    // The tables of the chunks become the numbers of keys that earlier chunks copy to a bucket.
    void find_places() {
        const int64_t buckets = int64_t{1} << w_.bits;
        for (int64_t b = 0; b < buckets; ++b) {
            if (!(w_.wanted[b / 16] >> b % 16 & 1)) continue;
            int32_t done = 0;
            for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
                if (chunk == x_chunks_) done = 0;
                const int32_t count = table(chunk)[b];
                table(chunk)[b] = done;
                done += count;
            }
        }
    }

    void gather(Key *keys) {
        parallel_for(0, chunks_, 1, threads_, [&](int64_t first, int64_t last) {
            const auto own = std::make_unique<SideWorkspace>();
            for (int64_t chunk = first; chunk < last; ++chunk) {
                const int64_t *begin = chunk < x_chunks_ ? w_.x_begin : w_.y_begin;
                with_chunk(chunk, [&](const T *values, int64_t n) {
                    kernels_.gather(w_, values, n, begin, table(chunk), *own, keys);
                });
            }
        });
    }

    void look_into_parts(const Wanted &wanted, Key *keys) {
        Key *scratch = keys + wanted.values + SideWorkspace::kSlack / 2;
        std::mutex mutex;
        const int64_t grain = wanted.values < kFew ? wanted.parts : wanted.parts / (8 * threads_) + 1;
        parallel_for(0, wanted.parts, grain, threads_, [&](int64_t first, int64_t last) {
            const auto own = std::make_unique<SideWorkspace>();
            Search<Key> mine = [&] {
                std::lock_guard<std::mutex> lock(mutex);
                return search_;
            }();
            kernels_.look(w_.parts + first, last - first, keys, scratch, mine, *own);
            std::lock_guard<std::mutex> lock(mutex);
            merge(search_, mine);
        });
    }

    static constexpr int64_t kFew = 1 << 14;  // keys that are not worth several threads

    const T *const x_, *const y_;
    Search<Key> &search_;
    const SideKernels<T> &kernels_;
    SideWorkspace &w_;
    const int threads_;
    const int64_t x_chunks_, chunks_;
    std::vector<int32_t> tables_;
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
