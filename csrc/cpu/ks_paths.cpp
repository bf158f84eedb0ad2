// Exact p-values for samples of different sizes, by counting lattice paths.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "../check.h"
#include "../ksl.h"
#include "../parallel.h"

namespace ksl {
namespace {

// next[i + 1] = P(i, s - i) for i in [low, high], from path[i + 1] = P(i, s - 1 - i).
void step(int32_t s, int32_t low, int32_t high, const double *__restrict path, double *__restrict next) {
    const double total = s;
    for (int32_t i = low; i <= high; ++i) next[i + 1] = (path[i] * i + path[i + 1] * (s - i)) / total;
}

// The last step of a random path to (i, j) comes from (i - 1, j) with probability i / (i + j). So the probability that
// it has met the outside is P(i, j) = [i P(i - 1, j) + j P(i, j - 1)] / (i + j) inside the band and 1 outside: sums of
// positive terms, no cancellation. One antidiagonal i + j = s after the other, and of each the band alone.
double outside_probability(int64_t h, int64_t n, int64_t m, bool one_sided, std::vector<double> &path,
                           std::vector<double> &next) {
    if (h <= 0) return 1;
    const int64_t gcd = std::gcd(n, m), ng = n / gcd, width = ng + m / gcd;
    std::fill(path.begin(), path.end(), 1.0);
    path[1] = 0;
    for (int64_t s = 1; s <= n + m; ++s) {
        // lcm * (i/n - j/m) = i * width - s * ng has to stay below h, and for two sides above -h too.
        const int64_t high = std::min({s, n, (s * ng + h - 1) / width}), lowest = s * ng - (h - 1);
        const int64_t inside = one_sided || lowest <= 0 ? 0 : (lowest + width - 1) / width;
        const int64_t low = std::max({int64_t{0}, s - m, inside});
        if (low > high) return 1;  // a whole antidiagonal is outside: every path meets it
        step(static_cast<int32_t>(s), static_cast<int32_t>(low), static_cast<int32_t>(high), path.data(), next.data());
        next[low] = next[high + 2] = 1;  // the band moves by one column at most
        path.swap(next);
    }
    return path[n + 1];
}

}  // namespace

void ks_outside_probability(const int64_t *counts, int64_t k, int64_t n, int64_t m, bool one_sided, double *p,
                            int threads) {
    KSL_CHECK(n > 0 && m > 0, "samples of ", n, " and ", m, " values; expected at least one in each");
    KSL_CHECK(n <= INT32_MAX / 2 && m <= INT32_MAX / 2, "samples of ", n, " and ", m,
              " values; expected fewer than 2^30: use method='asymp'");
    parallel_for(0, k, 1, threads, [&](int64_t first, int64_t last) {
        std::vector<double> path(static_cast<size_t>(n) + 3), next(path);
        for (int64_t c = first; c < last; ++c) {
            p[c] = outside_probability(counts[c], n, m, one_sided, path, next);
        }
    });
}

}  // namespace ksl
