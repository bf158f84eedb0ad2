// Exact p-values for samples of different sizes, by counting lattice paths.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "check.h"
#include "ksl.h"
#include "parallel.h"

namespace ksl {
namespace {

// next[i + 1] = P(i, s - i) for i in [low, high], from path[i + 1] = P(i, s - 1 - i).
template <typename F>
void step(int32_t s, int32_t low, int32_t high, const F *__restrict path, F *__restrict next) {
    const F total = s;
    for (int32_t i = low; i <= high; ++i) next[i + 1] = (path[i] * i + path[i + 1] * (s - i)) / total;
}

// The last step of a random path to (i, j) comes from (i - 1, j) with probability i / (i + j). So the probability that
// it has met the outside is P(i, j) = [i P(i - 1, j) + j P(i, j - 1)] / (i + j) inside the band, and 1 outside. These
// are sums of positive terms, without cancellation. They are computed for one antidiagonal i + j = s after the other,
// and only in the band.
template <typename F>
F outside_probability(int64_t h, int64_t n, int64_t m, bool one_sided) {
    if (h <= 0) return 1;
    const int64_t gcd = std::gcd(n, m), ng = n / gcd, width = ng + m / gcd;
    std::vector<F> path(static_cast<size_t>(n) + 3, F{1}), next(path);
    path[1] = 0;
    for (int64_t s = 1; s <= n + m; ++s) {
        // lcm * (i/n - j/m) = i * width - s * ng has to stay below h, and for two sides above -h too.
        const int64_t high = std::min({s, n, (s * ng + h - 1) / width}), lowest = s * ng - (h - 1);
        const int64_t inside = one_sided || lowest <= 0 ? 0 : (lowest + width - 1) / width;
        const int64_t low = std::max({int64_t{0}, s - m, inside});
        if (low > high) return 1;  // a whole antidiagonal is outside, and every path meets it
        step(static_cast<int32_t>(s), static_cast<int32_t>(low), static_cast<int32_t>(high), path.data(), next.data());
        next[low] = next[high + 2] = 1;  // the band moves by one column at most
        path.swap(next);
    }
    return path[n + 1];
}

// Below this p a double is close to underflow. A long double that is wider than a double reaches 10^-4932. What
// underflows there too is left to the caller.
constexpr double kTiny = 1e-280;

double log_outside_probability(double p, int64_t h, int64_t n, int64_t m, bool one_sided) {
    if (p >= kTiny) return std::log(p);
    using Wide = long double;
    if (std::numeric_limits<Wide>::min_exponent < std::numeric_limits<double>::min_exponent) {
        const Wide wide = outside_probability<Wide>(h, n, m, one_sided);
        if (wide > std::numeric_limits<Wide>::min() * 1e30L) return static_cast<double>(std::log(wide));
    }
    return std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

void ks_outside_probability(const int64_t *counts, int64_t k, int64_t n, int64_t m, bool one_sided, double *p,
                            double *log_p, int threads) {
    KSL_CHECK(n > 0 && m > 0, "samples of ", n, " and ", m, " values; expected at least one in each");
    KSL_CHECK(n <= INT32_MAX / 2 && m <= INT32_MAX / 2, "samples of ", n, " and ", m,
              " values; expected fewer than 2^30: use method='asymp'");
    parallel_for(0, k, 1, threads, [&](int64_t first, int64_t last) {
        for (int64_t c = first; c < last; ++c) {
            p[c] = outside_probability<double>(counts[c], n, m, one_sided);
            log_p[c] = log_outside_probability(p[c], counts[c], n, m, one_sided);
        }
    });
}

}  // namespace ksl
