// Attention over a KV cache in blocks, with what sequences share read once for all of them.
//
// A query looks at its context in chunks of 64 positions, first to last, with a running maximum and
// sum (online softmax). That order is the query's own: neither the queries beside it in a tile nor
// where the shared part ends change its result.
//
// Source: shared prefix as in Hydragen (arXiv 2402.05099) and cascade inference (FlashInfer), here
// without a merge: the shared chunks simply come first in every query's one pass.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "matrix.h"
#include "pool.h"
#include "vec.h"

namespace cogitate {

constexpr int kBlock = 16;                    // positions of a block: one vector of scores
constexpr int kChunkBlocks = 4;               // blocks of a chunk
constexpr int kChunk = kBlock * kChunkBlocks;  // positions of a chunk
constexpr int kMaxHead = 256;                  // largest head size
constexpr int kMaxQueries = 16;                // queries of a key head in one pass

// One layer's keys and values: block, head, then keys (head size, 16) and values (16, head size).
template <class T>
struct Cache {
  T* data;
  int kv_heads, head_dim;

  T* keys(int block, int head) const {
    return data + (size_t(block) * kv_heads + head) * 2 * kBlock * head_dim;
  }
  T* values(int block, int head) const { return keys(block, head) + kBlock * head_dim; }
};

// Where a query's context is.
struct Query {
  const int32_t* table;  // its sequence's blocks
  int length;            // positions it sees, itself included
};

// Queries first .. first + count - 1 whose first `shared` chunks are the same blocks.
struct Tile {
  int first, count, shared;
};

// Calls f with a number of rows as a constant, at most the rows that are left; returns it.
template <class F>
static inline int some_rows(int left, F&& f) {
#define COGITATE_CASE(R) \
  if (left >= R) return f(std::integral_constant<int, R>()), R;
#if defined(__AVX512F__)
  COGITATE_CASE(6) COGITATE_CASE(4)
#endif
  COGITATE_CASE(3) COGITATE_CASE(2)
#undef COGITATE_CASE
  return f(std::integral_constant<int, 1>()), 1;
}

// The running state of up to kMaxQueries queries of one key head.
template <class T>
class Attend {
 public:
  Attend(const Cache<T>& cache, int head, int rows)
      : cache_(cache), head_(head), dim_(cache.head_dim) {
    for (int r = 0; r < rows; r++) {
      largest_[r] = -INFINITY;
      total_[r] = 0.0f;
    }
    std::fill(mixed_, mixed_ + rows * dim_, 0.0f);
  }

  float* query(int r) { return query_ + r * dim_; }

  // Rows from .. from + count - 1 look at a chunk; row r sees the first `visible[r]` positions.
  void look(const int32_t* table, int chunk, int from, int count, const int* visible) {
    int most = 0;
    for (int r = from; r < from + count; r++) most = std::max(most, visible[r]);
    most = std::min(most, kChunk);
    if (most <= 0) return;
    const int32_t* blocks = table + chunk * kChunkBlocks;
    const int num_blocks = (most + kBlock - 1) / kBlock;
    for (int r = from; r < from + count;)
      r += some_rows(from + count - r, [&](auto rows) { score<decltype(rows)::value>(blocks, num_blocks, r); });
    for (int r = from; r < from + count; r++)
      if (visible[r] > 0)
        weigh(r, num_blocks, std::min(visible[r], kChunk));
      else
        std::fill(score_[r], score_[r] + num_blocks * kBlock, 0.0f);
    for (int d = 0; d < dim_; d += 4 * kLanes)
      for (int r = from; r < from + count;)
        r += some_rows(from + count - r, [&](auto rows) {
          constexpr int R = decltype(rows)::value;
          switch (std::min(4, (dim_ - d) / kLanes)) {
            case 1: return mix<R, 1>(blocks, most, d, r);
            case 2: return mix<R, 2>(blocks, most, d, r);
            case 3: return mix<R, 3>(blocks, most, d, r);
            default: return mix<R, 4>(blocks, most, d, r);
          }
        });
  }

  void finish(int r, float* out) const {
    const float scale = 1.0f / total_[r];
    for (int d = 0; d < dim_; d += kLanes)
      store(out + d, load(mixed_ + r * dim_ + d) * scale);
  }

 private:
  // Two blocks at a time, so that a query's number is broadcast once for both.
  template <int R>
  void score(const int32_t* blocks, int count, int r) {
    int b = 0;
    for (; b + 1 < count; b += 2) score_blocks<R, 2>(blocks + b, b, r);
    if (b < count) score_blocks<R, 1>(blocks + b, b, r);
  }

  template <int R, int B>
  void score_blocks(const int32_t* blocks, int b, int r) {
    const T* keys[B];
    Vec s[R][B];
    for (int j = 0; j < B; j++) keys[j] = cache_.keys(blocks[j], head_);
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 2
      for (int j = 0; j < B; j++) s[i][j] = Vec{};
    const float* query = query_ + r * dim_;
    for (int d = 0; d < dim_; d++) {
      Vec k[B];
#pragma GCC unroll 2
      for (int j = 0; j < B; j++) k[j] = load(keys[j] + d * kBlock);
#pragma GCC unroll 6
      for (int i = 0; i < R; i++) {
        const float q = query[i * dim_ + d];
#pragma GCC unroll 2
        for (int j = 0; j < B; j++) s[i][j] += q * k[j];
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 2
      for (int j = 0; j < B; j++) store(score_[r + i] + (b + j) * kBlock, s[i][j]);
  }

  // R rows and V vectors of a value stay in registers over all positions of the chunk.
  template <int R, int V>
  void mix(const int32_t* blocks, int positions, int d, int r) {
    Vec m[R][V];
    float* mixed = mixed_ + r * dim_ + d;
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) m[i][j] = load(mixed + i * dim_ + j * kLanes);
    for (int from = 0; from < positions; from += kBlock) {
      const T* values = cache_.values(blocks[from / kBlock], head_) + d;
      const int end = std::min(positions - from, kBlock);
      for (int p = 0; p < end; p++) {
        Vec v[V];
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) v[j] = load(values + p * dim_ + j * kLanes);
#pragma GCC unroll 6
        for (int i = 0; i < R; i++) {
          const float w = score_[r + i][from + p];
#pragma GCC unroll 4
          for (int j = 0; j < V; j++) m[i][j] += w * v[j];
        }
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) store(mixed + i * dim_ + j * kLanes, m[i][j]);
  }

  // Scores become weights; what was mixed so far shrinks to the new maximum.
  void weigh(int r, int blocks, int visible) {
    float* s = score_[r];
    for (int p = visible; p < blocks * kBlock; p++) s[p] = -INFINITY;
    Vec top = load(s);
    for (int b = 1; b < blocks; b++) top = larger(load(s + b * kBlock), top);
    const float before = largest_[r], now = std::max(before, largest(top));
    Vec added = Vec{};
    for (int b = 0; b < blocks; b++) {
      const Vec w = exp(load(s + b * kBlock) - now);
      store(s + b * kBlock, w);
      added += w;
    }
    const float shrink = before == now ? 1.0f : exp(all(before - now))[0];
    total_[r] = total_[r] * shrink + sum(added);
    largest_[r] = now;
    if (shrink == 1.0f) return;
    for (int d = r * dim_; d < (r + 1) * dim_; d += kLanes)
      store(mixed_ + d, load(mixed_ + d) * shrink);
  }

  const Cache<T>& cache_;
  const int head_, dim_;
  alignas(64) float query_[kMaxQueries * kMaxHead];
  alignas(64) float mixed_[kMaxQueries * kMaxHead];
  alignas(64) float score_[kMaxQueries][kChunk];
  float largest_[kMaxQueries], total_[kMaxQueries];
};

// Groups queries into tiles. Neighbours of one sequence share all their blocks; neighbours of
// different sequences share the chunks in which their tables are equal.
static inline std::vector<Tile> tiles_of(const std::vector<Query>& queries, int per_tile) {
  std::vector<Tile> tiles;
  const int count = int(queries.size());
  for (int first = 0; first < count;) {
    const Query& head = queries[first];
    Tile tile{first, 1, 0};
    int shared = (head.length + kChunk - 1) / kChunk;
    while (tile.count < per_tile && first + tile.count < count) {
      const Query& next = queries[first + tile.count];
      int same;
      if (next.table == head.table) {
        same = (std::max(head.length, next.length) + kChunk - 1) / kChunk;
        same = std::max(same, shared);
      } else {
        const int limit = std::min({shared, head.length / kChunk, next.length / kChunk});
        same = 0;
        while (same < limit && std::equal(head.table + same * kChunkBlocks,
                                          head.table + (same + 1) * kChunkBlocks,
                                          next.table + same * kChunkBlocks))
          same++;
        if (same == 0) break;
      }
      shared = same;
      tile.count++;
    }
    tile.shared = shared;
    tiles.push_back(tile);
    first += tile.count;
  }
  return tiles;
}

// query and out: (queries, heads, head size). Scores are scaled by 1 / sqrt(head size).
template <class T>
void attend(Pool& pool, const Cache<T>& cache, int heads, const std::vector<Query>& queries,
            const std::vector<Tile>& tiles, const float* query, size_t stride, float* out) {
  const int repeat = heads / cache.kv_heads, dim = cache.head_dim;
  const float scale = 1.0f / std::sqrt(float(dim));
  pool.run(int(tiles.size()) * cache.kv_heads, [&](int task, int) {
    const Tile tile = tiles[task / cache.kv_heads];
    const int head = task % cache.kv_heads, rows = tile.count * repeat;
    Attend<T> look(cache, head, rows);
    int visible[kMaxQueries];
    for (int r = 0; r < rows; r++) {
      const float* from =
          query + (tile.first + r / repeat) * stride + (head * repeat + r % repeat) * dim;
      for (int d = 0; d < dim; d++) look.query(r)[d] = from[d] * scale;
    }
    for (int chunk = 0; chunk < tile.shared; chunk++) {
      for (int r = 0; r < rows; r++)
        visible[r] = queries[tile.first + r / repeat].length - chunk * kChunk;
      look.look(queries[tile.first].table, chunk, 0, rows, visible);
    }
    for (int i = 0; i < tile.count; i++) {
      const Query& own = queries[tile.first + i];
      for (int chunk = tile.shared; chunk * kChunk < own.length; chunk++) {
        for (int r = i * repeat; r < (i + 1) * repeat; r++)
          visible[r] = own.length - chunk * kChunk;
        look.look(own.table, chunk, i * repeat, repeat, visible);
      }
      for (int r = i * repeat; r < (i + 1) * repeat; r++)
        look.finish(r, out + ((tile.first + i) * heads + head * repeat + r % repeat) * size_t(dim));
    }
  });
}

}  // namespace cogitate
