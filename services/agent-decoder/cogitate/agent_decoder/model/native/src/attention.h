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

// The running state of up to kMaxQueries queries of one key head.
template <class T>
class Attend {
 public:
  Attend(const Cache<T>& cache, int head, int rows) : cache_(cache), head_(head), rows_(rows) {
    for (int r = 0; r < rows; r++) {
      largest_[r] = -INFINITY;
      total_[r] = 0.0f;
      std::fill(mixed_[r], mixed_[r] + cache.head_dim, 0.0f);
    }
  }

  float* query(int r) { return query_[r]; }

  // Rows from .. from + count - 1 look at a chunk; row r sees the first `visible[r]` positions.
  void look(const int32_t* table, int chunk, int from, int count, const int* visible) {
    int most = 0;
    for (int r = from; r < from + count; r++) most = std::max(most, visible[r]);
    if (most <= 0) return;
    const int blocks = (std::min(most, kChunk) + kBlock - 1) / kBlock;
    for (int b = 0; b < blocks; b++) {
      const T* keys = cache_.keys(table[chunk * kChunkBlocks + b], head_);
      for (int r = from; r < from + count;) r += score_some(keys, b, r, from + count - r);
    }
    for (int r = from; r < from + count; r++)
      if (visible[r] > 0) weigh(r, blocks, std::min(visible[r], kChunk));
      else std::fill(score_[r], score_[r] + blocks * kBlock, 0.0f);
    const int dims = cache_.head_dim / kLanes;
    for (int b = 0; b < blocks; b++) {
      const T* values = cache_.values(table[chunk * kChunkBlocks + b], head_);
      const int positions = std::min(kBlock, std::min(most, kChunk) - b * kBlock);
      for (int d = 0; d < dims; d++)
        for (int r = from; r < from + count;)
          r += mix_some(values + d * kLanes, d, b * kBlock, positions, r, from + count - r);
    }
  }

  void finish(int r, float* out) const {
    const float scale = 1.0f / total_[r];
    for (int d = 0; d < cache_.head_dim; d += kLanes) store(out + d, load(mixed_[r] + d) * scale);
  }

 private:
  template <int R>
  void score(const T* keys, int b, int r) {
    Vec s[R];
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) s[i] = Vec{};
    for (int d = 0; d < cache_.head_dim; d++) {
      const Vec k = load(keys + d * kBlock);
#pragma GCC unroll 12
      for (int i = 0; i < R; i++) s[i] += query_[r + i][d] * k;
    }
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) store(score_[r + i] + b * kBlock, s[i]);
  }

  int score_some(const T* keys, int b, int r, int left) {
    if (left >= 6) return score<6>(keys, b, r), 6;
    if (left >= 3) return score<3>(keys, b, r), 3;
    return score<1>(keys, b, r), 1;
  }

  template <int R>
  void mix(const T* values, int d, int first, int positions, int r) {
    Vec m[R];
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) m[i] = load(mixed_[r + i] + d * kLanes);
    for (int p = 0; p < positions; p++) {
      const Vec v = load(values + p * cache_.head_dim);
#pragma GCC unroll 12
      for (int i = 0; i < R; i++) m[i] += score_[r + i][first + p] * v;
    }
#pragma GCC unroll 12
    for (int i = 0; i < R; i++) store(mixed_[r + i] + d * kLanes, m[i]);
  }

  int mix_some(const T* values, int d, int first, int positions, int r, int left) {
    if (left >= 6) return mix<6>(values, d, first, positions, r), 6;
    if (left >= 3) return mix<3>(values, d, first, positions, r), 3;
    return mix<1>(values, d, first, positions, r), 1;
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
    const float shrink = lane_exp(before - now);
    total_[r] = total_[r] * shrink + sum(added);
    largest_[r] = now;
    if (shrink != 1.0f)
      for (int d = 0; d < cache_.head_dim; d += kLanes)
        store(mixed_[r] + d, load(mixed_[r] + d) * shrink);
  }

  static float lane_exp(float x) { return exp(all(x))[0]; }

  const Cache<T>& cache_;
  int head_, rows_;
  alignas(64) float query_[kMaxQueries][kMaxHead];
  alignas(64) float mixed_[kMaxQueries][kMaxHead];
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
