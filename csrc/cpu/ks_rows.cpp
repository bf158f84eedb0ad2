// ks_statistics, ks_decide and ks_rows: checks, the choice of a type and of a way, and the loops over rows.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <numeric>
#include <type_traits>
#include <utility>
#include <vector>

#include "../check.h"
#include "../ieee_mode.h"
#include "../ks_checks.h"
#include "../ksl.h"
#include "ks_kernels.h"
#include "ks_long.h"
#include "rows.h"

namespace ksl {
namespace {

// Calls f(row, outcome) for every row of two tables of one shape.
template <typename F>
void for_bucketed_rows(const Matrix &x, const Matrix &y, Goal goal, int threads, F &&f) {
    check_tables(x, y);
    if (x.rows == 0) return;
    check_row_length(x);
    const auto run = [&](auto tag, auto kernel) {
        for_rows(x, y, threads, [&](int64_t first, int64_t last) {
            RowReader<decltype(tag)> x_rows(x), y_rows(y);
            const auto workspace = std::make_unique<Workspace>(x.cols);
            for (int64_t r = first; r < last; ++r) f(r, kernel(x_rows.row(r), y_rows.row(r), x.cols, goal, *workspace));
        });
    };
    if (x.dtype == DType::kFloat64 || y.dtype == DType::kFloat64) {
        run(double{}, active_kernels().float64);
    } else if (x.dtype == DType::kFloat16 && y.dtype == DType::kFloat16) {
        run(Float16{}, active_kernels().float16);
    } else if (x.dtype == DType::kBFloat16 && y.dtype == DType::kBFloat16) {
        run(BFloat16{}, active_kernels().bfloat16);
    } else {
        run(float{}, active_kernels().float32);
    }
}

struct Output {
    Sides sides;
    int64_t *plus, *minus;
    void *plus_at, *minus_at;
    uint8_t *flags;
    DType at;  // the type of the places: an integer, or float64
};

// Workspaces that are taken for a chunk of rows and given back. Long rows need large ones, and a chunk may be one row.
class Workspaces {
  public:
    class Taken {
      public:
        explicit Taken(Workspaces &from) : from_(from), workspace_(from.take()) {}
        ~Taken() { from_.give(std::move(workspace_)); }
        Taken(const Taken &) = delete;
        Taken &operator=(const Taken &) = delete;
        SideWorkspace &operator*() { return *workspace_; }

      private:
        Workspaces &from_;
        std::unique_ptr<SideWorkspace> workspace_;
    };

  private:
    std::unique_ptr<SideWorkspace> take() {
        std::lock_guard<std::mutex> lock(mutex_);
        if (free_.empty()) return std::unique_ptr<SideWorkspace>(new SideWorkspace);
        auto last = std::move(free_.back());
        free_.pop_back();
        return last;
    }

    void give(std::unique_ptr<SideWorkspace> workspace) {
        std::lock_guard<std::mutex> lock(mutex_);
        free_.push_back(std::move(workspace));
    }

    std::mutex mutex_;
    std::vector<std::unique_ptr<SideWorkspace>> free_;
};

template <typename T>
const SideKernels<T> &kernels_of() {
    if constexpr (std::is_same_v<T, float>) {
        return active_kernels().sides_float32;
    } else if constexpr (std::is_same_v<T, double>) {
        return active_kernels().sides_float64;
    } else {
        return active_kernels().sides_int64;
    }
}

template <typename T>
void write_place(const Output &out, void *places, int64_t r, const Side<element_key_t<T>> *side) {
    if (!places) return;
    if constexpr (std::is_same_v<T, int64_t>) {
        const uint64_t flip = out.at == DType::kInt64 ? kSignBit : 0;
        static_cast<uint64_t *>(places)[r] = side ? side->at ^ flip : 0;
    } else {
        static_cast<double *>(places)[r] =
            side ? static_cast<double>(value_of_key<T>(side->at)) : std::numeric_limits<double>::quiet_NaN();
    }
}

// Which sides are shown.
template <typename Key>
std::pair<bool, bool> shown(const Search<Key> &s, Sides sides) {
    if (sides != Sides::kLarger) return {sides != Sides::kMinus, sides != Sides::kPlus};
    const Side<Key> &plus = s.plus, &minus = s.minus;
    if (!plus.found || !minus.found) return {plus.found, minus.found};
    const bool below = minus.count > plus.count || (minus.count == plus.count && minus.difference > plus.difference);
    return {!below, below};
}

template <typename T>
void write_row(const Output &out, int64_t r, uint8_t flags, const Search<element_key_t<T>> &s) {
    out.flags[r] = flags;
    const bool nan = flags & kHasNaN;
    const auto [plus, minus] = shown(s, out.sides);
    const auto count_of = [nan](bool is_shown, int64_t count) -> int64_t {
        if (nan) return -1;
        return is_shown ? count : 0;
    };
    out.plus[r] = count_of(plus, s.plus.count);
    out.minus[r] = count_of(minus, s.minus.count);
    write_place<T>(out, out.plus_at, r, plus && !nan ? &s.plus : nullptr);
    write_place<T>(out, out.minus_at, r, minus && !nan ? &s.minus : nullptr);
}

// The plain exact way: the keys of both samples are sorted. It takes samples of any size.
//
// Sorts n keys, least significant digit first. Digits that all keys share are skipped. scratch holds n keys.
template <typename Key>
void sort_keys(Key *keys, int64_t n, Key *scratch) {
    if (n < 256) {
        std::sort(keys, keys + n);
        return;
    }
    if (std::is_sorted(keys, keys + n)) return;  // a reference that is kept for many calls often is
    constexpr int kBits = 11, kDigits = (8 * sizeof(Key) + kBits - 1) / kBits;
    constexpr int64_t kValues = int64_t{1} << kBits;
    std::vector<int64_t> counts(kDigits * kValues);
    for (int64_t i = 0; i < n; ++i) {
        for (int d = 0; d < kDigits; ++d) ++counts[d * kValues + (keys[i] >> (d * kBits) & (kValues - 1))];
    }
    Key *from = keys, *to = scratch;
    for (int d = 0; d < kDigits; ++d) {
        int64_t *position = counts.data() + d * kValues;
        if (position[from[0] >> (d * kBits) & (kValues - 1)] == n) continue;
        for (int64_t v = 0, total = 0; v < kValues; ++v) {
            const int64_t count = position[v];
            position[v] = total;
            total += count;
        }
        for (int64_t i = 0; i < n; ++i) to[position[from[i] >> (d * kBits) & (kValues - 1)]++] = from[i];
        std::swap(from, to);
    }
    if (from != keys) std::memcpy(keys, from, static_cast<size_t>(n) * sizeof(Key));
}

// Walks through sorted keys x [n] and y [m] side by side. The caller has checked that n / gcd * m fits int64.
template <typename Key>
void walk_sorted(const Key *x, const Key *y, Search<Key> &s) {
    int64_t i = 0, j = 0;
    while (i < s.n || j < s.m) {
        const Key at = j == s.m || (i < s.n && !(y[j] < x[i])) ? x[i] : y[j];
        const int64_t before = i;
        while (i < s.n && x[i] == at) ++i;
        while (j < s.m && y[j] == at) ++j;
        consider(s, i, j, i > before, at);
    }
}

// The same for a long sorted sample and a short one. Between two values of the short one, the difference is largest at
// the last value of the long one, or at the value before. So a binary search for each value of the short one is enough.
template <typename Key>
void search_sorted(const Key *longer, int64_t n, const Key *shorter, int64_t m, bool longer_is_x, Search<Key> &s) {
    const auto place = [&](int64_t of_longer, int64_t of_shorter, bool in_longer, bool in_shorter, Key at) {
        consider(s, longer_is_x ? of_longer : of_shorter, longer_is_x ? of_shorter : of_longer,
                 longer_is_x ? in_longer : in_shorter, at);
    };
    const Key *const end = longer + n, *from = longer;
    for (int64_t j = 0; j < m;) {
        const Key at = shorter[j];
        const Key *const first = std::lower_bound(from, end, at);
        if (first > from) place(first - longer, j, true, false, first[-1]);
        while (j < m && shorter[j] == at) ++j;
        from = std::upper_bound(first, end, at);
        place(from - longer, j, from > first, true, at);
    }
    if (from < end) place(n, m, true, false, end[-1]);
}

// Writes the ordered keys of n values and returns their flags.
template <typename T>
uint8_t keys_of(const T *values, int64_t n, element_key_t<T> *keys) {
    if constexpr (std::is_same_v<T, int64_t>) {
        for (int64_t k = 0; k < n; ++k) keys[k] = static_cast<uint64_t>(values[k]) ^ kSignBit;
        return 0;
    } else {
        return ordered_keys(values, n, keys);
    }
}

template <typename T>
uint8_t sorted_keys(const T *values, int64_t n, std::vector<element_key_t<T>> &keys,
                    std::vector<element_key_t<T>> &scratch) {
    keys.resize(n);
    scratch.resize(n);
    const uint8_t flags = keys_of(values, n, keys.data());
    if (!(flags & kHasNaN)) sort_keys(keys.data(), n, scratch.data());
    return flags;
}

// Rows of 2^31 values and more, whose counts do not fit the tables.
template <typename T>
void sort_rows(const Matrix &x, const Matrix &y, const Output &out, int threads) {
    const int64_t n = x.cols, m = y.cols, gcd = std::gcd(n, m);
    for_rows(x, y, threads, [&](int64_t first, int64_t last) {
        RowReader<T> x_rows(x), y_rows(y);
        std::vector<element_key_t<T>> x_keys, y_keys, scratch;
        for (int64_t r = first; r < last; ++r) {
            auto search = new_search<element_key_t<T>>(n, m, gcd, out.sides);
            const uint8_t flags =
                sorted_keys(x_rows.row(r), n, x_keys, scratch) | sorted_keys(y_rows.row(r), m, y_keys, scratch);
            if (!(flags & kHasNaN)) walk_sorted(x_keys.data(), y_keys.data(), search);
            write_row<T>(out, r, flags, search);
        }
    });
}

bool is_shared(const Matrix &matrix) { return matrix.rows > 1 && matrix.row_stride == 0; }

// With fewer values than this share of the other side, sorting and searching them costs less than their buckets.
constexpr int64_t kFewOf = 48;

// One side is the same for all rows. It is sorted once, and counted once.
template <typename T>
void shared_rows(const Matrix &x, const Matrix &y, const Output &out, int threads) {
    using Key = element_key_t<T>;
    IeeeMode ieee;  // for what is done before the loop
    const bool is_x = is_shared(x);
    Workspaces workspaces;
    const Matrix &one = is_x ? x : y, &many = is_x ? y : x;
    const int64_t n = x.cols, m = y.cols, gcd = std::gcd(n, m);
    RowReader<T> one_row(one);
    const T *values = one_row.row(0);
    std::vector<Key> sorted, scratch;
    const uint8_t one_flags = sorted_keys(values, one.cols, sorted, scratch);
    const SideKernels<T> &kernels = kernels_of<T>();
    SharedSide<T> shared{is_x, one.cols, sorted.data(), nullptr, SideMap{}};
    std::vector<int32_t> counts;
    bool by_buckets = !(one_flags & kHasNaN) && many.cols * kFewOf > one.cols && one.cols + many.cols >= 256;
    if (by_buckets) {
        RowReader<T> many_rows(many);
        const T *other = many_rows.row(0);
        counts.resize(SideTables::kBuckets);
        std::vector<uint16_t> block(kSideBlock + kSlack);
        by_buckets = kernels.fit(is_x ? values : other, n, is_x ? other : values, m, shared.map) &&
                     kernels.count(shared.map, values, one.cols, block.data(), counts.data());
        shared.counts = counts.data();
    }
    for_rows(many, Matrix{nullptr, many.rows, by_buckets ? 2048 : 64, 0, 0, many.dtype}, threads,
             [&](int64_t first, int64_t last) {
                 RowReader<T> rows(many);
                 Workspaces::Taken w(workspaces);
                 std::vector<Key> keys, other_scratch;
                 for (int64_t r = first; r < last; ++r) {
                     const T *row = rows.row(r);
                     auto search = new_search<Key>(n, m, gcd, out.sides);
                     uint8_t flags = one_flags;
                     if (!by_buckets || !kernels.shared_row(shared, row, search, *w)) {
                         flags |= sorted_keys(row, many.cols, keys, other_scratch);
                         if (!(flags & kHasNaN)) {
                             search_sorted(sorted.data(), one.cols, keys.data(), many.cols, is_x, search);
                         }
                     }
                     write_row<T>(out, r, flags, search);
                 }
             });
}

// From this number of values on, a row may be cut over threads.
constexpr int64_t kLongFrom = int64_t{1} << 20;

template <typename T>
void bucket_rows(const Matrix &x, const Matrix &y, const Output &out, int threads) {
    const int64_t n = x.cols, m = y.cols, gcd = std::gcd(n, m);
    const SideKernels<T> &kernels = kernels_of<T>();
    Workspaces workspaces;
    const bool cut = threads > 1 && n + m >= kLongFrom && x.rows < 4 * threads;
    for_rows(x, y, cut ? 1 : threads, [&](int64_t first, int64_t last) {
        RowReader<T> x_rows(x), y_rows(y);
        Workspaces::Taken w(workspaces);
        for (int64_t r = first; r < last; ++r) {
            auto search = new_search<element_key_t<T>>(n, m, gcd, out.sides);
            const T *x_row = x_rows.row(r), *y_row = y_rows.row(r);
            const uint8_t flags =
                cut ? long_row(x_row, y_row, search, kernels, *w, threads) : kernels.row(x_row, y_row, search, *w);
            write_row<T>(out, r, flags, search);
        }
    });
}

template <typename T>
void rows_of_one_type(const Matrix &x, const Matrix &y, const Output &out, int threads) {
    if (x.cols >= INT32_MAX || y.cols >= INT32_MAX) {
        sort_rows<T>(x, y, out, threads);
    } else if (is_shared(x) != is_shared(y)) {
        shared_rows<T>(x, y, out, threads);
    } else {
        bucket_rows<T>(x, y, out, threads);
    }
}

bool is_integer(const Matrix &matrix) { return matrix.dtype == DType::kInt64 || matrix.dtype == DType::kUInt64; }

}  // namespace

void ks_statistics(const Matrix &x, const Matrix &y, int64_t threshold, int64_t *h, uint8_t *flags, int threads,
                   uint8_t *identical) {
    const int64_t floor = std::max<int64_t>(threshold, 1) - 1;
    for_bucketed_rows(x, y, Goal{floor, INT64_MAX}, threads, [&](int64_t r, const Outcome &outcome) {
        h[r] = outcome.h > floor || outcome.h < 0 ? outcome.h : 0;
        flags[r] = outcome.flags;
        if (identical) identical[r] = outcome.identical;
    });
}

void ks_decide(const Matrix &x, const Matrix &y, int64_t threshold, uint8_t *decided, uint8_t *flags, int threads) {
    const int64_t floor = threshold > INT64_MIN ? threshold - 1 : threshold;
    for_bucketed_rows(x, y, Goal{floor, threshold}, threads, [&](int64_t r, const Outcome &outcome) {
        decided[r] = !(outcome.flags & kHasNaN) && outcome.h >= threshold;
        flags[r] = outcome.flags;
    });
}

void ks_rows(const Matrix &x, const Matrix &y, Sides sides, int64_t *plus, int64_t *minus, void *plus_at,
             void *minus_at, uint8_t *flags, int threads) {
    check_samples(x, y);
    if (x.rows == 0) return;
    check_unit(x, y);
    Output out{sides, plus, minus, plus_at, minus_at, flags, DType::kFloat64};
    if (is_integer(x) && x.dtype == y.dtype) {
        out.at = x.dtype;
        rows_of_one_type<int64_t>(x, y, out, threads);
    } else if (x.dtype == DType::kFloat64 || y.dtype == DType::kFloat64) {
        rows_of_one_type<double>(x, y, out, threads);
    } else {
        rows_of_one_type<float>(x, y, out, threads);
    }
}

}  // namespace ksl
