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
constexpr int kFewTiles = 32;                  // of a thread
constexpr int kMaxQueries = 16;                // queries of a key head in one pass

// Rows that are scored, and mixed, at a time, and blocks or vectors of a value beside each other: sums stay
// in registers, eight or more, so that no multiply-add waits for the one before.
constexpr int kScoreRows = kVecRegisters == 1 ? 4 : kMaxRows;
constexpr int kMixRows = kVecRegisters == 1 ? 6 : kMaxRows;
constexpr int beside(int rows) {
  return kVecRegisters == 1 ? 4 : std::max(1, 8 / (rows * kVecRegisters));
}

// Whether scores and mixtures are dot products of pairs: queries and weights are rounded to bfloat16.
template <class T>
constexpr bool kPaired = kHalfDot && std::is_same<T, BFloat16>::value;

// One layer's keys and values: head, block, then keys (head size, 16) and values (16, head size): blocks
// that follow each other are read as one stretch of memory, which the processor fetches ahead. Where
// they are paired, two neighbours of a head's size lie together in keys, two positions in values.
template <class T>
struct Cache {
  T* data;
  int blocks, kv_heads, head_dim;

  T* keys(int block, int head) const {
    return data + (size_t(head) * blocks + block) * 2 * kBlock * head_dim;
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
      to += at / 2 * 2 * head_dim + at % 2;
      for (int d = 0; d < head_dim; d += kLanes) spread(to + 2 * d, to_halves(load(value + d)));
    } else {
      for (int d = 0; d < head_dim; d++) put(to + at * head_dim + d, value[d]);
    }
  }
};

// Blocks of one chunk.
struct Part {
  const int32_t* blocks;
  int count;  // 0 or less: none
};

// Where a query's context is.
struct Query {
  const int32_t* table;  // its sequence's blocks
  int length;            // positions it sees, itself included

  Part part(int chunk) const {
    const int left = (length - chunk * kChunk + kBlock - 1) / kBlock;
    return {table + chunk * kChunkBlocks, std::min(left, kChunkBlocks)};
  }
};

// Queries first .. first + count - 1 whose first `shared` chunks are the same blocks.
struct Tile {
  int first, count, shared;
};

// Calls f with a number of rows as a constant, at most `Most`, until it had all: of like number each time.
template <int Most, class F>
static inline void by_rows(int from, int count, F&& f) {
  for (int passes = (count + Most - 1) / Most; passes > 0; passes--) {
    const int rows = (count + passes - 1) / passes;
    switch (rows) {
#define COGITATE_CASE(R)                                                \
  case R:                                                              \
    if constexpr (R <= Most) f(std::integral_constant<int, R>(), from); \
    break;
      COGITATE_CASE(1) COGITATE_CASE(2) COGITATE_CASE(3) COGITATE_CASE(4) COGITATE_CASE(5) COGITATE_CASE(6)
#undef COGITATE_CASE
    }
    from += rows;
    count -= rows;
  }
}

// The running state of up to kMaxQueries queries of one key head.
template <class T>
class Attend {
 public:
  Attend(const Cache<T>& cache, int head, int rows)
      : cache_(cache), head_(head), dim_(cache.head_dim) {
    for (int r = 0; r < rows; r++) {
      largest_[r] = -INFINITY;
      total_[r] = Vec{};
      std::fill(mixed_[r], mixed_[r] + dim_, 0.0f);
    }
  }

  // Takes the query of row r.
  void ask(int r, const float* query, float scale) {
    for (int d = 0; d < dim_; d += kLanes) store(query_[r] + d, load(query + d) * scale);
    if (kPaired<T>) to_pairs(query_[r], dim_, query_pairs_[r]);
  }

  // Fetches a part at once: the first, before which there is nothing to do.
  void fetch(Part part) const {
    for (int b = 0; b < part.count; b++) {
      fetch_block(cache_.keys(part.blocks[b], head_));
      fetch_block(cache_.values(part.blocks[b], head_));
    }
  }

  // Rows from .. from + count - 1 look at a part; row r sees its first `visible[r]` positions. What is
  // looked at next is fetched meanwhile, keys beside keys and values beside values.
  void look(Part part, int from, int count, const int* visible, Part next) {
    int most = 0;
    for (int r = from; r < from + count; r++) most = std::max(most, visible[r]);
    most = std::min(most, kChunk);
    if (most <= 0) return;
    part.count = (most + kBlock - 1) / kBlock;
    if (next.count > part.count) fetch({next.blocks + part.count, next.count - part.count});
    Part coming = next;
    by_rows<kScoreRows>(from, count, [&](auto rows, int r) {
      score<decltype(rows)::value>(part, r, coming);
      coming.count = 0;
    });
    for (int r = from; r < from + count; r++)
      if (visible[r] > 0)
        weigh(r, part.count, std::min(visible[r], kChunk));
      else
        nothing(r, part.count);
    coming = next;
    by_rows<kMixRows>(from, count, [&](auto rows, int r) {
      constexpr int R = decltype(rows)::value, V = beside(R);
      int d = 0;
      for (; d + V * kLanes <= dim_; d += V * kLanes) mix<R, V>(part, most, d, r, coming);
      for (; V > 2 && d + 2 * kLanes <= dim_; d += 2 * kLanes) mix<R, 2>(part, most, d, r, coming);
      for (; d < dim_; d += kLanes) mix<R, 1>(part, most, d, r, coming);
      coming.count = 0;
    });
  }

  void finish(int r, float* out) const {
    const float scale = 1.0f / sum(total_[r]);
    for (int d = 0; d < dim_; d += kLanes)
      store(out + d, load(mixed_[r] + d) * scale);
  }

 private:
  // Steps of a score over a head's size, and the lines of memory that one takes of a block's keys.
  static constexpr int kStep = kPaired<T> ? 2 : 1;
  static constexpr int kStepLines = kBlock * int(sizeof(T)) * kStep / 64 > 0
                                        ? kBlock * int(sizeof(T)) * kStep / 64
                                        : 1;

  void fetch_block(const T* from) const {
    const char* line = reinterpret_cast<const char*>(from);
    for (const char* end = line + kBlock * dim_ * sizeof(T); line < end; line += 64)
      __builtin_prefetch(line, 0, 3);
  }

  // Several blocks at a time, so that a query's number is broadcast once for all of them.
  template <int R>
  void score(Part part, int r, Part next) {
    int b = 0;
    const auto some = [&](auto blocks_at_once) {
      constexpr int B = decltype(blocks_at_once)::value;
      for (; b + B <= part.count; b += B)
        if (b + B <= next.count)
          score_blocks<R, B, true>(part.blocks + b, b, r, next.blocks + b);
        else
          score_blocks<R, B, false>(part.blocks + b, b, r, part.blocks + b);
    };
    some(std::integral_constant<int, beside(R)>());
    if constexpr (beside(R) > 2) some(std::integral_constant<int, 2>());
    if constexpr (beside(R) > 1) some(std::integral_constant<int, 1>());
  }

  template <int R, int B, bool Fetch>
  void score_blocks(const int32_t* blocks, int b, int r, const int32_t* next) {
    const T* keys[B];
    const char* coming[B];
    Vec s[R][B];
    for (int j = 0; j < B; j++) {
      keys[j] = cache_.keys(blocks[j], head_);
      coming[j] = reinterpret_cast<const char*>(cache_.keys(next[j], head_));
    }
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
      for (int j = 0; j < B; j++) s[i][j] = Vec{};
    const float* query = query_[r];
    const uint32_t* pairs = query_pairs_[r];
    const int steps = dim_ / kStep;
    for (int block = 0, d = 0; block < B; block++) {
      const char* line = coming[block];
      for (const int end = (block + 1) * steps / B; d < end; d++) {
#pragma GCC unroll 8
        for (int i = 0; Fetch && i < B * kStepLines; i++, line += 64) __builtin_prefetch(line, 0, 3);
        Vec k[B];
#pragma GCC unroll 4
        for (int j = 0; j < B; j++)
          k[j] = kPaired<T> ? (Vec)load_words(keys[j] + d * 2 * kBlock) : load(keys[j] + d * kBlock);
#pragma GCC unroll 6
        for (int i = 0; i < R; i++) {
          if constexpr (kPaired<T>) {
            const uint32_t q = pairs[i * (kMaxHead / 2) + d];
#pragma GCC unroll 4
            for (int j = 0; j < B; j++) s[i][j] = dot_pairs(s[i][j], (UVec)k[j], q);
          } else {
            const float q = query[i * kMaxHead + d];
#pragma GCC unroll 4
            for (int j = 0; j < B; j++) s[i][j] += q * k[j];
          }
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
  void mix(Part part, int positions, int d, int r, Part next) {
    Vec m[R][V];
    float* mixed = mixed_[r] + d;
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) m[i][j] = load(mixed + i * kMaxHead + j * kLanes);
    for (int b = 0; b < part.count; b++) {
      const int end = std::min(positions - b * kBlock, kBlock), at = kPaired<T> ? 2 * d : d;
      const T* values = cache_.values(part.blocks[b], head_) + at;
      // Where nothing is to come, what is here is asked for again.
      const T* coming = b < next.count ? cache_.values(next.blocks[b], head_) + at : values;
      if constexpr (kPaired<T>)
        mix_pairs<R, V>(values, coming, end, weight_pairs_[r] + b * kBlock / 2, m);
      else
        mix_block<R, V>(values, coming, end, score_[r] + b * kBlock, m);
    }
#pragma GCC unroll 6
    for (int i = 0; i < R; i++)
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) store(mixed + i * kMaxHead + j * kLanes, m[i][j]);
  }

  template <int R, int V>
  void mix_block(const T* values, const T* coming, int end, const float* weights,
                 Vec (&m)[R][V]) const {
    for (int p = 0; p < end; p++) {
      Vec v[V];
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) {
        v[j] = load(values + p * dim_ + j * kLanes);
        __builtin_prefetch(coming + p * dim_ + j * kLanes, 0, 3);
      }
#pragma GCC unroll 6
      for (int i = 0; i < R; i++) {
        const float w = weights[i * kChunk + p];
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) m[i][j] += w * v[j];
      }
    }
  }

  template <int R, int V>
  void mix_pairs(const T* values, const T* coming, int end, const uint32_t* weights,
                 Vec (&m)[R][V]) const {
    const auto pair = [&](int p, uint32_t there) {
      UVec v[V];
#pragma GCC unroll 4
      for (int j = 0; j < V; j++) {
        v[j] = load_words(values + p * dim_ + 2 * j * kLanes) & there;
        __builtin_prefetch(coming + p * dim_ + 2 * j * kLanes, 0, 3);
      }
#pragma GCC unroll 6
      for (int i = 0; i < R; i++) {
        const uint32_t w = weights[i * (kChunk / 2) + p / 2];
#pragma GCC unroll 4
        for (int j = 0; j < V; j++) m[i][j] = dot_pairs(m[i][j], v[j], w);
      }
    };
    int p = 0;
    for (; p + 1 < end; p += 2) pair(p, 0xffffffffu);
    // Whatever lies in the place of a position that is not there yet, it is not looked at.
    if (p < end) pair(p, 0xffffu);
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
    total_[r] = total_[r] * shrink + added;
    largest_[r] = now;
    if (shrink == 1.0f) return;
    for (int d = 0; d < dim_; d += kLanes) store(mixed_[r] + d, load(mixed_[r] + d) * shrink);
  }

  void nothing(int r, int blocks) {
    std::fill(score_[r], score_[r] + blocks * kBlock, 0.0f);
    std::fill(weight_pairs_[r], weight_pairs_[r] + blocks * kBlock / 2, 0u);
  }

  const Cache<T>& cache_;
  const int head_, dim_;
  alignas(64) float query_[kMaxQueries][kMaxHead];
  alignas(64) float mixed_[kMaxQueries][kMaxHead];
  alignas(64) float score_[kMaxQueries][kChunk];
  alignas(64) uint32_t query_pairs_[kMaxQueries][kMaxHead / 2];
  alignas(64) uint32_t weight_pairs_[kMaxQueries][kChunk / 2];
  alignas(64) Vec total_[kMaxQueries];  // summed up at the end
  float largest_[kMaxQueries];
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
  const auto one = [&](int head, const Tile& tile) {
    const int rows = tile.count * repeat;
    Attend<T> look(cache, head, rows);
    int visible[kMaxQueries];
    // The last of a sequence's queries sees the most, and of several sequences all see what is shared.
    const Query &first = queries[tile.first], &last = queries[tile.first + tile.count - 1];
    look.fetch(tile.shared ? last.part(0) : first.part(0));
    for (int r = 0; r < rows; r++) {
      const float* from =
          query + (tile.first + r / repeat) * stride + (head * repeat + r % repeat) * dim;
      look.ask(r, from, scale);
    }
    for (int chunk = 0; chunk < tile.shared; chunk++) {
      for (int r = 0; r < rows; r++)
        visible[r] = queries[tile.first + r / repeat].length - chunk * kChunk;
      const bool more = chunk + 1 < tile.shared;
      look.look(last.part(chunk), 0, rows, visible, (more ? last : first).part(chunk + 1));
    }
    for (int i = 0; i < tile.count; i++) {
      const Query& own = queries[tile.first + i];
      const Query& other = queries[tile.first + std::min(i + 1, tile.count - 1)];
      for (int chunk = tile.shared; chunk * kChunk < own.length; chunk++) {
        for (int r = i * repeat; r < (i + 1) * repeat; r++)
          visible[r] = own.length - chunk * kChunk;
        const bool more = (chunk + 1) * kChunk < own.length;
        look.look(own.part(chunk), i * repeat, repeat, visible,
                  more ? own.part(chunk + 1) : other.part(tile.shared));
      }
      for (int r = i * repeat; r < (i + 1) * repeat; r++)
        look.finish(r, out + ((tile.first + i) * heads + head * repeat + r % repeat) * size_t(dim));
    }
  };
  // Head by head, and few of them in as many tasks as there are threads: tiles that share a prefix
  // are then looked at by a thread that has it in its own cache.
  const int num_tiles = int(tiles.size()), count = num_tiles * cache.kv_heads, threads = pool.threads();
  const int tasks = std::min(count, count <= kFewTiles * threads ? threads : 8 * threads);
  pool.run(tasks, [&](int task, int) {
    for (int i = count * task / tasks; i < count * (task + 1) / tasks; i++)
      one(i / num_tiles, tiles[i % num_tiles]);
  });
}

}  // namespace cogitate
