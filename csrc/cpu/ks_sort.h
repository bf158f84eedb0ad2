// The plain exact way. It sorts the keys of both samples and walks through them side by side.
//
// Unlike the bucket engine, it gives each side's maximum and its place, and it takes samples of different sizes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../ks_keys.h"

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

// One side of the statistic: the exact maximum, and the place that scipy.stats.ks_2samp reports for it.
//
// scipy takes the first largest i / n - j / m, computed in float64, over the sorted x followed by the sorted y. Of
// places with the same exact difference, the one with the largest float64 wins, which rounding decides. After that, a
// value that is in x wins over one that is not, and then the smaller value wins.
template <typename Key>
struct Side {
    int64_t count = 0;
    double difference = 0;
    bool in_x = false, found = false;
    Key at = 0;

    void offer(int64_t new_count, double new_difference, bool new_in_x, Key new_at) {
        const bool better = !found || new_count > count || new_difference > difference ||
                            (new_difference == difference && new_in_x && !in_x);
        if (better) *this = {new_count, new_difference, new_in_x, true, new_at};
    }
};

template <typename Key>
struct Sides {
    Side<Key> plus, minus;
};

// Walks through sorted keys x [n] and y [m]. Counts are in units of gcd / (n * m). The caller has checked that n / gcd
// * m fits int64.
template <typename Key>
Sides<Key> walk_sorted(const Key *x, int64_t n, const Key *y, int64_t m, int64_t gcd) {
    const int64_t x_unit = m / gcd, y_unit = n / gcd;
    Sides<Key> sides;
    int64_t i = 0, j = 0;
    while (i < n || j < m) {
        const Key at = j == m || (i < n && x[i] <= y[j]) ? x[i] : y[j];
        const int64_t before = i;
        while (i < n && x[i] == at) ++i;
        while (j < m && y[j] == at) ++j;
        // Both sides are at least 0, because the last value of all has difference 0.
        const int64_t count = i * x_unit - j * y_unit;
        if (count < sides.plus.count && -count < sides.minus.count) continue;
        const double difference =
            static_cast<double>(i) / static_cast<double>(n) - static_cast<double>(j) / static_cast<double>(m);
        if (count >= sides.plus.count) sides.plus.offer(count, difference, i > before, at);
        if (-count >= sides.minus.count) sides.minus.offer(-count, -difference, i > before, at);
    }
    return sides;
}

}  // namespace ksl
