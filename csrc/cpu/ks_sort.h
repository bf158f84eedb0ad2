// The plain exact way: the keys of both samples are sorted. It takes samples of any size and values of any two types.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "ks_side_kernels.h"

namespace ksl {

// Sorts n keys, least significant digit first. Digits that all keys share are skipped. scratch holds n keys.
template <typename Key>
void sort_keys(Key *keys, int64_t n, Key *scratch) {
    if (n < 256) {
        std::sort(keys, keys + n);
        return;
    }
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

}  // namespace ksl
