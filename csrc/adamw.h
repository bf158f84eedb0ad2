// The scalars of an AdamW step, the same for the CPU and for CUDA.
//
// The arithmetic of the elements is next to each backend's loops (csrc/cpu/ks_loops.h, csrc/cuda/row_adamw.cuh). It
// has the operations of torch.optim.AdamW's single-tensor implementation, in the same order, each correctly rounded.
// Neither backend may fuse a multiplication and an addition (-ffp-contract=off, --fmad=false).
#pragma once

#include <cmath>

#include "host_device.h"
#include "ksl.h"

namespace ksl {

// Computed in double and rounded once, as Python scalars are in torch. It is an aggregate, so that it can be in shared
// memory. Each half is the work of one CUDA thread, because a power takes long.
template <typename C>
struct AdamWCoefficients {
    C decay, one_minus_beta1, minus_step_size, eps;
    C beta2, one_minus_beta2, root_bias2;

    // power1: beta1 to the power of the step's number (powers.h).
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

}  // namespace ksl
