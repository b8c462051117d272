// Draws tokens and reports their probabilities, one row of logits at a time, in a fixed order.
#pragma once

#include <algorithm>
#include <cmath>
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
  const auto better = [](const Likeliest& a, const Likeliest& b) {
    return a.value != b.value ? a.value > b.value : a.id < b.id;
  };
  int held = 0;
  const auto offer = [&](float value, int id) {
    if (held < wanted) {
      likeliest[held++] = {value, id};
      std::push_heap(likeliest, likeliest + held, better);
    } else if (value > likeliest[0].value) {
      std::pop_heap(likeliest, likeliest + held, better);
      likeliest[held - 1] = {value, id};
      std::push_heap(likeliest, likeliest + held, better);
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
  std::sort_heap(likeliest, likeliest + held, better);
  for (int j = 0; j < held; j++) likeliest[j].value -= norm;
  return logits[token] - norm;
}

}  // namespace cogitate
