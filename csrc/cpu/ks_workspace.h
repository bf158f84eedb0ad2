// What the two bucket engines keep from row to row, for one thread each: the tables of buckets, and buffers.
//
// All of it is plain arrays and pointers. The engines must not instantiate templates of the standard library, because
// the linker keeps one copy of each, which might be AVX-512 code. For the same reason, what they call here is always
// inlined.
#pragma once

#include <cassert>
#include <cstdint>
#include <cstring>

#include "../platform.h"

namespace ksl {

constexpr int kLanes = 16;      // a table of counts has its buckets in as many lanes, see ks_maps.h
constexpr int64_t kSlack = 64;  // vector loops read and write whole blocks, up to this number of elements too many
constexpr int kMaxBucketBits = 11;

// An array that grows. What it held is lost then.
template <typename T>
class Scratch {
  public:
    Scratch() = default;
    ~Scratch() { delete[] data_; }
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;

    // Room for this number of elements, and a block more.
    KSL_ALWAYS_INLINE T *hold(int64_t count) {
        if (count > capacity_) {
            delete[] data_;
            data_ = nullptr;  // so that it is deleted once if there is no memory
            capacity_ = 0;
            data_ = new T[static_cast<size_t>(count + kSlack)];
            capacity_ = count;
        }
        return data_;
    }

  private:
    T *data_ = nullptr;
    int64_t capacity_ = 0;
};

template <typename Key>
struct KeyBuffers {
    Key *keys, *scratch;
};

// Keys of 32 or 64 bits: room for this number, and for as many again. Both have a block more.
template <typename Key>
KSL_ALWAYS_INLINE KeyBuffers<Key> key_buffers(Scratch<uint64_t> &memory, int64_t count) {
    Key *const keys = reinterpret_cast<Key *>(memory.hold(2 * count));
    return {keys, keys + count + kSlack / 2};
}

constexpr int kZoomBits = 10;  // a level of a zoom has at most 2^kZoomBits buckets
constexpr int kZoomBuckets = 1 << kZoomBits;
using ZoomTables = int32_t[4][kZoomBuckets];

// The memory of a zoom: what each of its levels needs of its buckets. It is not on the stack of the thread, because a
// thread of another library may have a small one.
template <typename Part>
class ZoomMemory {
  public:
    ZoomMemory() : memory_(new char[kLevels * kLevel]) {}
    ~ZoomMemory() { delete[] memory_; }
    ZoomMemory(const ZoomMemory &) = delete;
    ZoomMemory &operator=(const ZoomMemory &) = delete;

    // What a level and all below it may use: the memory from `free` on, and the tables in which a level counts before
    // it calls the next.
    struct Room {
        char *free;
        ZoomMemory *of;

        KSL_ALWAYS_INLINE ZoomTables &tables() const { return of->tables_; }
    };
    KSL_ALWAYS_INLINE Room room() { return {memory_, this}; }

    // The arrays of a level, one element a bucket. They are not initialised. The levels below have the room that is
    // left.
    struct Level {
        KSL_ALWAYS_INLINE Level(const Room &room, int64_t buckets)
            : parts(reinterpret_cast<Part *>(room.free)),
              x_begin(reinterpret_cast<int64_t *>(parts + buckets)),
              y_begin(x_begin + buckets),
              x_count(reinterpret_cast<int32_t *>(y_begin + buckets)),
              y_count(x_count + buckets),
              below{reinterpret_cast<char *>(y_count + buckets), room.of} {
            assert(buckets <= kZoomBuckets && below.free <= room.of->memory_ + kLevels * kLevel);
        }

        Part *const parts;
        int64_t *const x_begin, *const y_begin;
        int32_t *const x_count, *const y_count;
        const Room below;
    };

  private:
    static constexpr int64_t kLevel =
        kZoomBuckets * static_cast<int64_t>(2 * sizeof(int32_t) + sizeof(Part) + 2 * sizeof(int64_t));
    static constexpr int64_t kLevels = 12;  // a level takes 6 bits or more off keys of up to 64
    char *const memory_;
    ZoomTables tables_;
};

// The first and the last of some buckets, in the order of the values. first > last if there are none.
struct BucketRange {
    int first, last;
};
constexpr BucketRange kNoBuckets{INT32_MAX, -1};

// The tables of the buckets of a row. An index is a bucket's location (ks_maps.h). A row goes through these steps:
//   1. begin. All counts are 0.
//   2. x_counters and y_counters. Each value is added at the location of its bucket.
//   3. mark, of the classes below. The caller writes a bit for each bucket: whether it is wanted, which is to say that
//      it is looked into.
//   4. list, for each wanted bucket. Its keys get a place among the keys of all wanted buckets.
//   5. parts, values, range, x_begin and y_begin, which tell what was listed.
// The counts of a bucket can be read until it is listed. To take a step too early or too late is a mistake in the
// engine. The assertions find it, in a build without NDEBUG such as those of tests/sanitize.py.
template <typename PartOf, int kMostBits, int kBefore>
class BucketTables {
  public:
    using Part = PartOf;  // a bucket that is looked into
    static constexpr int kBuckets = 1 << kMostBits;

    // The row has 2^bits buckets.
    KSL_ALWAYS_INLINE void begin(int bits) {
        assert(bits >= 5 && bits <= kMostBits);
        bits_ = bits;
        std::memset(x_count_, 0, sizeof(int32_t) << bits);
        std::memset(y_count_, 0, sizeof(int32_t) << bits);
        step_ = Step::kCount;
    }
    KSL_ALWAYS_INLINE int bits() const { return bits_; }
    KSL_ALWAYS_INLINE int lane_bits() const { return bits_ - 4; }
    KSL_ALWAYS_INLINE int rows() const { return (1 << bits_) / kLanes; }

    KSL_ALWAYS_INLINE int32_t *x_counters() { return counters(x_count_); }
    KSL_ALWAYS_INLINE int32_t *y_counters() { return counters(y_count_); }
    KSL_ALWAYS_INLINE const int32_t *x_count() const { return counts(x_count_); }
    KSL_ALWAYS_INLINE const int32_t *y_count() const { return counts(y_count_); }

    // Adds a wanted bucket to the parts. `bucket` is its number. part.begin is set here.
    KSL_ALWAYS_INLINE void list(int location, int bucket, Part part) {
        assert(step_ == Step::kMark || step_ == Step::kList);
        assert(is_wanted(location));
        step_ = Step::kList;
        part.begin = values_;
        x_begin_[location] = values_;
        y_begin_[location] = values_ + part.nx;
        values_ += int64_t{part.nx} + part.ny;
        parts_[part_count_++] = part;
        range_.first = bucket < range_.first ? bucket : range_.first;
        range_.last = bucket > range_.last ? bucket : range_.last;
    }

    KSL_ALWAYS_INLINE const uint16_t *wanted() const {  // one bit for each bucket
        assert(step_ != Step::kCount);
        return wanted_;
    }
    KSL_ALWAYS_INLINE bool is_wanted(int64_t location) const {
        return (wanted()[location / kLanes] >> location % kLanes & 1) != 0;
    }
    KSL_ALWAYS_INLINE BucketRange range() const { return range_; }
    KSL_ALWAYS_INLINE Part *parts() { return parts_; }
    KSL_ALWAYS_INLINE int64_t part_count() const { return part_count_; }
    KSL_ALWAYS_INLINE int64_t values() const { return values_; }  // of all parts

    // Where the keys of a listed bucket go: those of x, and then those of y.
    KSL_ALWAYS_INLINE const int64_t *x_begin() const { return x_begin_; }
    KSL_ALWAYS_INLINE const int64_t *y_begin() const { return y_begin_; }

  protected:
    enum class Step : uint8_t { kCount, kMark, kList };

    BucketTables() = default;

    KSL_ALWAYS_INLINE uint16_t *begin_marks() {
        assert(step_ == Step::kCount);
        step_ = Step::kMark;
        part_count_ = values_ = 0;
        range_ = kNoBuckets;
        return wanted_;
    }

    // Whole pages lie between the same places of these tables. Where a store is a few places ahead of a load, modulo a
    // page, the load would wait for it.
    alignas(64) int32_t x_count_[kBuckets], y_count_[kBuckets];
    int32_t before_[kBefore][kBuckets];  // for the classes below: what comes before each bucket
    int64_t x_begin_[kBuckets], y_begin_[kBuckets];

  private:
    KSL_ALWAYS_INLINE int32_t *counters(int32_t *counts) {
        assert(step_ == Step::kCount);
        return counts;
    }
    KSL_ALWAYS_INLINE const int32_t *counts(const int32_t *counts) const {
        assert(step_ != Step::kList);
        return counts;
    }

    alignas(64) uint16_t wanted_[kBuckets / kLanes];
    Part parts_[kBuckets];
    int64_t part_count_ = 0, values_ = 0;
    BucketRange range_ = kNoBuckets;
    int bits_ = 5;
    Step step_ = Step::kList;
};

// `before` is the difference where the bucket starts. It holds nx and ny values. Its keys, those of x and then those of
// y, are at `begin`.
struct RowPart {
    int32_t before, nx, ny;
    int64_t begin;
};

// The tables of rows of one size, for h alone.
class RowTables : public BucketTables<RowPart, kMaxBucketBits, 1> {
  public:
    struct Marks {
        uint16_t *wanted;
        int32_t *before;  // the difference where each wanted bucket starts; the others may be left out
    };
    KSL_ALWAYS_INLINE Marks mark() { return {begin_marks(), before_[0]}; }
    KSL_ALWAYS_INLINE const int32_t *before() const { return before_[0]; }

    // The next place for a key of this bucket.
    KSL_ALWAYS_INLINE int64_t *x_places() { return x_begin_; }
    KSL_ALWAYS_INLINE int64_t *y_places() { return y_begin_; }
};

// What the engine of ks_engine.h needs for rows of n values.
class Workspace {
  public:
    explicit Workspace(int64_t n) : n_(n) {
        x_location_.hold(n);
        y_location_.hold(n);
        positions_.hold(n);
        key_buffers<uint64_t>(keys_, 2 * n);
    }

    RowTables tables;
    ZoomMemory<RowPart> zoom;

    KSL_ALWAYS_INLINE uint16_t *x_location() { return x_location_.hold(n_); }  // of each value's bucket
    KSL_ALWAYS_INLINE uint16_t *y_location() { return y_location_.hold(n_); }
    KSL_ALWAYS_INLINE int32_t *positions() { return positions_.hold(n_); }  // of the values that are looked into

    // Room for the keys of both rows, and for as many again.
    template <typename Key>
    KSL_ALWAYS_INLINE KeyBuffers<Key> keys() {
        return key_buffers<Key>(keys_, 2 * n_);
    }

  private:
    const int64_t n_;
    Scratch<uint16_t> x_location_, y_location_;
    Scratch<int32_t> positions_;
    Scratch<uint64_t> keys_;
};

// i values of x and j of y come before the bucket. It holds nx and ny values. Its keys are at `begin`.
struct SidePart {
    int32_t i, j, nx, ny;
    int64_t begin;
};

// The tables of rows of any two sizes, for both sides.
class SideTables : public BucketTables<SidePart, 16, 2> {
  public:
    static constexpr int kBits = 16, kCoarseBits = 11;  // a location has 16 bits

    struct Marks {
        uint16_t *wanted;
        int32_t *x_before, *y_before;  // how many values come before each bucket
    };
    KSL_ALWAYS_INLINE Marks mark() {
        std::memset(coarse_, 0, sizeof coarse_);
        return {begin_marks(), before_[0], before_[1]};
    }
    KSL_ALWAYS_INLINE const int32_t *x_before() const { return before_[0]; }
    KSL_ALWAYS_INLINE const int32_t *y_before() const { return before_[1]; }

    // The wanted buckets of a coarser map, of 2^kCoarseBits buckets. Used if there are more buckets than that.
    KSL_ALWAYS_INLINE void mark_coarse(int location) {
        coarse_[location / kLanes] |= static_cast<uint16_t>(1u << location % kLanes);
    }
    KSL_ALWAYS_INLINE const uint16_t *coarse() const { return coarse_; }

    KSL_ALWAYS_INLINE void list(int location, int bucket, SidePart part) {
        BucketTables::list(location, bucket, part);
        x_count_[location] = y_count_[location] = 0;
    }
    // How many keys of each listed bucket have been copied. The counts are over then, and give their memory.
    KSL_ALWAYS_INLINE int32_t *x_done() { return x_count_; }
    KSL_ALWAYS_INLINE int32_t *y_done() { return y_count_; }

  private:
    alignas(64) uint16_t coarse_[(1 << kCoarseBits) / kLanes];
};

constexpr int64_t kSideBlock = 4096;  // values that are located at a time

// What a thread needs for its part of a row. Between two calls it holds nothing.
struct SideScratch {
    SideScratch() {}  // without this, std::make_unique would write zeros
    uint16_t location[kSideBlock + kSlack];
    int32_t position[kSideBlock + kSlack];
    ZoomMemory<SidePart> zoom;
};

// A map of values to 2^bits buckets. A float is stored as a double, which holds it exactly.
struct SideMap {
    double low, scale;
    int bits;
};

// What the engine of ks_sides.h needs for a row.
class SideWorkspace {
  public:
    static constexpr int64_t kKept = int64_t{1} << 22;  // locations that are kept; of longer rows none are

    SideWorkspace() {}

    SideTables tables;
    SideScratch scratch;

    // Room for this number of keys, and for as many again.
    template <typename Key>
    KSL_ALWAYS_INLINE KeyBuffers<Key> keys(int64_t count) {
        return key_buffers<Key>(keys_, count);
    }
    // Room for the locations of this number of values.
    KSL_ALWAYS_INLINE uint16_t *locations(int64_t count) { return locations_.hold(count); }

  private:
    Scratch<uint64_t> keys_;
    Scratch<uint16_t> locations_;
};

}  // namespace ksl
