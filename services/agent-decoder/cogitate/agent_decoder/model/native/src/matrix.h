// Weights packed for y = x W^T, and the kernels that multiply them.
//
// A panel is 32 output columns; its weights lie in the order in which they are used. Every element of
// y is one chain of multiply-adds over k in a fixed order, whatever the number of rows: what a row
// gives does not depend on what else is in the batch. Weights that are bytes are summed up a group of
// 32 at a time, then over the groups.
//
// Where the machine has dot products of bfloat16 pairs, of byte quads or of pairs of 16 bits (vec.h), rows
// are rounded to them first: to bfloat16, or to whole numbers of 16 bits with a scale for each group of 32
// of a row, an upper and a lower byte for quads. (One byte of a row is too little: SmolLM2's likeliest token
// then changes at 5 % of positions, with two at 2.)
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "pool.h"
#include "vec.h"

namespace cogitate {

constexpr int kPanel = 2 * kLanes;
constexpr int kGroup = 32;  // weights of a column that share a scale when they are bytes
constexpr float kMostWhole = 127.0f * 256.0f;  // what the largest of a row's group is rounded to
constexpr size_t kHugePage = size_t(2) << 20;
constexpr size_t kAhead = 8192;  // bytes of weights asked for before they are needed

// Rows that are multiplied at a time, so that their sums stay in registers: 24 of 32 hold sums, or 12 of
// 16. Where registers are few, more than kWholeRows take one half of a panel after the other.
constexpr int kVecRegisters = kLanes / kNative;
constexpr int kMaxRows = 12 / kVecRegisters;
constexpr int kWholeRows = kVecRegisters == 1 ? kMaxRows : 4 / kVecRegisters;

// How weights are kept. kExact: in bfloat16, but multiplied as floats where kBFloat16 may not be.
enum class Store : int { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2, kExact = 3 };

// Memory for weights, in huge pages where there are any: all of it is read from end to end for every
// step, and small pages cost up to a sixth of that. Pieces live as long as the arena.
class Arena {
 public:
  void* take(size_t bytes) {
    bytes = (bytes + 63) / 64 * 64;
    if (bytes > left_) {
      left_ = (std::max(bytes, kChunkBytes) + kHugePage - 1) / kHugePage * kHugePage;
      chunks_.emplace_back(std::aligned_alloc(kHugePage, left_), &std::free);
      if (!chunks_.back()) throw std::bad_alloc();
      next_ = static_cast<char*>(chunks_.back().get());
      madvise(next_, left_, MADV_HUGEPAGE);
    }
    void* piece = next_;
    next_ += bytes;
    left_ -= bytes;
    return piece;
  }

 private:
  static constexpr size_t kChunkBytes = size_t(64) << 20;  // what is not written takes no memory
  std::vector<std::unique_ptr<void, void (*)(void*)>> chunks_;
  char* next_ = nullptr;
  size_t left_ = 0;
};

// One k of a panel as floats: 32 columns in two vectors.
struct Pair {
  Vec low, high;

  Vec& half(int i) { return i ? high : low; }
};

// The rows of a product, as floats and as what the weights' dot products take.
struct Rows {
  const float* floats;
  size_t stride;
  std::vector<uint32_t> words;  // (rows, depth / 2): pairs, or quads of upper, then of lower bytes
  size_t words_stride = 0;
  std::vector<float> scales;  // (rows, groups) of whole numbers
  std::vector<int32_t> sums;  // (rows, groups) of quads, times the 128 that is added to weights
  size_t groups = 0;
};

// Rounds `depth` floats to bfloat16, in order: two are a pair.
static inline void to_pairs(const float* x, int depth, uint32_t* out) {
  for (int k = 0; k < depth; k += kLanes) {
    const HVec narrow = to_halves(load(x + k));
    std::memcpy(reinterpret_cast<uint16_t*>(out) + k, &narrow, sizeof narrow);
  }
}

// Rounds `depth` floats to 16 bits with a scale for each group, as pairs, or as quads of upper and of lower
// bytes; what is not finite makes its scale NaN.
static inline void to_whole(const float* x, int depth, uint32_t* out, float* scales, int32_t* sums) {
  for (int from = 0, g = 0; from < depth; from += kGroup, g++) {
    const int end = std::min(depth, from + kGroup);
    Vec most = Vec{}, spoilt = Vec{};
    for (int k = from; k < end; k += kLanes) {
      const Vec v = load(x + k);
      most = larger(most, larger(v, Vec{} - v));
      spoilt += v * 0.0f;
    }
    const float largest_one = largest(most), scale = largest_one / kMostWhole;
    const float factor = scale > 0.0f ? kMostWhole / largest_one : 0.0f;
    const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    IVec total = IVec{};
    for (int k = from; k < end; k += kLanes) {
      const IVec whole = (IVec)(load(x + k) * factor + magic) - (IVec)magic;
      if (kShortDot) {
        Lanes<HVec>::store(reinterpret_cast<uint16_t*>(out) + k, Lanes<HVec>::of(whole));
        continue;
      }
      total += whole;
      const IVec lower = whole << 24 >> 24;
      const BVec low = Lanes<BVec>::of(lower), high = Lanes<BVec>::of((whole - lower) >> 8);
      std::memcpy(reinterpret_cast<int8_t*>(out) + k, &high, sizeof high);
      std::memcpy(reinterpret_cast<int8_t*>(out) + depth + k, &low, sizeof low);
    }
    int32_t sum_of_all = 0;
    for (int i = 0; i < kLanes; i++) sum_of_all += total[i];
    sums[g] = 128 * sum_of_all;
    scales[g] = sum(spoilt) == 0.0f ? scale : NAN;
  }
}

// Weights that come up, asked for while others are multiplied: processors that have dot products are
// faster than their own prefetching. Every tile of rows asks for its part of a panel, so that memory is
// never idle; what lies beyond the end does no harm.
class Ahead {
 public:
  Ahead(const void* panel, size_t bytes, int tile, int tiles, int steps)
      : next_(static_cast<const char*>(panel)), step_(0) {
    tiles = std::min(tiles, 4);  // where there are more, products take so long that these are enough
    if (tile >= tiles) return;
    next_ += bytes * (tile + tiles - 1) / tiles + kAhead;
    step_ = bytes / (size_t(tiles) * steps);
  }

  void fetch(int step) const {
    __builtin_prefetch(next_ + step * step_, 0, 3);
    __builtin_prefetch(next_ + step * step_ + 64, 0, 3);
  }

 private:
  const char* next_;
  size_t step_;
};

// Calls f with every row and vector, as constants once it is compiled.
template <int R, int V, class F>
static inline void each(F&& f) {
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) f(r, v);
}

// Where registers are few, several rows read a panel in strides, which processors do not foresee: the
// second cache is asked for what comes up.
template <int R, int H>
static inline void ask_ahead(const void* weights, int lines) {
  if (kVecRegisters == 1 || R == 1 || H != 0) return;
  for (int i = 0; i < lines; i++)
    __builtin_prefetch(static_cast<const char*>(weights) + 2 * kAhead + 64 * i, 0, 2);
}

// R rows from `row` times V halves of a panel from half H on, k from .. end - 1: weights that are floats
// or bytes.
template <int R, int H, int V, class W>
static inline void multiply(const Rows& x, int row, const W* panel, int from, int end, Pair* out) {
  const float* floats = x.floats + row * x.stride;
  Vec y[R][V];
  each<R, V>([&](int r, int v) { y[r][v] = Vec{}; });
  for (int k = from; k < end; k++) {
    Vec w[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) w[v] = load(panel + size_t(k) * kPanel + (H + v) * kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      const float a = floats[r * x.stride + k];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) y[r][v] += a * w[v];
    }
  }
  each<R, V>([&](int r, int v) { out[r].half(H + v) = y[r][v]; });
}

// The same for bfloat16: a word holds two k of a column, the first in its lower half. All rows take the
// first of each word, then all the second, so that few registers hold weights.
template <int R, int H, int V>
static inline void multiply_words(const Rows& x, int row, const BFloat16* panel, int depth, Pair* out) {
  const float* floats = x.floats + row * x.stride;
  Vec y[R][V];
  each<R, V>([&](int r, int v) { y[r][v] = Vec{}; });
  for (int k = 0; k < depth; k += 2) {
    UVec w[V];
    ask_ahead<R, H>(panel + size_t(k) * kPanel, 2);
#pragma GCC unroll 2
    for (int v = 0; v < V; v++)
      w[v] = load_words(panel + size_t(k) * kPanel + (H + v) * 2 * kLanes);
#pragma GCC unroll 2
    for (int second = 0; second < 2; second++)
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) {
        const float a = floats[r * x.stride + k + second];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++)
          y[r][v] += a * (Vec)(second ? w[v] & 0xffff0000u : w[v] << 16);
      }
  }
  each<R, V>([&](int r, int v) { out[r].half(H + v) = y[r][v]; });
}

// The same by dot products of pairs.
template <int R>
static inline void multiply_pairs(const Rows& x, int row, const BFloat16* panel, int depth,
                                  const Ahead& ahead, Pair* out) {
  const uint32_t* words = x.words.data() + row * x.words_stride;
  Vec low[R], high[R];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) low[r] = high[r] = Vec{};
  for (int k = 0; k < depth; k += 2) {
    const UVec w0 = load_words(panel + size_t(k) * kPanel);
    const UVec w1 = load_words(panel + size_t(k) * kPanel + 2 * kLanes);
    ahead.fetch(k / 2);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      const uint32_t a = words[r * x.words_stride + k / 2];
      low[r] = dot_pairs(low[r], w0, a);
      high[r] = dot_pairs(high[r], w1, a);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) out[r] = {low[r], high[r]};
}

// Calls f with the first half and the number of halves to multiply R rows with, as constants.
template <int R, class F>
static inline void by_halves(F&& f) {
  using std::integral_constant;
  if constexpr (R <= kWholeRows) {
    f(integral_constant<int, 0>(), integral_constant<int, 2>());
  } else {
    f(integral_constant<int, 0>(), integral_constant<int, 1>());
    f(integral_constant<int, 1>(), integral_constant<int, 1>());
  }
}

// Exact sums of the products of one group of bytes: a word holds two k of a row, two bytes of a column.
template <int R, int H, int V>
static inline void multiply_shorts(const Rows& x, int row, const int8_t* panel, int from, int end,
                                   IVec (*out)[2]) {
  const uint32_t* words = x.words.data() + row * x.words_stride;
  IVec y[R][V];
  each<R, V>([&](int r, int v) { y[r][v] = IVec{}; });
  for (int k = from; k < end; k += 2) {
    ask_ahead<R, H>(panel + size_t(k) * kPanel, 1);
#pragma GCC unroll 2
    for (int v = 0; v < V; v++)
#pragma GCC unroll 12
      for (int r = 0; r < R; r++)
        y[r][v] = dot_bytes(y[r][v], panel + size_t(k) * kPanel + (H + v) * 2 * kLanes,
                            words[r * x.words_stride + k / 2]);
  }
  each<R, V>([&](int r, int v) { out[r][H + v] = y[r][v]; });
}

// The same by quads: a word holds four k of a column, each 128 more than it is.
template <int R>
static inline void multiply_quads(const Rows& x, int row, const int8_t* panel, int depth, int from, int end,
                                  const Ahead& ahead, IVec (*out)[2]) {
  IVec low[R], high[R];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) low[r] = high[r] = IVec{};
  for (int byte = 0; byte < 2; byte++) {
    const uint32_t* words = x.words.data() + row * x.words_stride + byte * depth / 4;
    for (int k = from; k < end; k += 4) {
      const UVec w0 = load_words(panel + size_t(k) * kPanel);
      const UVec w1 = load_words(panel + size_t(k) * kPanel + 4 * kLanes);
      if (!byte) ahead.fetch(k / 4);
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) {
        const uint32_t a = words[r * x.words_stride + k / 4];
        low[r] = dot_quads(low[r], w0, a);
        high[r] = dot_quads(high[r], w1, a);
      }
    }
    if (byte) break;
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      const int32_t sum = x.sums[(row + r) * x.groups + from / kGroup];
      low[r] = (low[r] << 8) - sum;
      high[r] = (high[r] << 8) - sum;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) out[r][0] = low[r], out[r][1] = high[r];
}

// R rows times one panel of bytes, group by group.
template <int R>
static inline void multiply_bytes(const Rows& x, int row, const int8_t* panel, const float* scales,
                                  int depth, const Ahead& ahead, Pair* out) {
  for (int r = 0; r < R; r++) out[r] = {Vec{}, Vec{}};
  for (int from = 0, g = 0; from < depth; from += kGroup, g++, scales += kPanel) {
    const int end = std::min(depth, from + kGroup);
    const Vec scale0 = load(scales), scale1 = load(scales + kLanes);
    if constexpr (kByteDot || kShortDot) {
      IVec whole[R][2];
      if constexpr (kByteDot)
        multiply_quads<R>(x, row, panel, depth, from, end, ahead, whole);
      else
        by_halves<R>([&](auto first, auto count) {
          multiply_shorts<R, first, count>(x, row, panel, from, end, whole);
        });
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) {
        const float own = x.scales[(row + r) * x.groups + g];
        out[r].low += Lanes<Vec>::of(whole[r][0]) * (scale0 * own);
        out[r].high += Lanes<Vec>::of(whole[r][1]) * (scale1 * own);
      }
    } else {
      Pair part[R];
      by_halves<R>([&](auto first, auto count) {
        multiply<R, first, count>(x, row, panel, from, end, part);
      });
      for (int r = 0; r < R; r++) {
        out[r].low += part[r].low * scale0;
        out[r].high += part[r].high * scale1;
      }
    }
  }
}

// Calls f with the number of rows as a constant.
template <class F>
static void with_rows(int rows, F&& f) {
  switch (rows) {
#define COGITATE_CASE(R) \
  case R:                \
    return f(std::integral_constant<int, R>());
    COGITATE_CASE(1) COGITATE_CASE(2) COGITATE_CASE(3)
#if defined(__AVX2__)
    COGITATE_CASE(4) COGITATE_CASE(5) COGITATE_CASE(6)
#endif
#if defined(__AVX512F__)
    COGITATE_CASE(7) COGITATE_CASE(8) COGITATE_CASE(9)
    COGITATE_CASE(10) COGITATE_CASE(11) COGITATE_CASE(12)
#endif
#undef COGITATE_CASE
  }
}

class Matrix {
 public:
  Matrix() = default;

  // columns[i]: the row of `weights` (out, in) that column i becomes; -1 is an empty column. The depth
  // is a multiple of 16.
  template <class Source>
  Matrix(Pool& pool, Arena& arena, const Source* weights, const std::vector<int>& columns, int depth, Store store)
      : columns_(int(columns.size())), depth_(depth), store_(store) {
    panels_ = (columns_ + kPanel - 1) / kPanel;
    const size_t count = size_t(panels_) * depth * kPanel;
    data_ = arena.take(count * (store == Store::kFloat32 ? 4 : store == Store::kInt8 ? 1 : 2));
    groups_ = store == Store::kInt8 ? (depth + kGroup - 1) / kGroup : 0;
    scales_.assign(size_t(panels_) * groups_ * kPanel, 0.0f);
    pool.run(panels_, [&](int panel, int) {
      std::vector<float> column(depth);
      for (int c = panel * kPanel; c < (panel + 1) * kPanel; c++) {
        const int row = c < columns_ ? columns[c] : -1;
        for (int k = 0; k < depth; k++)
          column[k] = row < 0 ? 0.0f : to_float(weights[size_t(row) * depth + k]);
        pack_column(c, column.data());
      }
    });
  }

  int panels() const { return panels_; }
  int columns() const { return columns_; }
  int depth() const { return depth_; }
  bool empty() const { return panels_ == 0; }

  // The weights of one column as they are used, such as a token's embedding where tied.
  void column(int c, float* out) const {
    for (int k = 0; k < depth_; k++) {
      const size_t at = place(c, k);
      if (store_ == Store::kFloat32)
        out[k] = as<float>()[at];
      else if (store_ != Store::kInt8)
        out[k] = to_float(as<BFloat16>()[at]);
      else
        out[k] = float(kByteDot ? as<uint8_t>()[at] - 128 : as<int8_t>()[at]) *
                 scales_[scale_at(c, k)];
    }
  }

  // x (rows, depth) with row stride `stride`; epilogue(panel, row, Pair) gets every result once.
  // `scratch` is where rows are rounded to.
  template <class Epilogue>
  void apply(Pool& pool, Rows& scratch, const float* x, size_t stride, int rows,
             Epilogue&& epilogue) const {
    prepare(pool, scratch, x, stride, rows);
    // Several panels a task where there are many, so that claiming costs nothing. Where weights are asked
    // for ahead and rows are few, long runs of them, so that who asked has the use of it.
    const bool runs = (kHalfDot || kByteDot || kVecRegisters > 1) && rows <= 2 * kMaxRows;
    const int group = std::max(1, panels_ / (pool.threads() * (runs ? 2 : 8)));
    pool.run((panels_ + group - 1) / group, [&](int task, int) {
      const int end = std::min(panels_, (task + 1) * group);
      for (int panel = task * group; panel < end; panel++)
        apply_panel(panel, scratch, rows, epilogue);
    });
  }

 private:
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

  // Where the weight of column c and depth k lies.
  size_t place(int c, int k) const {
    const int half = c % kPanel / kLanes, lane = c % kLanes;
    const int together = store_ == Store::kFloat32 ? 1 : store_ != Store::kInt8 ? 2 : kByteDot ? 4 : kShortDot ? 2 : 1;
    return size_t(c / kPanel) * depth_ * kPanel + size_t(k / together) * together * kPanel +
           size_t(half * kLanes + lane) * together + k % together;
  }

  size_t scale_at(int c, int k) const {
    return (size_t(c / kPanel) * groups_ + k / kGroup) * kPanel + c % kPanel;
  }

  void prepare(Pool& pool, Rows& made, const float* x, size_t stride, int rows) const {
    made.floats = x;
    made.stride = stride;
    const bool pairs = kHalfDot && store_ == Store::kBFloat16;
    const bool whole = (kByteDot || kShortDot) && store_ == Store::kInt8;
    if (!pairs && !whole) return;
    made.words_stride = depth_ / 2;
    made.groups = groups_;
    made.words.resize(rows * made.words_stride);
    made.scales.resize(size_t(rows) * groups_);
    made.sums.resize(size_t(rows) * groups_);
    const int group = rows < kMaxRows ? rows : kMaxRows;
    pool.run((rows + group - 1) / group, [&](int task, int) {
      for (int r = task * group; r < std::min(rows, (task + 1) * group); r++) {
        uint32_t* words = made.words.data() + r * made.words_stride;
        if (pairs)
          to_pairs(x + r * stride, depth_, words);
        else
          to_whole(x + r * stride, depth_, words, &made.scales[size_t(r) * groups_],
                   &made.sums[size_t(r) * groups_]);
      }
    });
  }

  template <class Epilogue>
  void apply_panel(int panel, const Rows& x, int rows, Epilogue& epilogue) const {
    Pair out[kMaxRows];
    const size_t offset = size_t(panel) * depth_ * kPanel;
    const float* scales = scales_.data() + size_t(panel) * groups_ * kPanel;
    // Tiles of like height: 13 rows are 7 and 6, not 12 and 1.
    const int tiles = (rows + kMaxRows - 1) / kMaxRows;
    const size_t bytes = size_t(depth_) * kPanel * (store_ == Store::kInt8 ? 1 : 2);
    for (int tile = 0, row = 0; tile < tiles; tile++) {
      const Ahead ahead(as<char>() + panel * bytes, bytes, tile, tiles, int(bytes / 128));
      const int height = (rows - row + (tiles - tile) - 1) / (tiles - tile);
      with_rows(height, [&](auto count) {
        constexpr int R = decltype(count)::value;
        if (store_ == Store::kInt8)
          return multiply_bytes<R>(x, row, as<int8_t>() + offset, scales, depth_, ahead, out);
        if (store_ == Store::kBFloat16 && kHalfDot)
          return multiply_pairs<R>(x, row, as<BFloat16>() + offset, depth_, ahead, out);
        by_halves<R>([&](auto first, auto halves) {
          if (store_ == Store::kFloat32)
            multiply<R, first, halves>(x, row, as<float>() + offset, 0, depth_, out);
          else
            multiply_words<R, first, halves>(x, row, as<BFloat16>() + offset, depth_, out);
        });
      });
      for (int r = 0; r < height; r++) epilogue(panel, row + r, out[r]);
      row += height;
    }
  }

  void pack_column(int c, const float* from) {
    for (int start = 0; store_ == Store::kInt8 && start < depth_; start += kGroup)
      scales_[scale_at(c, start)] = best_scale(from + start, std::min(kGroup, depth_ - start));
    for (int k = 0; k < depth_; k++) {
      const size_t at = place(c, k);
      if (store_ == Store::kFloat32) {
        as<float>()[at] = from[k];
      } else if (store_ != Store::kInt8) {
        as<BFloat16>()[at] = to_bfloat16(from[k]);
      } else {
        const float scale = scales_[scale_at(c, k)];
        const int whole = scale > 0.0f ? to_byte(from[k] / scale) : 0;
        as<int8_t>()[at] = int8_t(kByteDot ? whole + 128 : whole);
      }
    }
  }

  static int to_byte(float x) { return int(std::lrintf(std::min(127.0f, std::max(-127.0f, x)))); }

  // The scale with the least squared error among some at which the largest weight is a whole number.
  // It pays where weights have few values, as those have that were smaller before.
  static float best_scale(const float* w, int count) {
    float most = 0.0f, best = 0.0f, least = INFINITY;
    for (int k = 0; k < count; k++) most = std::max(most, std::fabs(w[k]));
    for (int steps = 127; steps > 96 && most > 0.0f; steps--) {
      const float scale = most / float(steps), factor = float(steps) / most;
      float error = 0.0f;
      for (int k = 0; k < count; k++) {
        const float off = w[k] - scale * (w[k] * factor + 12582912.0f - 12582912.0f);
        error += off * off;
      }
      if (error < least) least = error, best = scale;
    }
    return best;
  }

  int panels_ = 0, columns_ = 0, depth_ = 0, groups_ = 0;
  Store store_ = Store::kFloat32;
  void* data_ = nullptr;
  std::vector<float> scales_;
};

}  // namespace cogitate
