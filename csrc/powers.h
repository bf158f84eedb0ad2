// Powers of AdamW's betas, with the same bits on every system.
//
// The power of a C library, or of CUDA, is rounded as each of them likes. These powers are made of additions and
// multiplications of IEEE 754 in a fixed order. They are computed as sums of two doubles, which hold 106 bits.
// Each product is off by at most 7 * 2^-106 of its size (Joldes, Muller and Popescu 2017, "Tight and rigorous error
// bounds for basic building blocks of double-word arithmetic", algorithm 10), so the power to n by about n times that.
// Rounded to a double, it is within 0.501 units in the last place for any n up to 2^40.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace ksl {

// What rounding has taken off a * b to give `product`. Both ways give the same bits.
struct SplitError {  // for any CPU: factors of 26 bits, whose products are exact (Dekker 1971)
    KSL_HOST_DEVICE static double upper_half(double value) {
        const double large = 134217729 * value;  // 2^27 + 1
        return large - (large - value);
    }

    KSL_HOST_DEVICE double operator()(double a, double b, double product) const {
        const double a_high = upper_half(a), a_low = a - a_high, b_high = upper_half(b), b_low = b - b_high;
        return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
    }
};
struct FusedError {  // where fma is one instruction
    KSL_HOST_DEVICE double operator()(double a, double b, double product) const { return std::fma(a, b, -product); }
};

// A number as the sum of two. The upper one is the sum rounded.
struct TwoDoubles {
    double high, low;
};

template <typename Error>
KSL_HOST_DEVICE TwoDoubles product_of(TwoDoubles a, TwoDoubles b, Error error) {
    const double high = a.high * b.high;
    const double low = error(a.high, b.high, high) + (a.high * b.low + a.low * b.high);
    const double sum = high + low;
    return {sum, low - (sum - high)};
}

// base to the power of n, for 0 <= base <= 1 and n >= 0. Numbers below 2^-969 lose bits, which 1 - power never shows.
template <typename Error>
KSL_HOST_DEVICE double power_of(double base, int64_t n, Error error) {
    TwoDoubles power{1, 0}, square{base, 0};
    for (; n > 0; n >>= 1) {
        if (n & 1) power = product_of(power, square, error);
        if (n > 1) square = product_of(square, square, error);
    }
    return power.high;
}

}  // namespace ksl
