// Weights packed for y = x W^T, and the one kernel that multiplies them.
//
// A panel is 32 output columns; its weights lie in the order in which they are used, k by k. Every
// element of y is one chain of multiply-adds over k = 0, 1, 2, ... in float (for bytes: one a group
// of 32, then over the groups), whatever the number of rows: what a row gives does not depend on what
// else is in the batch.
#pragma once

#include <sys/mman.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "pool.h"
#include "vec.h"

namespace cogitate {

constexpr int kPanel = 2 * kLanes;
constexpr int kGroup = 32;  // weights of a column that share a scale when they are bytes
constexpr size_t kHugePage = size_t(2) << 20;

#if defined(__AVX512F__)
constexpr int kMaxRows = 12;  // 24 accumulators of 32 registers
#else
constexpr int kMaxRows = 4;
#endif

enum class Store : int { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2 };

// Aligned bytes; large ones in huge pages where there are any: weights are read from end to end.
class Buffer {
 public:
  explicit Buffer(size_t bytes = 0) : data_(nullptr, &std::free) {
    if (!bytes) return;
    const size_t page = bytes < kHugePage ? 64 : kHugePage, rounded = (bytes + page - 1) / page * page;
    data_.reset(std::aligned_alloc(page, rounded));
    if (!data_) throw std::bad_alloc();
    if (page == kHugePage) madvise(data_.get(), rounded, MADV_HUGEPAGE);
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }

 private:
  std::unique_ptr<void, void (*)(void*)> data_;
};

// One k of a panel as floats: 32 columns in two vectors.
struct Pair {
  Vec low, high;
};

static inline Pair panel_at(const float* panel, int k) {
  return {load(panel + size_t(k) * kPanel), load(panel + size_t(k) * kPanel + kLanes)};
}

// Column j in the lower half of word j, column j + 16 in its upper half.
static inline Pair panel_at(const BFloat16* panel, int k) {
  UVec words;
  std::memcpy(&words, panel + size_t(k) * kPanel, sizeof words);
  return {(Vec)(words << 16), (Vec)(words & 0xffff0000u)};
}

static inline Pair panel_at(const int8_t* panel, int k) {
  return {load(panel + size_t(k) * kPanel), load(panel + size_t(k) * kPanel + kLanes)};
}

// R rows of x (stride `stride`) times the k from .. end - 1 of one panel.
template <int R, class W>
static inline void multiply(const float* x, size_t stride, const W* panel, int from, int end,
                            Pair* out) {
  Vec low[R], high[R];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) low[r] = high[r] = Vec{};
  for (int k = from; k < end; k++) {
    const Pair w = panel_at(panel, k);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      const float a = x[r * stride + k];
      low[r] += a * w.low;
      high[r] += a * w.high;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++) out[r] = {low[r], high[r]};
}

// The same for weights of either kind: floats in one chain, bytes group by group.
template <int R, class W>
static void multiply_all(const float* x, size_t stride, const W* panel, const float* scales,
                         int depth, Pair* out) {
  if (!scales) return multiply<R>(x, stride, panel, 0, depth, out);
  Pair part[R];
  for (int r = 0; r < R; r++) out[r] = {Vec{}, Vec{}};
  for (int from = 0; from < depth; from += kGroup, scales += kPanel) {
    multiply<R>(x, stride, panel, from, std::min(depth, from + kGroup), part);
    const Vec low = load(scales), high = load(scales + kLanes);
    for (int r = 0; r < R; r++) {
      out[r].low += part[r].low * low;
      out[r].high += part[r].high * high;
    }
  }
}

template <class W>
static void multiply_rows(int rows, const float* x, size_t stride, const W* panel,
                          const float* scales, int depth, Pair* out) {
  switch (rows) {
#define COGITATE_CASE(R) \
  case R:                \
    return multiply_all<R>(x, stride, panel, scales, depth, out);
    COGITATE_CASE(1) COGITATE_CASE(2) COGITATE_CASE(3) COGITATE_CASE(4)
#if defined(__AVX512F__)
    COGITATE_CASE(5) COGITATE_CASE(6) COGITATE_CASE(7) COGITATE_CASE(8)
    COGITATE_CASE(9) COGITATE_CASE(10) COGITATE_CASE(11) COGITATE_CASE(12)
#endif
#undef COGITATE_CASE
  }
}

class Matrix {
 public:
  Matrix() = default;

  // columns[i]: the row of `weights` (out, in) that column i becomes; -1 is an empty column.
  // Reading is by `at(row, k)` so that any source type packs into any store.
  template <class Source>
  Matrix(const Source* weights, const std::vector<int>& columns, int depth, Store store)
      : columns_(int(columns.size())), depth_(depth), store_(store) {
    panels_ = (columns_ + kPanel - 1) / kPanel;
    const size_t count = size_t(panels_) * depth * kPanel;
    data_ = Buffer(count * (store == Store::kFloat32 ? 4 : store == Store::kBFloat16 ? 2 : 1));
    groups_ = store == Store::kInt8 ? (depth + kGroup - 1) / kGroup : 0;
    scales_.assign(size_t(panels_) * groups_ * kPanel, 0.0f);
    for (int c = 0; c < panels_ * kPanel; c++) {
      const int row = c < columns_ ? columns[c] : -1;
      pack_column(c, row < 0 ? nullptr : weights + size_t(row) * depth);
    }
  }

  int panels() const { return panels_; }
  int columns() const { return columns_; }
  int depth() const { return depth_; }
  bool empty() const { return panels_ == 0; }

  // The weights of one column as they are used, such as a token's embedding where tied.
  void column(int c, float* out) const {
    const size_t panel = size_t(c / kPanel) * depth_ * kPanel;
    const int lane = c % kPanel;
    for (int k = 0; k < depth_; k++) {
      const size_t at = panel + size_t(k) * kPanel;
      if (store_ == Store::kFloat32) out[k] = data_.as<float>()[at + lane];
      if (store_ == Store::kBFloat16) out[k] = to_float(data_.as<BFloat16>()[at + slot(lane)]);
      if (store_ == Store::kInt8)
        out[k] = float(data_.as<int8_t>()[at + lane]) * scales_[scale_at(c, k)];
    }
  }

  // x (rows, depth) with row stride `stride`; epilogue(panel, row, Pair) gets every result once.
  template <class Epilogue>
  void apply(Pool& pool, const float* x, size_t stride, int rows, Epilogue&& epilogue) const {
    // Several panels a task where there are many, so that claiming costs nothing.
    const int group = std::max(1, panels_ / (pool.threads() * 8));
    pool.run((panels_ + group - 1) / group, [&](int task, int) {
      const int end = std::min(panels_, (task + 1) * group);
      for (int panel = task * group; panel < end; panel++)
        apply_panel(panel, x, stride, rows, epilogue);
    });
  }

 private:
  size_t scale_at(int c, int k) const {
    return (size_t(c / kPanel) * groups_ + k / kGroup) * kPanel + c % kPanel;
  }

  static int slot(int lane) { return lane < kLanes ? 2 * lane : 2 * (lane - kLanes) + 1; }

  template <class Epilogue>
  void apply_panel(int panel, const float* x, size_t stride, int rows, Epilogue& epilogue) const {
    Pair out[kMaxRows];
    // Tiles of like height: 13 rows are 7 and 6, not 12 and 1.
    const int tiles = (rows + kMaxRows - 1) / kMaxRows;
    for (int tile = 0, row = 0; tile < tiles; tile++) {
      const int height = (rows - row + (tiles - tile) - 1) / (tiles - tile);
      const size_t offset = size_t(panel) * depth_ * kPanel;
      const float* rows_of_x = x + row * stride;
      if (store_ == Store::kFloat32)
        multiply_rows(height, rows_of_x, stride, data_.as<float>() + offset, nullptr, depth_, out);
      else if (store_ == Store::kBFloat16)
        multiply_rows(height, rows_of_x, stride, data_.as<BFloat16>() + offset, nullptr, depth_,
                      out);
      else
        multiply_rows(height, rows_of_x, stride, data_.as<int8_t>() + offset,
                      &scales_[size_t(panel) * groups_ * kPanel], depth_, out);
      for (int r = 0; r < height; r++) epilogue(panel, row + r, out[r]);
      row += height;
    }
  }

  template <class Source>
  void pack_column(int c, const Source* from) {
    const size_t panel = size_t(c / kPanel) * depth_ * kPanel;
    const int lane = c % kPanel;
    for (int start = 0; store_ == Store::kInt8 && from && start < depth_; start += kGroup) {
      float most = 0.0f;
      for (int k = start; k < std::min(depth_, start + kGroup); k++)
        most = std::max(most, std::fabs(to_float(from[k])));
      scales_[scale_at(c, start)] = most / 127.0f;
    }
    for (int k = 0; k < depth_; k++) {
      const float w = from ? to_float(from[k]) : 0.0f;
      const size_t at = panel + size_t(k) * kPanel;
      if (store_ == Store::kFloat32) data_.as<float>()[at + lane] = w;
      if (store_ == Store::kBFloat16) data_.as<BFloat16>()[at + slot(lane)] = to_bfloat16(w);
      if (store_ == Store::kInt8) {
        const float scale = scales_[scale_at(c, k)];
        data_.as<int8_t>()[at + lane] = scale > 0.0f ? int8_t(std::lrintf(w / scale)) : 0;
      }
    }
  }

  int panels_ = 0, columns_ = 0, depth_ = 0, groups_ = 0;
  Store store_ = Store::kFloat32;
  Buffer data_;
  std::vector<float> scales_;
};

}  // namespace cogitate
