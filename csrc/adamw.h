// AdamW's arithmetic for one element, the same for the CPU and for CUDA.
//
// Operations and their order are those of torch.optim.AdamW's single-tensor implementation, each correctly rounded by
// itself: neither backend may fuse a multiplication and an addition (-ffp-contract=off, -fmad=false).
#pragma once

#include <cmath>

#include "host_device.h"
#include "ksl.h"

namespace ksl {

// The scalars of one step, computed in double and rounded once, as Python scalars are in torch. An aggregate, so that
// it can stand in shared memory; each half is one CUDA thread's work, because a power takes long.
template <typename C>
struct Coefficients {
    C decay, one_minus_beta1, minus_step_size, eps;
    C beta2, one_minus_beta2, root_bias2;

    // power1: beta1 to the power of the step's number.
    KSL_HOST_DEVICE void set_first(const AdamW &h, double lr, double power1) {
        decay = static_cast<C>(1 - lr * h.weight_decay);
        one_minus_beta1 = static_cast<C>(1 - h.beta1);
        minus_step_size = static_cast<C>(-lr / (1 - power1));
        eps = static_cast<C>(h.eps);
    }

    // power2: likewise of beta2.
    KSL_HOST_DEVICE void set_second(const AdamW &h, double power2) {
        beta2 = static_cast<C>(h.beta2);
        one_minus_beta2 = static_cast<C>(1 - h.beta2);
        root_bias2 = static_cast<C>(std::sqrt(1 - power2));
    }
};

// torch.lerp computes from the nearer end, so that weight 1 gives the end itself.
template <typename C>
KSL_HOST_DEVICE inline C next_exp_avg(const Coefficients<C> &c, C exp_avg, C grad) {
    return c.one_minus_beta1 < C(0.5) ? exp_avg + c.one_minus_beta1 * (grad - exp_avg)
                                      : grad - (grad - exp_avg) * (1 - c.one_minus_beta1);
}

template <typename C>
KSL_HOST_DEVICE inline C next_exp_avg_sq(const Coefficients<C> &c, C exp_avg_sq, C grad) {
    return exp_avg_sq * c.beta2 + c.one_minus_beta2 * grad * grad;
}

// From the new moments.
template <typename C>
KSL_HOST_DEVICE inline C next_param(const Coefficients<C> &c, C param, C exp_avg, C exp_avg_sq) {
    const C denominator = std::sqrt(exp_avg_sq) / c.root_bias2 + c.eps;
    return param * c.decay + c.minus_step_size * exp_avg / denominator;
}

}  // namespace ksl
