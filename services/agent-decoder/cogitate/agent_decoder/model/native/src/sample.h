// Draws tokens and reports their probabilities, one row of logits at a time, in a fixed order.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "vec.h"

namespace cogitate {

constexpr int kSumBlock = 512;  // logits summed in float before they are added in double

static inline float largest_of(const float* x, int count) {
  int i = 0;
  Vec top = all(-INFINITY);
  for (; i + kLanes <= count; i += kLanes) top = larger(load(x + i), top);
  float best = largest(top);
  for (; i < count; i++) best = x[i] > best ? x[i] : best;
  return best;
}

// Sum of exp((x - shift) * scale) over at most kSumBlock elements.
static inline float exp_sum(const float* x, int count, float shift, float scale) {
  Vec total = Vec{};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) total += exp((load(x + i) - shift) * scale);
  if (i < count) {
    float rest[kLanes];
    std::fill(rest, rest + kLanes, -INFINITY);
    std::copy(x + i, x + count, rest);
    total += exp((load(rest) - shift) * scale);
  }
  return sum(total);
}

// The first index of the largest logit.
static inline int greedy(const float* logits, int count) {
  return int(std::max_element(logits, logits + count) - logits);
}

// Inverse-CDF draw from softmax(logits / temperature) by `uniform` in [0, 1).
static inline int draw(const float* logits, int count, float temperature, double uniform) {
  const float top = largest_of(logits, count), scale = 1.0f / temperature;
  std::vector<double> sums;
  double total = 0.0;
  for (int from = 0; from < count; from += kSumBlock) {
    sums.push_back(exp_sum(logits + from, std::min(kSumBlock, count - from), top, scale));
    total += sums.back();
  }
  const double target = uniform * total;
  double before = 0.0;
  size_t block = 0;
  while (block + 1 < sums.size() && before + sums[block] <= target) before += sums[block++];
  int from = int(block) * kSumBlock, last = -1;
  for (; from < count; from += kLanes) {
    float lanes[kLanes];
    const int lanes_used = std::min(kLanes, count - from);
    std::fill(lanes, lanes + kLanes, -INFINITY);
    std::copy(logits + from, logits + from + lanes_used, lanes);
    store(lanes, exp((load(lanes) - top) * scale));
    for (int i = 0; i < lanes_used; i++) {
      if (lanes[i] > 0.0f) last = from + i;
      before += lanes[i];
      if (before > target && lanes[i] > 0.0f) return from + i;
    }
  }
  return last >= 0 ? last : count - 1;  // rounding at the very end, or logits that are not finite
}

struct Likeliest {
  float value;
  int32_t id;
};

static inline bool likelier(const Likeliest& a, const Likeliest& b) {
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

// Which tokens may be drawn at all; 0, 1 and 0 let all of them.
struct Tail {
  int32_t top_k;
  double top_p, min_p;

  bool cuts() const { return top_k > 0 || top_p < 1.0 || min_p > 0.0; }
};

// Logits with -infinity in place of what the tail loses. Each of the three looks at the whole
// distribution; tokens as likely as the k-th all pass. Source: keep_mask of core/sampling.py.
static inline std::vector<float> cut_tail(const float* logits, int count, float temperature,
                                          const Tail& tail) {
  const float top = largest_of(logits, count), scale = 1.0f / temperature;
  std::vector<float> kept(logits, logits + count), weights(kept);
  if (tail.top_k > 0 && tail.top_k < count) {
    std::nth_element(weights.begin(), weights.begin() + tail.top_k - 1, weights.end(),
                     std::greater<float>());
    const float least = weights[tail.top_k - 1];
    for (float& x : kept) x = x >= least ? x : -INFINITY;
  }
  weights.assign((count + kLanes - 1) / kLanes * kLanes, -INFINITY);
  std::copy(logits, logits + count, weights.begin());
  double total = 0.0;
  for (int i = 0; i < count; i += kLanes) {
    const Vec w = exp((load(&weights[i]) - top) * scale);
    store(&weights[i], w);
    total += sum(w);
  }
  if (tail.min_p > 0.0)
    for (int i = 0; i < count; i++) kept[i] = weights[i] >= tail.min_p ? kept[i] : -INFINITY;
  if (tail.top_p >= 1.0) return kept;
  // All tokens under this together are less than the tail, so none of them stays.
  const double least = (1.0 - tail.top_p) * total / count * 0.999;
  std::vector<Likeliest> some;
  for (int i = 0; i < count; i++) {
    if (weights[i] >= least)
      some.push_back({weights[i], i});
    else
      kept[i] = -INFINITY;
  }
  std::sort(some.begin(), some.end(), likelier);
  double before = 0.0;
  for (const Likeliest& one : some) {
    // A token stays if the mass before it is still under top_p: the first always stays.
    if (before > 0.0 && before >= tail.top_p * total) kept[one.id] = -INFINITY;
    before += one.value;
  }
  return kept;
}

// Log probabilities under softmax(logits): of `token`, and of the `wanted` likeliest tokens, likeliest
// first, ties to the lower id. Returns the token's.
static inline float report(const float* logits, int count, int token, int wanted,
                           Likeliest* likeliest) {
  const float top = largest_of(logits, count);
  double total = 0.0;
  for (int from = 0; from < count; from += kSumBlock)
    total += exp_sum(logits + from, std::min(kSumBlock, count - from), top, 1.0f);
  const float norm = top + float(std::log(total));
  // A heap of the best so far; most vectors hold nothing that enters it.
  int held = 0;
  const auto offer = [&](float value, int id) {
    if (held < wanted) {
      likeliest[held++] = {value, id};
      std::push_heap(likeliest, likeliest + held, likelier);
    } else if (value > likeliest[0].value) {
      std::pop_heap(likeliest, likeliest + held, likelier);
      likeliest[held - 1] = {value, id};
      std::push_heap(likeliest, likeliest + held, likelier);
    }
  };
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    if (held == wanted) {
      const IVec enters = load(logits + i) > likeliest[0].value;
      int any = 0;
      for (int lane = 0; lane < kLanes; lane++) any |= enters[lane];
      if (!any) continue;
    }
    for (int lane = 0; lane < kLanes; lane++) offer(logits[i + lane], i + lane);
  }
  for (; i < count; i++) offer(logits[i], i);
  std::sort_heap(likeliest, likeliest + held, likelier);
  for (int j = 0; j < held; j++) likeliest[j].value -= norm;
  return logits[token] - norm;
}

}  // namespace cogitate
