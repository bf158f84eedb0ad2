// The native API of kslottery-fast: raw pointers, int64 sizes and strides, no torch.
//
// Every function is synchronous on the CPU, reads only its inputs, writes only its outputs, throws
// std::invalid_argument for arguments that it cannot take, and gives the same bits for any thread count and any ISA.
// The functions of the namespace cuda are at the end.
#pragma once

#include <cstdint>
#include <string>

namespace ksl {

// The integers are for ks_rows on the CPU only.
enum class DType : int32_t { kFloat64 = 0, kFloat32 = 1, kFloat16 = 2, kBFloat16 = 3, kInt64 = 4, kUInt64 = 5 };

// A read-only [rows, cols] matrix. Strides count elements, not bytes, and may be anything.
struct Matrix {
    const void *data;
    int64_t rows, cols;
    int64_t row_stride, col_stride;
    DType dtype;
};

// The same, writable.
struct MutableMatrix {
    void *data;
    int64_t rows, cols;
    int64_t row_stride, col_stride;
    DType dtype;
};

// Bits of a row's flags.
enum : uint8_t { kHasNaN = 1, kHasInf = 2 };

// Exact two-sample Kolmogorov-Smirnov statistics, row by row: x is [R, n], y is [R, m].
//
// With F_x, F_y the right-continuous empirical CDFs, g = gcd(n, m) and t over all sample values:
//   plus[r]  = max(0, max_t  (F_x(t) - F_y(t))) * n * m / g      (an exact integer)
//   minus[r] = max(0, max_t -(F_x(t) - F_y(t))) * n * m / g
// So for n = m = d both count in units of 1 / d, and D = max(plus, minus) / d. plus_at[r] and minus_at[r] (optional,
// may be null) are the sample values where scipy.stats.ks_2samp finds them. flags[r] tells whether either row holds NaN
// or Inf. The other outputs of a row with NaN are -1 and NaN.
//
// sides asks for one side alone. kLarger asks for the one that a two-sided test reports: the larger, and of equal ones
// minus if its difference is larger in float64. A side that was not asked for, or is not reported, is 0 at NaN (or at
// 0). Values of any two types are compared exactly. If both are of one integer type, plus_at and minus_at are int64_t
// or uint64_t in place of double.
enum class Sides : int32_t { kBoth = 0, kPlus = 1, kMinus = 2, kLarger = 3 };
void ks_rows(const Matrix &x, const Matrix &y, Sides sides, int64_t *plus, int64_t *minus, void *plus_at,
             void *minus_at, uint8_t *flags, int threads);

// h[r] = max(plus[r], minus[r]) for two tables of one shape where that reaches the threshold, else 0. This is the quick
// way if sides and places are not wanted. Rows with NaN give -1. A threshold saves work, because an h below it need not
// be known exactly. identical[r] (optional, may be null) is 1 if both rows hold the same bits and all of them are
// finite, which h cannot tell: it is 0 for values in another order too.
void ks_statistics(const Matrix &x, const Matrix &y, int64_t threshold, int64_t *h, uint8_t *flags, int threads,
                   uint8_t *identical = nullptr);

// decided[r] = (h[r] >= threshold) for two tables of one shape. This is cheaper than h itself. Rows with NaN give 0.
void ks_decide(const Matrix &x, const Matrix &y, int64_t threshold, uint8_t *decided, uint8_t *flags, int threads);

// p[c] = probability that a random lattice path from (0, 0) to (n, m) meets a point (i, j) with |i / n - j / m| *
// lcm(n, m) >= counts[c], or one-sided without the absolute value. This is the exact p-value of the count. log_p[c] is
// its natural logarithm, also where p[c] underflows. It is NaN where p[c] underflows a long double too.
void ks_outside_probability(const int64_t *counts, int64_t k, int64_t n, int64_t m, bool one_sided, double *p,
                            double *log_p, int threads);

// Sorted disjoint intervals of ordered float64 keys, each cut into buckets of one width. A key of interval i is in
// bucket bases[i] + ((key - starts[i]) >> shifts[i]) if key - starts[i] <= lasts[i]. Over all intervals lies a grid of
// cells of 2^cell_shift keys, counted from starts[0]. cells[2 * c] is the last interval that starts at or before the
// first key of cell c, and cells[2 * c + 1] the last that starts at or before its last key.
struct KeyIntervals {
    const uint64_t *starts, *lasts;
    const uint8_t *shifts;
    const int64_t *bases;
    const int32_t *cells;
    int64_t count;
    int cell_shift;
};

// What is known of the keys in a bucket.
enum : uint8_t { kNoKey = 0, kOneKey = 1, kSeveralKeys = 2 };

// Adds the n contiguous float64 or float32 values to the counts of their buckets. first_keys[b] is the key of the first
// value in bucket b, and states[b] tells whether there are others. Values outside the intervals are passed over.
// Returns how many values are NaN.
int64_t ks_stream_count(const void *values, int64_t n, DType dtype, const KeyIntervals &intervals, int64_t *counts,
                        uint64_t *first_keys, uint8_t *states);

// Writes the keys of the values in the intervals, at most n, and how many they are. Returns how many values are NaN.
int64_t ks_stream_collect(const void *values, int64_t n, DType dtype, const KeyIntervals &intervals, uint64_t *keys,
                          int64_t *collected);

// The instruction set that the KS kernels use: "avx512", "avx2" or "baseline". KSL_ISA in the environment overrides the
// choice at the first call. A name that is unknown, or an instruction set that this CPU lacks, throws.
const char *active_isa();

struct AdamW {
    double lr, beta1, beta2, eps, weight_decay;
    int64_t step;  // the number of this update, counted from 1
};

// One AdamW update of k rows of a table, in place, as torch.optim.AdamW on the sub-table table[row_ids]. master [k,
// cols] float32 or null: the exact values of the rows where the table's dtype is narrower. It is updated, and the table
// gets its rounding. grad [k, cols]. exp_avg, exp_avg_sq [k, cols] float32 (float64 for a float64 table), contiguous.
// row_ids [k] distinct, or null for the rows 0..k-1. With lazy a row whose gradient is all zero is left as it is, with
// its moments, as by torch.optim.SparseAdam.
void row_adamw(const MutableMatrix &table, const int64_t *row_ids, int64_t k, void *master, const Matrix &grad,
               void *exp_avg, void *exp_avg_sq, const AdamW &hyper, bool lazy, int threads);

// The same, but if grad holds NaN or infinity nothing is written. Returns whether the update was made. *step is the
// number of updates made so far. It goes up by one if the update was made. hyper.step is not used.
bool row_adamw_if_finite(const MutableMatrix &table, const int64_t *row_ids, int64_t k, void *master,
                         const Matrix &grad, void *exp_avg, void *exp_avg_sq, float *step, AdamW hyper, bool lazy,
                         int threads);

// Whether no element is NaN or infinite.
bool all_finite(const Matrix &matrix, int threads);

// out[i] = slots[ids[i]] < 0 ? table[ids[i]] : rows[slots[ids[i]]], in the table's dtype. slots [table.rows];
// out [n, cols] contiguous.
void row_embedding(const Matrix &table, const Matrix &rows, const int32_t *slots, const int64_t *ids, int64_t n,
                   void *out, int threads);

// grad_rows[s] = sum of grad_out[i] over the i with slots[ids[i]] == s, added in the order of i in float32 (float64 for
// float64), so it is deterministic. slots [vocab]. grad_rows [k, cols] is contiguous and overwritten.
void row_embedding_backward(const Matrix &grad_out, const int32_t *slots, int64_t vocab, const int64_t *ids, int64_t n,
                            int64_t k, void *grad_rows, DType grad_rows_dtype, int threads);

// The same on a CUDA device, for rows of up to 2^30 values. All pointers are to its memory. A function puts its work on
// the stream and returns without waiting, so it may be captured into a CUDA graph. Failures of CUDA are
// std::runtime_error.
namespace cuda {

// A device and a cudaStream_t of it; null is its default stream.
struct Stream {
    int device;
    void *handle;
};

// Tells why no kernel can run on this machine (no driver, no device), or on one of its devices (older than what the
// kernels were compiled for). An empty string if kernels can run.
std::string unavailable();
std::string unavailable(int device);

// Bytes of a workspace: `least` are enough for the result, `best` for the best speed. Both are 0 if none is needed.
struct WorkspaceSize {
    int64_t least, best;
};

// Bit for bit the results of the functions of these names above, for both sides and the four floating types. The
// workspace of ks_rows is device memory of at least the least size, for rows that are too long for shared memory.
WorkspaceSize ks_rows_workspace(const Matrix &x, const Matrix &y, Stream stream);
void ks_rows(const Matrix &x, const Matrix &y, int64_t *plus, int64_t *minus, double *plus_at, double *minus_at,
             uint8_t *flags, void *workspace, int64_t workspace_bytes, Stream stream);
void ks_statistics(const Matrix &x, const Matrix &y, int64_t threshold, int64_t *h, uint8_t *flags, Stream stream);
void ks_decide(const Matrix &x, const Matrix &y, int64_t threshold, uint8_t *decided, uint8_t *flags, Stream stream);

// Which rows reach a threshold, in one launch, for a host that then waits only once. `found` is pinned memory of the
// host: the number of rows with h[r] >= threshold, whether any flags[r] has one of the bits, and then r and h[r] of
// these rows, in any order; at most 2 + 2 * rows numbers. state is three numbers in device memory, zeros.
void ks_reached(const int64_t *h, const uint8_t *flags, int64_t rows, int64_t threshold, uint8_t bits, uint64_t *state,
                int64_t *found, Stream stream);

// One table's part in an AdamW step. The fields are the arguments of row_adamw above. row_ids must be distinct and in
// the table (an id outside ends the kernel as a failed assert does). If step is not null, it is a float32 in device
// memory with the number of updates made so far. It goes up by one, and hyper.step is not used. If lr is not null, it
// is a float32 or float64 in device memory and replaces hyper.lr. With whole_grad, grad is the gradient of the whole
// table, and row_ids names its rows too. If read is not null, the update is lazy: a row whose gradient is all zero is
// left as it is. read is then a workspace of k bytes, all 0, in which the others are marked.
struct RowUpdate {
    MutableMatrix table;
    const int64_t *row_ids;
    int64_t k;
    void *master;
    Matrix grad;
    void *exp_avg, *exp_avg_sq;
    AdamW hyper;
    float *step;
    const void *lr;
    DType lr_dtype;
    bool whole_grad;
    uint8_t *read;
};

// What a step reads in device memory besides its tables. All pointers may be null. state is three int32, zeros before
// the first step. The first two are the kernel's own, and the third counts the steps that skip_nonfinite left out. It
// is needed for skip_nonfinite and for step numbers on the device. Gradients are divided by *grad_scale. The step is
// left out, and no step number goes up, if *found_inf is not 0, or with skip_nonfinite if a gradient holds NaN or Inf.
struct StepControl {
    int32_t *state;
    const float *grad_scale, *found_inf;
    bool skip_nonfinite;
};

// One AdamW update of each of `count` tables, with one launch for every 16 of them, another one with skip_nonfinite,
// and another one if an update is lazy. The bits are those of the CPU's row_adamw, also if step numbers are on the
// device, where the powers of the betas are then computed (powers.h).
//
// With KSL_CUDA_ADAMW=cluster in the environment, a step of more than one launch is a single one instead, with the same
// bits, if one cluster of thread blocks can do it. Returns why it could not, or else an empty string.
std::string row_adamw(const RowUpdate *updates, int64_t count, const StepControl &control, Stream stream);

// As above, bit for bit. Ids and slots out of range end the kernel as a failed assert does, and nothing is read or
// written out of bounds. The workspace is device memory, of as many bytes as
// row_embedding_backward_workspace returns.
void row_embedding(const Matrix &table, const Matrix &rows, const int32_t *slots, const int64_t *ids, int64_t n,
                   void *out, Stream stream);
int64_t row_embedding_backward_workspace(int64_t n, int64_t k, Stream stream);
void row_embedding_backward(const Matrix &grad_out, const int32_t *slots, int64_t vocab, const int64_t *ids, int64_t n,
                            int64_t k, void *workspace, void *grad_rows, DType grad_rows_dtype, Stream stream);

}  // namespace cuda
}  // namespace ksl
