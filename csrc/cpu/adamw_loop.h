// The arithmetic of AdamW on a span of a row. The operations and their rounding are the same on every instruction set.
//
// Included by one source file per instruction set, after ks_kernels.h; KSL_ISA is the namespace of its copy.
#pragma once

#include "../platform.h"
#include "ks_kernels.h"

namespace ksl {
namespace KSL_ISA {
namespace {

template <typename C>
void adamw_span(const AdamWCoefficients<C> &c, int64_t n, const C *__restrict grad, C *__restrict param,
                C *__restrict exp_avg, C *__restrict exp_avg_sq) {
    // torch.lerp computes from the nearer end, so that weight 1 gives the end itself.
    const bool from_start = c.one_minus_beta1 < C(0.5);
    const C weight = from_start ? c.one_minus_beta1 : 1 - c.one_minus_beta1;
    for (int64_t i = 0; i < n; ++i) {
        const C step = weight * (grad[i] - exp_avg[i]);
        exp_avg[i] = from_start ? exp_avg[i] + step : grad[i] - step;
        exp_avg_sq[i] = exp_avg_sq[i] * c.beta2 + c.one_minus_beta2 * grad[i] * grad[i];
        const C denominator = square_root(exp_avg_sq[i]) / c.root_bias2 + c.eps;
        param[i] = param[i] * c.decay + c.minus_step_size * exp_avg[i] / denominator;
    }
}

}  // namespace
}  // namespace KSL_ISA
}  // namespace ksl
