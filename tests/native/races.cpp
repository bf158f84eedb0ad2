// Calls every threaded function of the native core on several threads, for ThreadSanitizer, and compares the results
// with those of one thread, bit for bit. `python tests/sanitize.py thread` builds and runs it.
//
//   ksl_races pool      the threads of our own pool
//   ksl_races region    those of an OpenMP region. The OpenMP runtime itself is not instrumented, so that its barriers
//                       would be unknown to ThreadSanitizer. A twin made of std::thread takes its place.
//   ksl_races planted   a loop with a race, which ThreadSanitizer must find
//
// No Python and no torch: neither is instrumented.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "ksl.h"
#include "parallel.h"

namespace {

std::atomic<int> regions{0};

}  // namespace

#ifdef KSL_TWIN
// What a parallel region does: work(context) on this thread and on threads - 1 others, and a barrier at the end.
// parallel.h looks for this symbol in the process, and the program is linked with its symbols exported.
extern "C" __attribute__((visibility("default"))) void GOMP_parallel(void (*work)(void *), void *context,
                                                                     unsigned threads, unsigned) {
    regions.fetch_add(1);
    std::vector<std::thread> others;
    for (unsigned i = 1; i < threads; ++i) others.emplace_back(work, context);
    work(context);
    for (std::thread &other : others) other.join();
}
#endif

namespace {

constexpr int kThreads = 4;
std::atomic<int> failures{0};

void expect(bool right, const std::string &what) {
    if (right) return;
    std::fprintf(stderr, "WRONG: %s\n", what.c_str());
    ++failures;
}

// Bytes of an output, to compare.
template <typename T>
std::string bytes(const std::vector<T> &values) {
    return std::string(reinterpret_cast<const char *>(values.data()), values.size() * sizeof(T));
}

// Runs a function with one thread and with several. It returns its outputs as bytes.
void same(const std::string &name, const std::function<std::string(int threads)> &outputs) {
    const std::string alone = outputs(1);
    for (const int threads : {2, kThreads, 2 * kThreads}) expect(outputs(threads) == alone, name);
}

template <typename T>
std::vector<T> random_values(size_t size, unsigned seed, double shift = 0) {
    std::mt19937_64 generator(seed);
    std::normal_distribution<double> normal(shift);
    std::vector<T> values(size);
    for (T &value : values) value = static_cast<T>(normal(generator));
    return values;
}

template <typename T>
constexpr ksl::DType dtype_of();
template <>
constexpr ksl::DType dtype_of<double>() {
    return ksl::DType::kFloat64;
}
template <>
constexpr ksl::DType dtype_of<float>() {
    return ksl::DType::kFloat32;
}
template <>
constexpr ksl::DType dtype_of<int64_t>() {
    return ksl::DType::kInt64;
}

template <typename T>
ksl::Matrix matrix(const std::vector<T> &values, int64_t rows) {
    const int64_t cols = static_cast<int64_t>(values.size()) / rows;
    return {values.data(), rows, cols, cols, 1, dtype_of<T>()};
}

template <typename T>
void ks(int64_t rows, int64_t n, int64_t m, unsigned seed) {
    auto x = random_values<T>(rows * n, seed), y = random_values<T>(rows * m, seed + 1, 0.3);
    if (std::is_floating_point<T>::value) x[n / 2] = std::numeric_limits<T>::infinity();
    const ksl::Matrix first = matrix(x, rows), second = matrix(y, rows);
    const std::string size = std::to_string(rows) + " x " + std::to_string(n) + ", " + std::to_string(m);
    for (const ksl::Sides sides : {ksl::Sides::kBoth, ksl::Sides::kPlus, ksl::Sides::kLarger}) {
        same("ks_rows " + size, [&](int threads) {
            std::vector<int64_t> plus(rows), minus(rows), plus_at(rows), minus_at(rows);
            std::vector<uint8_t> flags(rows);
            ksl::ks_rows(first, second, sides, plus.data(), minus.data(), plus_at.data(), minus_at.data(), flags.data(),
                         threads);
            return bytes(plus) + bytes(minus) + bytes(plus_at) + bytes(minus_at) + bytes(flags);
        });
    }
    if (n != m || !std::is_floating_point<T>::value) return;
    same("ks_statistics and ks_decide " + size, [&](int threads) {
        std::vector<int64_t> h(rows);
        std::vector<uint8_t> flags(rows), decided(rows), again(rows);
        ksl::ks_statistics(first, second, 2, h.data(), flags.data(), threads);
        ksl::ks_decide(first, second, n / 8, decided.data(), again.data(), threads);
        return bytes(h) + bytes(flags) + bytes(decided) + bytes(again);
    });
}

void paths() {
    std::vector<int64_t> counts;
    for (int64_t count = 0; count < 400; count += 7) counts.push_back(count);
    same("ks_outside_probability", [&](int threads) {
        std::vector<double> p(counts.size()), log_p(counts.size());
        ksl::ks_outside_probability(counts.data(), static_cast<int64_t>(counts.size()), 25, 16, false, p.data(),
                                    log_p.data(), threads);
        return bytes(p) + bytes(log_p);
    });
}

void adamw(bool lazy, bool finite) {
    constexpr int64_t k = 700, cols = 65;
    const auto start = random_values<float>(2 * k * cols, 5);
    auto grad = random_values<float>(k * cols, 6);
    if (!finite) grad[k * cols / 2] = std::numeric_limits<float>::quiet_NaN();
    std::vector<int64_t> ids(k);
    for (int64_t i = 0; i < k; ++i) ids[i] = 2 * i + 1;
    same(finite ? "row_adamw" : "row_adamw of a gradient with NaN", [&](int threads) {
        auto table = start;
        std::vector<float> exp_avg(k * cols), exp_avg_sq(k * cols);
        float step = 0;
        const ksl::MutableMatrix whole{table.data(), 2 * k, cols, cols, 1, ksl::DType::kFloat32};
        const ksl::AdamW hyper{0.1, 0.9, 0.999, 1e-8, 0.01, 1};
        ksl::row_adamw_if_finite(whole, ids.data(), k, nullptr, matrix(grad, k), exp_avg.data(), exp_avg_sq.data(),
                                 &step, hyper, lazy, threads);
        if (finite) {
            ksl::row_adamw(whole, ids.data(), k, nullptr, matrix(grad, k), exp_avg.data(), exp_avg_sq.data(), hyper,
                           lazy, threads);
        }
        expect(ksl::all_finite(matrix(grad, k), threads) == finite, "all_finite");
        return bytes(table) + bytes(exp_avg) + bytes(exp_avg_sq) + bytes(std::vector<float>{step});
    });
}

void embedding() {
    constexpr int64_t vocab = 300, cols = 64, n = 6000, k = 20;
    const auto table = random_values<float>(vocab * cols, 7), rows = random_values<float>(k * cols, 8);
    const auto grad = random_values<float>(n * cols, 9);
    std::vector<int32_t> slots(vocab, -1);
    for (int32_t i = 0; i < k; ++i) slots[7 * i] = i;
    std::vector<int64_t> ids(n);
    for (int64_t i = 0; i < n; ++i) ids[i] = (i * 31) % vocab;
    same("row_embedding", [&](int threads) {
        std::vector<float> out(n * cols), sums(k * cols);
        ksl::row_embedding(matrix(table, vocab), matrix(rows, k), slots.data(), ids.data(), n, out.data(), threads);
        ksl::row_embedding_backward(matrix(grad, n), slots.data(), vocab, ids.data(), n, k, sums.data(),
                                    ksl::DType::kFloat32, threads);
        return bytes(out) + bytes(sums);
    });
}

void exceptions() {
    std::vector<int> done(1000);
    bool caught = false;
    try {
        ksl::parallel_for(0, 1000, 1, kThreads, [&](int64_t lo, int64_t) {
            if (lo == 500) throw std::runtime_error("a chunk failed");
            done[lo] = 1;
        });
    } catch (const std::runtime_error &) {
        caught = true;
    }
    expect(caught, "an exception of a chunk reaches the caller");
}

void nested() {
    std::vector<int64_t> sums(40);
    ksl::parallel_for(0, 40, 1, kThreads, [&](int64_t lo, int64_t) {
        std::vector<int64_t> parts(50);
        ksl::parallel_for(0, 50, 1, kThreads, [&](int64_t at, int64_t) { parts[at] = at; });
        for (const int64_t part : parts) sums[lo] += part;
    });
    for (const int64_t sum : sums) expect(sum == 49 * 50 / 2, "a loop in a loop");
}

void everything() {
    ks<float>(300, 64, 64, 1);
    ks<double>(60, 100, 100, 2);
    ks<float>(40, 90, 60, 3);
    ks<int64_t>(40, 80, 50, 4);
    ks<float>(1, 300000, 200000, 5);  // rows so long that threads share them
    paths();
    for (const bool lazy : {false, true}) {
        for (const bool finite : {false, true}) adamw(lazy, finite);
    }
    embedding();
    exceptions();
    nested();
}

int planted() {
    int64_t count = 0;
    ksl::parallel_for(0, 100000, 10, kThreads, [&](int64_t lo, int64_t hi) { count += hi - lo; });
    std::printf("counted %lld\n", static_cast<long long>(count));
    return 0;
}

}  // namespace

int main(int count, char **arguments) {
    const std::string how = count > 1 ? arguments[1] : "";
    if (how == "planted") return planted();
    everything();
    std::vector<std::thread> callers;  // several at once
    for (int i = 0; i < 3; ++i) callers.emplace_back(everything);
    for (std::thread &caller : callers) caller.join();
    const bool used = regions.load() > 0;
    expect(used == (how == "region"), used ? "our own pool was asked for" : "an OpenMP region was asked for");
    std::printf("%s, instruction set %s: %s\n", how.c_str(), ksl::active_isa(),
                failures.load() ? "WRONG" : "all equal");
    return failures.load() ? 1 : 0;
}
