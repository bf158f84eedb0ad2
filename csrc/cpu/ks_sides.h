// The bucket engine for both sides of the statistic and their places, for samples of any two sizes.
//
// Included by ks_engine.h once for each instruction set; KSL_ISA is the namespace of its copy.
//
// A row goes through these steps:
//   1. fit: a monotone map of values to buckets, fitted to a small sample.
//   2. count: two tables of counts, one increment for each value.
//   3. plan: the differences at the edges of the buckets are lower bounds of both maxima. Buckets that can reach a
//      bound are looked into. That they only reach it is enough, since the place of the maximum needs all ties.
//   4. gather: the keys of these buckets. Rows that are longer than a block are read and located a second time.
//   5. look: all keys of a bucket compared with all others, or first cut into finer buckets.
// plus has its maximum at a value of x, and minus at a value of y. So a bucket without x cannot hold plus.
#pragma once

#include "../platform.h"
#include "ks_kernels.h"
#include "ks_loops.h"

namespace ksl {
namespace KSL_ISA {
namespace {

inline uint32_t side_key(float value) { return key_of(value); }
inline uint64_t side_key(double value) { return key_of(value); }
inline uint64_t side_key(int64_t value) { return static_cast<uint64_t>(value) ^ kSignBit; }

// Whether a bucket may hold a candidate, by how many values come before it and are in it.
template <typename Key>
bool may_hold(const Search<Key> &s, int64_t i, int64_t j, int64_t nx, int64_t ny) {
    const int64_t at = i * s.x_unit - j * s.y_unit;
    return (nx > 0 && at + nx * s.x_unit >= s.up) || (ny > 0 && ny * s.y_unit - at >= s.down);
}

template <typename Key>
void look_into_few(const Key *keys, int32_t nx, int32_t ny, int64_t i, int64_t j, Search<Key> &s) {
    int32_t below_x[kLanes], below_y[kLanes];
    for (int32_t begin = 0; begin < nx + ny; begin += kLanes) {
        Loops::rank(keys, nx, ny, keys + begin, below_x, below_y);
        const int32_t lanes = smaller<int32_t>(nx + ny - begin, kLanes);
        for (int32_t k = 0; k < lanes; ++k) {
            consider(s, i + below_x[k], j + below_y[k], begin + k < nx, keys[begin + k]);
        }
    }
}

// Looks at one range of keys, by the scheme of zoom in ks_engine.h. keys holds nx of x and then ny of y, each in any
// order; i and j values come before them. Keys and scratch are overwritten.
template <typename Key>
void look_into(Key *keys, int64_t nx, int64_t ny, Key *scratch, int64_t i, int64_t j, Search<Key> &s,
               ZoomMemory<SidePart>::Room room) {
    if (!may_hold(s, i, j, nx, ny)) return;
    if (nx + ny < kZoomFrom) {
        look_into_few(keys, static_cast<int32_t>(nx), static_cast<int32_t>(ny), i, j, s);
        return;
    }
    Key low = keys[0], high = keys[0];
    for (int64_t k = 1; k < nx + ny; ++k) {
        low = smaller(low, keys[k]);
        high = larger(high, keys[k]);
    }
    int shift = 0, bits = 5;
    while (bits < kZoomBits && int64_t{2} << bits < nx + ny) ++bits;
    while ((high - low) >> shift >> bits != 0) ++shift;

    const int64_t buckets = static_cast<int64_t>((high - low) >> shift) + 1;
    const ZoomMemory<SidePart>::Level level(room, buckets);
    const int32_t *const x_count = level.x_count, *const y_count = level.y_count;
    count_keys(keys, nx, low, shift, buckets, level.x_count, room.tables());
    count_keys(keys + nx, ny, low, shift, buckets, level.y_count, room.tables());
    int64_t at_x = i, at_y = j;
    for (int64_t b = 0; b < buckets; ++b) {
        at_x += x_count[b];
        at_y += y_count[b];
        if (shift == 0 && (x_count[b] | y_count[b]) != 0) {
            consider(s, at_x, at_y, x_count[b] > 0, static_cast<Key>(low + static_cast<Key>(b)));
        } else {
            reached(s, at_x * s.x_unit - at_y * s.y_unit);
        }
    }
    if (shift == 0) return;

    int64_t count = 0, end = 0;
    at_x = i, at_y = j;
    for (int64_t b = 0; b < buckets; ++b) {
        const int32_t cx = x_count[b], cy = y_count[b];
        const bool wanted = may_hold(s, at_x, at_y, cx, cy);
        level.x_begin[b] = wanted ? end : -1;
        level.y_begin[b] = wanted ? end + cx : -1;
        if (wanted) {
            level.parts[count++] = {static_cast<int32_t>(at_x), static_cast<int32_t>(at_y), cx, cy, end};
            end += int64_t{cx} + cy;
        }
        at_x += cx;
        at_y += cy;
    }
    gather_wanted(keys, nx, low, shift, level.x_begin, scratch);
    gather_wanted(keys + nx, ny, low, shift, level.y_begin, scratch);
    for (int64_t k = 0; k < count; ++k) {
        const SidePart &part = level.parts[k];
        look_into(scratch + part.begin, part.nx, part.ny, keys + part.begin, part.i, part.j, s, level.below);
    }
}

// The buckets that reach farthest beyond the bounds come first. They are likely to raise them beyond most others.
template <typename Key>
void look_into_parts(const SidePart *parts, int64_t count, KeyBuffers<Key> buffers, Search<Key> &s,
                     ZoomMemory<SidePart>::Room room) {
    const auto [keys, scratch] = buffers;
    const int64_t up = s.up, down = s.down;  // by the bounds of the beginning, each part has its turn once
    const auto excess = [&](const SidePart &part) {
        const int64_t at = part.i * s.x_unit - part.j * s.y_unit;
        return larger<int64_t>(part.nx > 0 ? at + part.nx * s.x_unit - up : -1,
                               part.ny > 0 ? part.ny * s.y_unit - at - down : -1);
    };
    int64_t farthest = 0;
    for (int64_t k = 0; k < count; ++k) farthest = larger(farthest, excess(parts[k]));
    const int64_t least = count > 2 ? farthest / 2 : -1;
    for (const bool first : {true, false}) {
        for (int64_t k = 0; k < count; ++k) {
            const SidePart &part = parts[k];
            if ((excess(part) > least) != first) continue;
            look_into(keys + part.begin, part.nx, part.ny, scratch + part.begin, part.i, part.j, s, room);
        }
    }
}

template <typename T>
uint8_t special_values(const T *values, int64_t n) {
    if constexpr (std::is_integral_v<T>) {
        return 0;
    } else {
        constexpr int64_t kPiece = 1024;
        bits_t<T> largest = 0;
        for (int64_t begin = 0; begin < n; begin += kPiece) {
            const int64_t end = smaller(begin + kPiece, n);
            bits_t<T> most = 0;
            bool infinite = false;
            for (int64_t k = begin; k < end; ++k) {
                const bits_t<T> magnitude = bits_of(values[k]) & kMagnitude<T>;
                most = magnitude > most ? magnitude : most;
                infinite |= magnitude == BitsOf<T>::kInfinity;
            }
            if (infinite) largest |= 1;
            if (most > BitsOf<T>::kInfinity) largest |= 2;
        }
        return static_cast<uint8_t>((largest & 1 ? kHasInf : 0) | (largest & 2 ? kHasNaN : 0));
    }
}

template <typename T>
LinearMap<element_compute_t<T>> side_map(const SideMap &map) {
    using C = element_compute_t<T>;
    const C top = static_cast<C>((int64_t{1} << map.bits) - 1);
    return {static_cast<C>(map.low), static_cast<C>(map.scale), top, map.bits - 4};
}

inline int side_bits(int64_t n, int64_t m) {
    int most = SideTables::kBits;
    if (n + m < int64_t{1} << 22) most = 15;  // and its tables fit the second-level cache of any CPU
    if (n + m < int64_t{1} << 19) most = 13;  // the first-level cache
    if (larger(n, m) <= kSideBlock) most = SideTables::kCoarseBits;
    int bits = 6;
    while (bits < most && int64_t{4} << bits < 3 * (n + m)) ++bits;  // about one value a bucket in short rows
    return bits;
}

template <typename T>
bool fit_sides(const T *x, int64_t n, const T *y, int64_t m, SideMap &fitted, bool again) {
    LinearMap<element_compute_t<T>> map;
    if (again) map = side_map<T>(fitted);
    const int bits = side_bits(n, m);
    if (!(again ? map.refit(x, n, y, m, bits) : map.fit(x, n, y, m, bits))) return false;
    fitted = {map.low, map.scale, bits};
    return true;
}

template <typename T>
bool fit_once(const T *x, int64_t n, const T *y, int64_t m, SideMap &map) {
    return fit_sides(x, n, y, m, map, false);
}

// Adds values to a table of counts. The locations are kept, or (kKeep false) a block has room for those of a block.
// Returns false if a value is NaN or infinite.
template <bool kKeep, typename T>
bool locate_and_count(const SideMap &fitted, const T *values, int64_t n, uint16_t *location, int32_t *counts) {
    const auto map = side_map<T>(fitted);
    for (int64_t begin = 0; begin < n; begin += kSideBlock) {
        const int64_t length = smaller(n - begin, kSideBlock);
        uint16_t *const here = kKeep ? location + begin : location;
        const auto locator = Loops::locator(map, values);
        if (!locate_and_count_all(locator, values + begin, length, here, counts, values + begin + length)) return false;
    }
    return true;
}

template <typename T>
bool count_side(const SideMap &map, const T *values, int64_t n, uint16_t *block, int32_t *counts) {
    return locate_and_count<false>(map, values, n, block, counts);
}

// Marks and lists the buckets that may hold a candidate.
template <typename Key>
void plan_sides(Search<Key> &s, SideTables &tables) {
    Loops::plan(s, tables);
    const int32_t *const x_count = tables.x_count(), *const y_count = tables.y_count();
    const uint16_t *const wanted = tables.wanted();
    const int rows = tables.rows();
    for (int row = 0; row < rows; ++row) {
        for (uint32_t bits = wanted[row]; bits != 0; bits &= bits - 1) {
            const int at = row * kLanes + lowest_bit(bits), bucket = bucket_of(at, tables.lane_bits());
            tables.list(at, bucket, {tables.x_before()[at], tables.y_before()[at], x_count[at], y_count[at], 0});
            if (tables.bits() > SideTables::kCoarseBits) {
                const int coarse = bucket >> (tables.bits() - SideTables::kCoarseBits);
                tables.mark_coarse(location_of(coarse, SideTables::kCoarseBits - 4));
            }
        }
    }
}

// Copies the keys of the wanted buckets. The locations of the values are known.
template <typename T, typename Key>
void gather_located(const SideTables &plan, const T *values, int64_t n, const uint16_t *location, const int64_t *begin,
                    int32_t *done, int32_t *positions, Key *keys) {
    const int fold = plan.bits() > SideTables::kCoarseBits ? plan.bits() - SideTables::kCoarseBits : 0;
    const uint16_t *const all_wanted = plan.wanted(), *const wanted = fold == 0 ? all_wanted : plan.coarse();
    for (int64_t start = 0; start < n; start += kSideBlock) {
        const int64_t length = smaller(n - start, kSideBlock);
        const uint16_t *const here = location + start;
        int64_t found = Loops::find_wanted(here, length, wanted, plan.range(), plan.lane_bits(), positions, fold);
        if (fold != 0) {
            int64_t kept = 0;  // without a branch, which would be mispredicted for every fourth value
            for (int64_t k = 0; k < found; ++k) {
                const int32_t position = positions[k];
                positions[kept] = position;
                kept += all_wanted[here[position] / kLanes] >> here[position] % kLanes & 1;
            }
            found = kept;
        }
        for (int64_t k = 0; k < found; ++k) {
            const int at = here[positions[k]];
            keys[begin[at] + done[at]++] = side_key(values[start + positions[k]]);
        }
    }
}

// The same for values whose locations are not known.
template <typename T, typename Key>
void gather_side(const SideMap &fitted, const SideTables &plan, const T *values, int64_t n, const int64_t *begin,
                 int32_t *done, SideScratch &scratch, Key *keys) {
    const auto map = side_map<T>(fitted);
    for (int64_t start = 0; start < n; start += kSideBlock) {
        const int64_t length = smaller(n - start, kSideBlock);
        locate_all(Loops::locator(map, values), values + start, length, scratch.location);
        gather_located(plan, values + start, length, scratch.location, begin, done, scratch.position, keys);
    }
}

// The whole row by its keys alone.
template <typename T, typename Key>
void look_into_row(const T *x, const T *y, Search<Key> &s, SideWorkspace &w) {
    const auto [keys, scratch] = w.template keys<Key>(s.n + s.m);
    for (int64_t k = 0; k < s.n; ++k) keys[k] = side_key(x[k]);
    for (int64_t k = 0; k < s.m; ++k) keys[s.n + k] = side_key(y[k]);
    look_into(keys, s.n, s.m, scratch, 0, 0, s, w.scratch.zoom.room());
}

template <typename T>
bool same_bits(const T *x, const T *y, int64_t n) {
    constexpr int64_t kFew = 64;
    if (std::memcmp(x, y, static_cast<size_t>(smaller(n, kFew)) * sizeof(T)) != 0) return false;
    return std::memcmp(x, y, static_cast<size_t>(n) * sizeof(T)) == 0;
}

// All differences of a row and its copy are 0, so that scipy's place is the smallest value.
template <typename T, typename Key>
void find_smallest(const T *x, Search<Key> &s) {
    Key least = side_key(x[0]);
    for (int64_t k = 1; k < s.n; ++k) least = smaller(least, side_key(x[k]));
    consider(s, 0, 0, true, least);
}

constexpr int64_t kSideBucketsFrom = 192;  // shorter rows are not worth the tables

template <typename T>
uint8_t row_sides(const T *x, const T *y, Search<element_key_t<T>> &s, SideWorkspace &w) {
    using Key = element_key_t<T>;
    const int64_t n = s.n, m = s.m;
    const bool keep = n + m <= SideWorkspace::kKept;
    uint8_t flags = 0;
    const auto check = [&] { flags = special_values(x, n) | special_values(y, m); };
    if (n == m && same_bits(x, y, n)) {
        check();
        if (!(flags & kHasNaN)) find_smallest(x, s);
        return flags;
    }
    SideTables &tables = w.tables;
    SideMap map;
    bool good = n + m >= kSideBucketsFrom && fit_sides(x, n, y, m, map, false);
    for (bool first = true; good; first = false) {
        tables.begin(map.bits);
        uint16_t *const x_location = keep ? w.locations(n + m + kSlack) : w.scratch.location;
        uint16_t *const y_location = keep ? x_location + n + kSlack : w.scratch.location;
        const auto count = keep ? locate_and_count<true, T> : locate_and_count<false, T>;
        good = count(map, x, n, x_location, tables.x_counters()) && count(map, y, m, y_location, tables.y_counters());
        if (!good) break;
        plan_sides(s, tables);
        if (first && tables.values() > (n + m) / 4 && fit_sides(x, n, y, m, map, true)) continue;
        const auto buffers = w.template keys<Key>(tables.values());
        if (keep) {
            int32_t *const positions = w.scratch.position;
            gather_located(tables, x, n, x_location, tables.x_begin(), tables.x_done(), positions, buffers.keys);
            gather_located(tables, y, m, y_location, tables.y_begin(), tables.y_done(), positions, buffers.keys);
        } else {
            gather_side(map, tables, x, n, tables.x_begin(), tables.x_done(), w.scratch, buffers.keys);
            gather_side(map, tables, y, m, tables.y_begin(), tables.y_done(), w.scratch, buffers.keys);
        }
        look_into_parts(tables.parts(), tables.part_count(), buffers, s, w.scratch.zoom.room());
        return flags;
    }
    check();
    if (!(flags & kHasNaN)) look_into_row(x, y, s, w);
    return flags;
}

// A row whose one side is shared. Its keys are sorted, so a bucket's are in one piece. Returns false if the other side
// holds NaN or infinity.
template <typename T>
bool shared_row(const SharedSide<T> &shared, const T *other, Search<element_key_t<T>> &s, SideWorkspace &w) {
    using Key = element_key_t<T>;
    SideTables &tables = w.tables;
    tables.begin(shared.map.bits);
    int32_t *const x_counters = tables.x_counters(), *const y_counters = tables.y_counters();
    std::memcpy(shared.is_x ? x_counters : y_counters, shared.counts, sizeof(int32_t) << shared.map.bits);
    const int64_t size = shared.is_x ? s.m : s.n;
    if (!count_side(shared.map, other, size, w.scratch.location, shared.is_x ? y_counters : x_counters)) return false;
    plan_sides(s, tables);
    const auto buffers = w.template keys<Key>(tables.values());
    for (int64_t k = 0; k < tables.part_count(); ++k) {
        const SidePart &part = tables.parts()[k];
        const int64_t from = shared.is_x ? part.i : part.j, count = shared.is_x ? part.nx : part.ny;
        Key *to = buffers.keys + part.begin + (shared.is_x ? 0 : part.nx);
        std::memcpy(to, shared.sorted + from, static_cast<size_t>(count) * sizeof(Key));
    }
    gather_side(shared.map, tables, other, size, shared.is_x ? tables.y_begin() : tables.x_begin(),
                shared.is_x ? tables.y_done() : tables.x_done(), w.scratch, buffers.keys);
    look_into_parts(tables.parts(), tables.part_count(), buffers, s, w.scratch.zoom.room());
    return true;
}

template <typename T>
constexpr SideKernels<T> side_kernels() {
    return {row_sides<T>,
            shared_row<T>,
            fit_once<T>,
            count_side<T>,
            plan_sides<element_key_t<T>>,
            gather_side<T, element_key_t<T>>,
            look_into_parts<element_key_t<T>>};
}

}  // namespace
}  // namespace KSL_ISA
}  // namespace ksl
