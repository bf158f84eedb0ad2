// What all backends share about Kolmogorov-Smirnov statistics: host and device code, without state.
//
// Samples are compared by ordered keys. These are unsigned integers in the order of the values, and equal exactly where
// the values are equal. Unlike comparisons of floats, they do not depend on the thread's flush-to-zero or
// denormals-are-zero mode.
//
// With a monotone map of values to buckets, #{x <= t} - #{y <= t} is known exactly at every bucket edge. If a bucket
// starts at p and holds cx values of x and cy of y, the difference stays within [p - cy, p + cx] inside it. So the
// edges give a lower bound of h, and the largest reach gives an upper bound. Only a bucket that reaches further than
// the lower bound can hide the maximum.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace ksl {

// The ordered key of an IEEE value from its bits. Key is uint16_t, uint32_t or uint64_t. -0 and +0 share a key. The
// order includes infinities, but not NaN.
template <typename Key>
KSL_HOST_DEVICE inline Key ordered_key(Key bits) {
    constexpr Key kSign = static_cast<Key>(Key{1} << (8 * sizeof(Key) - 1));
    const Key magnitude = bits & static_cast<Key>(~kSign);
    return static_cast<Key>(bits & kSign ? kSign - magnitude : kSign + magnitude);
}

// The bits of a key. A zero becomes +0.
template <typename Key>
KSL_HOST_DEVICE inline Key bits_of_key(Key key) {
    constexpr Key kSign = static_cast<Key>(Key{1} << (8 * sizeof(Key) - 1));
    return static_cast<Key>(key < kSign ? kSign | (kSign - key) : key - kSign);
}

// How far |#{x <= t} - #{y <= t}| can get inside a bucket that starts at p and holds cx and cy values.
KSL_HOST_DEVICE inline int64_t reach(int64_t p, int64_t cx, int64_t cy) { return p + cx > cy - p ? p + cx : cy - p; }

}  // namespace ksl
