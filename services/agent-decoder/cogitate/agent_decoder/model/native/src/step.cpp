// One engine step of a Llama-family model on the CPU: positions in, their KV written, logits out.
//
// Plain C functions over plain arrays, called by ctypes, so that building needs a C++ compiler and
// nothing else. The shapes: T rows (new positions of all sequences), S sequences, R rows of logits.

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "attention.h"
#include "matrix.h"
#include "pool.h"
#include "sample.h"
#include "vec.h"

using namespace cogitate;

namespace {

// Rows from which small work between products is worth sharing out.
constexpr int kShareRows = 24;

struct Layer {
  Matrix qkv, out, gate_up, down;
  std::vector<float> qkv_bias, input_norm, post_norm, query_norm, key_norm;
};

}  // namespace

extern "C" {

struct CogitateConfig {
  int32_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, max_positions;
  int32_t store;          // of weights: see Store in matrix.h
  int32_t head_store;     // of the output head and the embedding table
  int32_t half_cache;     // 1: keys and values in bfloat16
  int32_t threads;
  float eps;
};

struct CogitateStep {
  int32_t rows, sequences, logit_rows, embedding_count;
  const int32_t* token_ids;       // (T)
  const int32_t* positions;       // (T)
  const int32_t* starts;          // (S) first row of a sequence
  const int32_t* lengths;         // (S) its new rows
  const int32_t* table_offsets;   // (S) where its block table begins in `tables`
  const int32_t* tables;
  const int32_t* embedding_rows;  // (E) rows that are images, not tokens
  const float* embeddings;        // (E, hidden)
  const int32_t* wanted;          // (R) rows whose logits are wanted, ascending
  float* logits;                  // (R, vocab)
};
}

namespace {

class Model {
 public:
  explicit Model(const CogitateConfig& config)
      : c(config), pool(std::max(1, config.threads)), layers(config.layers) {}

  ~Model() {
    if (cache_) munmap(cache_, cache_bytes(blocks_));
  }

  const CogitateConfig c;
  Pool pool;
  Arena arena;
  std::vector<Layer> layers;
  Matrix embed, head;  // head is empty where the embedding table is used for both
  std::vector<float> norm, cosines, sines;  // (max_positions, head_dim / 2)

  int qkv_size() const { return (c.heads + 2 * c.kv_heads) * c.head_dim; }

  // Maps a cache of zeros; pages that are never touched cost no memory.
  bool allocate(int blocks) {
    void* mapped = mmap(nullptr, cache_bytes(blocks), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) return false;
    if (cache_) munmap(cache_, cache_bytes(blocks_));
    cache_ = static_cast<char*>(mapped);
    blocks_ = blocks;
    return true;
  }

  // pairs: (from, to), copied in order in every layer.
  void copy_blocks(const int32_t* pairs, int count) {
    const size_t block = cache_bytes(1) / (c.layers * c.kv_heads);
    for (int part = 0; part < c.layers * c.kv_heads; part++)
      for (int i = 0; i < count; i++) {
        char* head = cache_ + part * block * blocks_;
        std::memcpy(head + pairs[2 * i + 1] * block, head + pairs[2 * i] * block, block);
      }
  }

  void step(const CogitateStep& s) { c.half_cache ? run<BFloat16>(s) : run<float>(s); }

 private:
  std::vector<float> hidden_, normed_, qkv_, mixed_, inner_;
  Rows scratch_;
  char* cache_ = nullptr;
  int blocks_ = 0;

  size_t layer_elements(int blocks) const {
    return size_t(blocks) * c.kv_heads * 2 * kBlock * c.head_dim;
  }
  size_t cache_bytes(int blocks) const {
    return layer_elements(blocks) * c.layers * (c.half_cache ? 2 : 4);
  }

  template <class T>
  void run(const CogitateStep& s) {
    const int width = qkv_size(), attended = c.heads * c.head_dim;
    int rows = s.rows;
    hidden_.resize(size_t(rows) * c.hidden);
    normed_.resize(size_t(rows) * c.hidden);
    qkv_.resize(size_t(rows) * width);
    mixed_.resize(size_t(rows) * std::max(attended, c.hidden));
    inner_.resize(size_t(rows) * c.intermediate);
    embed_rows(s);
    std::vector<Query> queries(rows);
    std::vector<const int32_t*> tables(rows);
    for (int i = 0; i < s.sequences; i++)
      for (int r = s.starts[i]; r < s.starts[i] + s.lengths[i]; r++)
        queries[r] = {s.tables + s.table_offsets[i], s.positions[r] + 1};
    auto tiles = tiles_of(queries, kMaxQueries / (c.heads / c.kv_heads));
    for (int l = 0; l < c.layers; l++) {
      const Layer& layer = layers[l];
      const Cache<T> kv{reinterpret_cast<T*>(cache_) + l * layer_elements(blocks_), blocks_,
                        c.kv_heads, c.head_dim};
      normalize(hidden_.data(), layer.input_norm, rows, normed_.data());
      const float* bias = layer.qkv_bias.empty() ? nullptr : layer.qkv_bias.data();
      layer.qkv.apply(pool, scratch_, normed_.data(), c.hidden, rows, [&](int panel, int r, Pair y) {
        if (bias) {
          y.low += load(bias + panel * kPanel);
          y.high += load(bias + panel * kPanel + kLanes);
        }
        put_panel(qkv_.data() + size_t(r) * width, panel, width, y);
      });
      each_row(rows, [&](int r) { place(layer, s.positions[r], queries[r].table, kv, r); });
      if (l == c.layers - 1 && s.logit_rows < rows) {
        // Nobody reads what the last layer makes of the other rows.
        rows = s.logit_rows;
        for (int i = 0; i < rows; i++) {
          const int r = s.wanted[i];  // i at least: they are in order
          queries[i] = queries[r];
          std::copy_n(&qkv_[size_t(r) * width], attended, &qkv_[size_t(i) * width]);
          std::copy_n(&hidden_[size_t(r) * c.hidden], c.hidden, &hidden_[size_t(i) * c.hidden]);
        }
        queries.resize(rows);
        tiles = tiles_of(queries, kMaxQueries / (c.heads / c.kv_heads));
      }
      attend(pool, kv, c.heads, queries, tiles, qkv_.data(), width, mixed_.data());
      layer.out.apply(pool, scratch_, mixed_.data(), attended, rows, [&](int panel, int r, Pair y) {
        add_panel(hidden_.data() + size_t(r) * c.hidden, panel, c.hidden, y);
      });
      normalize(hidden_.data(), layer.post_norm, rows, normed_.data());
      layer.gate_up.apply(pool, scratch_, normed_.data(), c.hidden, rows, [&](int panel, int r, Pair y) {
        // Sixteen gates and the sixteen values they are for: SiLU(gate) * up.
        const Vec gated = y.low / (1.0f + exp(all(0.0f) - y.low)) * y.high;
        store(inner_.data() + size_t(r) * c.intermediate + panel * kLanes, gated);
      });
      layer.down.apply(pool, scratch_, inner_.data(), c.intermediate, rows, [&](int panel, int r, Pair y) {
        add_panel(hidden_.data() + size_t(r) * c.hidden, panel, c.hidden, y);
      });
    }
    logits(s);
  }

  void embed_rows(const CogitateStep& s) {
    each_row(s.rows, [&](int r) {
      embed.column(s.token_ids[r], hidden_.data() + size_t(r) * c.hidden);
    });
    for (int i = 0; i < s.embedding_count; i++)
      std::copy_n(s.embeddings + size_t(i) * c.hidden, c.hidden,
                  hidden_.data() + size_t(s.embedding_rows[i]) * c.hidden);
  }

  void logits(const CogitateStep& s) {
    normalize(hidden_.data(), norm, s.logit_rows, normed_.data());
    const Matrix& out = head.empty() ? embed : head;
    out.apply(pool, scratch_, normed_.data(), c.hidden, s.logit_rows, [&](int panel, int r, Pair y) {
      put_panel(s.logits + size_t(r) * c.vocab, panel, c.vocab, y);
    });
  }

  template <class F>
  void each_row(int rows, F&& act) {
    if (rows < kShareRows) {
      for (int r = 0; r < rows; r++) act(r);
      return;
    }
    const int group = std::max(1, rows / (pool.threads() * 4));
    pool.run((rows + group - 1) / group, [&](int task, int) {
      for (int r = task * group; r < std::min(rows, (task + 1) * group); r++) act(r);
    });
  }

  void normalize(const float* x, const std::vector<float>& weight, int rows, float* out) {
    each_row(rows, [&](int r) {
      normalize_row(x + size_t(r) * c.hidden, weight.data(), c.hidden, out + size_t(r) * c.hidden);
    });
  }

  void normalize_row(const float* x, const float* weight, int size, float* out) const {
    Vec squares = Vec{};
    for (int i = 0; i < size; i += kLanes) {
      const Vec v = load(x + i);
      squares += v * v;
    }
    const float scale = 1.0f / std::sqrt(sum(squares) / float(size) + c.eps);
    for (int i = 0; i < size; i += kLanes) store(out + i, load(x + i) * scale * load(weight + i));
  }

  // Turns query and key by their position and writes key and value into the cache.
  template <class T>
  void place(const Layer& layer, int position, const int32_t* table, const Cache<T>& kv, int r) {
    float* row = qkv_.data() + size_t(r) * qkv_size();
    for (int h = 0; h < c.heads + c.kv_heads; h++) {
      const auto& weight = h < c.heads ? layer.query_norm : layer.key_norm;
      float* x = row + h * c.head_dim;
      if (!weight.empty()) normalize_row(x, weight.data(), c.head_dim, x);
      turn(x, position);
    }
    const int block = table[position / kBlock], at = position % kBlock;
    for (int h = 0; h < c.kv_heads; h++) {
      const float* key = row + (c.heads + h) * c.head_dim;
      const float* value = key + c.kv_heads * c.head_dim;
      kv.put_keys(block, h, at, key);
      kv.put_values(block, h, at, value);
    }
  }

  void turn(float* x, int position) const {
    const int half = c.head_dim / 2;
    const float* cosine = cosines.data() + size_t(position) * half;
    const float* sine = sines.data() + size_t(position) * half;
    int d = 0;
    for (; d + kLanes <= half; d += kLanes) {
      const Vec a = load(x + d), b = load(x + d + half);
      const Vec c = load(cosine + d), s = load(sine + d);
      store(x + d, a * c - b * s);
      store(x + d + half, b * c + a * s);
    }
    for (; d < half; d++) {
      const float a = x[d], b = x[d + half];
      x[d] = a * cosine[d] - b * sine[d];
      x[d + half] = b * cosine[d] + a * sine[d];
    }
  }

  static void put_panel(float* row, int panel, int width, Pair y) {
    const int from = panel * kPanel;
    if (from + kPanel <= width) {
      store(row + from, y.low);
      store(row + from + kLanes, y.high);
      return;
    }
    float lanes[kPanel];
    store(lanes, y.low);
    store(lanes + kLanes, y.high);
    std::copy_n(lanes, width - from, row + from);
  }

  static void add_panel(float* row, int panel, int width, Pair y) {
    const int from = panel * kPanel;
    if (from + kPanel <= width) {
      store(row + from, load(row + from) + y.low);
      store(row + from + kLanes, load(row + from + kLanes) + y.high);
      return;
    }
    float lanes[kPanel];
    store(lanes, y.low);
    store(lanes + kLanes, y.high);
    for (int i = from; i < width; i++) row[i] += lanes[i - from];
  }
};

Matrix pack(Model& m, const void* weights, int is_half, const std::vector<int>& columns, int depth,
            int store) {
  return is_half
             ? Matrix(m.pool, m.arena, static_cast<const BFloat16*>(weights), columns, depth, Store(store))
             : Matrix(m.pool, m.arena, static_cast<const float*>(weights), columns, depth, Store(store));
}

std::vector<int> in_order(int count) {
  std::vector<int> columns(count);
  std::iota(columns.begin(), columns.end(), 0);
  return columns;
}

}  // namespace

extern "C" {

// Whether the dot products do what the rest relies on: 1 if so.
int cogitate_dots_work() {
  uint32_t random = 1;
  for (int round = 0; round < 64; round++) {
    alignas(64) uint32_t w[kLanes];
    for (auto& word : w) word = random = random * 1664525u + 1013904223u;
    const uint32_t a = random = random * 1664525u + 1013904223u;
    const IVec whole = dot_quads(IVec{} + 7, load_words(w), a);
    // Bfloat16 of a size near one: any sign and fraction, one of four exponents.
    const auto tame = [](uint32_t x) { return (x & 0x80ff80ffu) | 0x3f003f00u; };
    alignas(64) uint32_t pairs[kLanes];
    for (int i = 0; i < kLanes; i++) pairs[i] = tame(w[i]);
    const Vec real = dot_pairs(all(0.5f), load_words(pairs), tame(a));
    for (int i = 0; i < kLanes; i++) {
      int32_t sum = 7;
      for (int b = 0; b < 32; b += 8) sum += int32_t(uint8_t(w[i] >> b)) * int8_t(a >> b);
      double exact = 0.5;
      for (int b = 0; b < 32; b += 16)
        exact += double(to_float(BFloat16{uint16_t(pairs[i] >> b)})) *
                 to_float(BFloat16{uint16_t(tame(a) >> b)});
      if (sum != whole[i] || std::fabs(exact - real[i]) > 1e-4) return 0;
    }
  }
  return 1;
}

void* cogitate_new(const CogitateConfig* config) { return new Model(*config); }

void cogitate_free(void* model) { delete static_cast<Model*>(model); }

// Packs one weight matrix (rows out, depth in), float32 or bfloat16. kind: 0 q, k, v stacked; 1 out;
// 2 gate and up stacked; 3 down; 4 embedding table; 5 output head (layer ignored for 4 and 5).
void cogitate_set_matrix(void* handle, int layer, int kind, const void* weights, int is_half) {
  Model& m = *static_cast<Model*>(handle);
  const CogitateConfig& c = m.c;
  if (kind == 0)
    m.layers[layer].qkv = pack(m, weights, is_half, in_order(m.qkv_size()), c.hidden, c.store);
  if (kind == 1)
    m.layers[layer].out =
        pack(m, weights, is_half, in_order(c.hidden), c.heads * c.head_dim, c.store);
  if (kind == 2) {
    std::vector<int> columns;
    for (int from = 0; from < c.intermediate; from += kLanes)
      for (int half = 0; half < 2; half++)
        for (int i = 0; i < kLanes; i++) columns.push_back(half * c.intermediate + from + i);
    m.layers[layer].gate_up = pack(m, weights, is_half, columns, c.hidden, c.store);
  }
  if (kind == 3)
    m.layers[layer].down = pack(m, weights, is_half, in_order(c.hidden), c.intermediate, c.store);
  if (kind == 4) m.embed = pack(m, weights, is_half, in_order(c.vocab), c.hidden, c.head_store);
  if (kind == 5) m.head = pack(m, weights, is_half, in_order(c.vocab), c.hidden, c.head_store);
}

// kind: 0 input norm; 1 norm after attention; 2 q, k, v bias; 3 query norm; 4 key norm; 5 last norm;
// 6 cosines and 7 sines of every position (layer ignored for 5 to 7).
void cogitate_set_vector(void* handle, int layer, int kind, const float* values, int64_t count) {
  Model& m = *static_cast<Model*>(handle);
  std::vector<float> copy(values, values + count);
  if (kind == 0) m.layers[layer].input_norm = std::move(copy);
  if (kind == 1) m.layers[layer].post_norm = std::move(copy);
  if (kind == 2) {
    copy.resize((copy.size() + kPanel - 1) / kPanel * kPanel, 0.0f);
    m.layers[layer].qkv_bias = std::move(copy);
  }
  if (kind == 3) m.layers[layer].query_norm = std::move(copy);
  if (kind == 4) m.layers[layer].key_norm = std::move(copy);
  if (kind == 5) m.norm = std::move(copy);
  if (kind == 6) m.cosines = std::move(copy);
  if (kind == 7) m.sines = std::move(copy);
}

// Makes the KV cache; 0 where there is no room.
int cogitate_allocate(void* handle, int blocks) {
  return static_cast<Model*>(handle)->allocate(blocks);
}

void cogitate_copy_blocks(void* handle, const int32_t* pairs, int count) {
  static_cast<Model*>(handle)->copy_blocks(pairs, count);
}

void cogitate_step(void* handle, const CogitateStep* step) {
  static_cast<Model*>(handle)->step(*step);
}

// Draws a token for each row of `adjusted` (count, vocab), of what top_ks, top_ps and min_ps let,
// and reports log probabilities from `logits`, the model's own: of the token and of the `wanted`
// likeliest; confidences are the mean of these, negated. Temperature 0 is greedy.
void cogitate_sample(void* handle, const float* logits, const float* adjusted, int count, int wanted,
                     const double* temperatures, const double* uniforms, const double* top_ps,
                     const double* min_ps, const int32_t* top_ks, int32_t* tokens,
                     double* logprobs, double* confidences, float* top_logprobs,
                     int32_t* top_ids) {
  Model& m = *static_cast<Model*>(handle);
  const int vocab = m.c.vocab;
  m.pool.run(count, [&](int i, int) {
    const float* row = adjusted + size_t(i) * vocab;
    const Tail tail{top_ks[i], top_ps[i], min_ps[i]};
    const float temperature = float(temperatures[i]);
    if (temperature <= 0.0f)
      tokens[i] = greedy(row, vocab);
    else if (tail.cuts())
      tokens[i] = draw(cut_tail(row, vocab, temperature, tail).data(), vocab, temperature, uniforms[i]);
    else
      tokens[i] = draw(row, vocab, temperature, uniforms[i]);
    std::vector<Likeliest> likeliest(wanted);
    logprobs[i] = report(logits + size_t(i) * vocab, vocab, tokens[i], wanted, likeliest.data());
    double total = 0.0;
    for (int j = 0; j < wanted; j++) {
      total += likeliest[j].value;
      top_logprobs[size_t(i) * wanted + j] = likeliest[j].value;
      top_ids[size_t(i) * wanted + j] = likeliest[j].id;
    }
    confidences[i] = -total / wanted;
  });
}
}
