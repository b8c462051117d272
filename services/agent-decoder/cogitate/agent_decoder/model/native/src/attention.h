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
#include <type_traits>
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

// Whether scores and mixtures are dot products of pairs: queries and weights are rounded to bfloat16.
template <class T>
constexpr bool kPaired = kHalfDot && std::is_same<T, BFloat16>::value;

// One layer's keys and values: block, head, then keys (head size, 16) and values (16, head size). Where
// they are paired, two neighbours of a head's size lie together in keys, two positions in values.
template <class T>
struct Cache {
  T* data;
  int kv_heads, head_dim;

  T* keys(int block, int head) const {
    return data + (size_t(block) * kv_heads + head) * 2 * kBlock * head_dim;
  }
  T* values(int block, int head) const { return keys(block, head) + kBlock * head_dim; }

  // Writes what one position has for a head.
  void put_keys(int block, int head, int at, const float* key) const {
    T* to = keys(block, head);
    if constexpr (kPaired<T>) {
      uint32_t pairs[kMaxHead / 2];
      to_pairs(key, head_dim, pairs);
      for (int d = 0; d < head_dim / 2; d++) std::memcpy(to + (d * kBlock + at) * 2, pairs + d, 4);
    } else {
      for (int d = 0; d < head_dim; d++) put(to + d * kBlock + at, key[d]);
    }
  }
  // Halves of a word may be written by two threads at once, so each is written alone.
  void put_values(int block, int head, int at, const float* value) const {
    T* to = values(block, head);
    if constexpr (kPaired<T>) {
      uint32_t pairs[kMaxHead / 2];
      BFloat16 halves[kMaxHead];
      to_pairs(value, head_dim, pairs);
      std::memcpy(halves, pairs, head_dim * sizeof(BFloat16));
      for (int d = 0; d < head_dim; d++) to[(at / 2 * head_dim + d) * 2 + at % 2] = halves[d];
    } else {
      for (int d = 0; d < head_dim; d++) put(to + at * head_dim + d, value[d]);
    }
  }
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

  // Takes the query of row r.
  void ask(int r, const float* query, float scale) {
    float* own = query_ + r * dim_;
    for (int d = 0; d < dim_; d++) own[d] = query[d] * scale;
    if (kPaired<T>) to_pairs(own, dim_, query_pairs_ + r * dim_ / 2);
  }

  // Rows from .. from + count - 1 look at a chunk; row r sees the first `visible[r]` positions. Whoever
  // is the last to look at it says whether a chunk follows, which is fetched meanwhile.
  void look(const int32_t* table, int chunk, int from, int count, const int* visible, bool more) {
    int most = 0;
    for (int r = from; r < from + count; r++) most = std::max(most, visible[r]);
    most = std::min(most, kChunk);
    if (most <= 0) return;
    const int32_t* blocks = table + chunk * kChunkBlocks;
    const int num_blocks = (most + kBlock - 1) / kBlock;
    if (more) fetch(blocks + kChunkBlocks);
    for (int r = from; r < from + count;)
      r += some_rows(from + count - r, [&](auto rows) { score<decltype(rows)::value>(blocks, num_blocks, r); });
    for (int r = from; r < from + count; r++)
      if (visible[r] > 0)
        weigh(r, num_blocks, std::min(visible[r], kChunk));
      else
        nothing(r, num_blocks);
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
  // A chunk's keys and values, on their way from memory while the one before is worked on.
  void fetch(const int32_t* blocks) const {
    const size_t bytes = 2 * kBlock * dim_ * sizeof(T);
    for (int b = 0; b < kChunkBlocks; b++) {
      const char* from = reinterpret_cast<const char*>(cache_.keys(blocks[b], head_));
      for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(from + at, 0, 2);
    }
  }

  // Several blocks at a time, so that a query's number is broadcast once for all of them; more of
  // them where rows are few, since a sum has to wait for itself.
  template <int R>
  void score(const int32_t* blocks, int count, int r) {
    constexpr int B = R > 3 ? 2 : kChunkBlocks;
    int b = 0;
    for (; b + B <= count; b += B) score_blocks<R, B>(blocks + b, b, r);
    for (; b < count; b++) score_blocks<R, 1>(blocks + b, b, r);
  }

  template <int R, int B>
  void score_blocks(const int32_t* blocks, int b, int r) {
    const T* keys[B];
    Vec s[R][B];
    for (int j = 0; j < B; j++) keys[j] = cache_.keys(blocks[j], head_);
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
      for (int j = 0; j < B; j++) s[i][j] = Vec{};
    const float* query = query_ + r * dim_;
    const uint32_t* pairs = query_pairs_ + r * dim_ / 2;
    for (int d = 0; d < (kPaired<T> ? dim_ / 2 : dim_); d++) {
      Vec k[B];
#pragma GCC unroll 4
      for (int j = 0; j < B; j++)
        k[j] = kPaired<T> ? (Vec)load_words(keys[j] + d * 2 * kBlock) : load(keys[j] + d * kBlock);
#pragma GCC unroll 6
      for (int i = 0; i < R; i++) {
        if constexpr (kPaired<T>) {
          const uint32_t q = pairs[i * dim_ / 2 + d];
#pragma GCC unroll 4
          for (int j = 0; j < B; j++) s[i][j] = dot_pairs(s[i][j], (UVec)k[j], q);
        } else {
          const float q = query[i * dim_ + d];
#pragma GCC unroll 4
          for (int j = 0; j < B; j++) s[i][j] += q * k[j];
        }
      }
    }
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
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
      const T* values = cache_.values(blocks[from / kBlock], head_) + (kPaired<T> ? 2 * d : d);
      const int end = std::min(positions - from, kBlock);
      if constexpr (kPaired<T>)
        mix_pairs<R, V>(values, end, from, r, m);
      else
        mix_block<R, V>(values, end, from, r, m);
    }
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) store(mixed + i * dim_ + j * kLanes, m[i][j]);
  }

  template <int R, int V>
  void mix_block(const T* values, int end, int from, int r, Vec (&m)[R][V]) const {
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

  template <int R, int V>
  void mix_pairs(const T* values, int end, int from, int r, Vec (&m)[R][V]) const {
    for (int p = 0; p < end; p += 2) {
      // Whatever lies in the place of a position that is not there yet, it is not looked at.
      const uint32_t there = p + 1 < end ? 0xffffffffu : 0xffffu;
      UVec v[V];
#pragma GCC unroll 4
      for (int j = 0; j < V; j++)
        v[j] = load_words(values + p * dim_ + 2 * j * kLanes) & there;
#pragma GCC unroll 6
      for (int i = 0; i < R; i++) {
        const uint32_t w = weight_pairs_[r + i][(from + p) / 2];
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) m[i][j] = dot_pairs(m[i][j], v[j], w);
      }
    }
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
    if (kPaired<T>) to_pairs(s, blocks * kBlock, weight_pairs_[r]);
    total_[r] = total_[r] * shrink + sum(added);
    largest_[r] = now;
    if (shrink == 1.0f) return;
    for (int d = r * dim_; d < (r + 1) * dim_; d += kLanes)
      store(mixed_ + d, load(mixed_ + d) * shrink);
  }

  void nothing(int r, int blocks) {
    std::fill(score_[r], score_[r] + blocks * kBlock, 0.0f);
    std::fill(weight_pairs_[r], weight_pairs_[r] + blocks * kBlock / 2, 0u);
  }

  const Cache<T>& cache_;
  const int head_, dim_;
  alignas(64) float query_[kMaxQueries * kMaxHead];
  alignas(64) float mixed_[kMaxQueries * kMaxHead];
  alignas(64) float score_[kMaxQueries][kChunk];
  alignas(64) uint32_t query_pairs_[kMaxQueries * kMaxHead / 2];
  alignas(64) uint32_t weight_pairs_[kMaxQueries][kChunk / 2];
  float largest_[kMaxQueries], total_[kMaxQueries];
};

// Groups queries into tiles. Neighbours of one sequence share all their blocks; neighbours of
// different sequences share the chunks in which their tables are equal.
static inline std::vector<Tile> tiles_of(const std::vector<Query>& queries, int most) {
  std::vector<Tile> tiles;
  const int count = int(queries.size());
  if (!count) return tiles;
  // Of like height: eight are four and four, not five and three.
  const int num_tiles = (count + most - 1) / most, per_tile = (count + num_tiles - 1) / num_tiles;
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
      look.ask(r, from, scale);
    }
    for (int chunk = 0; chunk < tile.shared; chunk++) {
      for (int r = 0; r < rows; r++)
        visible[r] = queries[tile.first + r / repeat].length - chunk * kChunk;
      look.look(queries[tile.first].table, chunk, 0, rows, visible, chunk + 1 < tile.shared);
    }
    for (int i = 0; i < tile.count; i++) {
      const Query& own = queries[tile.first + i];
      for (int chunk = tile.shared; chunk * kChunk < own.length; chunk++) {
        for (int r = i * repeat; r < (i + 1) * repeat; r++)
          visible[r] = own.length - chunk * kChunk;
        look.look(own.table, chunk, i * repeat, repeat, visible, false);
      }
      for (int r = i * repeat; r < (i + 1) * repeat; r++)
        look.finish(r, out + ((tile.first + i) * heads + head * repeat + r % repeat) * size_t(dim));
    }
  });
}

}  // namespace cogitate
