// Sixteen floats at a time, by the compiler's own vector extension: AVX-512 where the flags allow
// it, pairs of AVX2 or quads of SSE registers elsewhere.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace cogitate {

constexpr int kLanes = 16;

typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IVec __attribute__((vector_size(64)));
typedef uint32_t UVec __attribute__((vector_size(64)));
typedef uint16_t HVec __attribute__((vector_size(32)));
typedef int8_t BVec __attribute__((vector_size(16)));

// Whether products are taken by the machine's dot products of bfloat16 pairs and of byte quads.
// COGITATE_SLOW_DOTS takes them by other instructions, so that all but the two can be tested anywhere.
#if defined(__AVX512BF16__) || defined(COGITATE_SLOW_DOTS)
constexpr bool kHalfDot = true;
#else
constexpr bool kHalfDot = false;
#endif
#if defined(__AVX512VNNI__) || defined(COGITATE_SLOW_DOTS)
constexpr bool kByteDot = true;
#else
constexpr bool kByteDot = false;
#endif

static inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

static inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

static inline Vec all(float x) { return Vec{} + x; }

// A bfloat16 is the upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

static inline float to_float(float x) { return x; }
static inline float to_float(BFloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, sizeof f);
  return f;
}

static inline BFloat16 to_bfloat16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {uint16_t((bits >> 16) | 0x40)};  // stays NaN
  return {uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};  // to nearest, ties to even
}

// The same for sixteen; the machine's own instruction takes the smallest numbers for 0.
static inline HVec to_halves(Vec x) {
#if defined(__AVX512BF16__)
  return (HVec)_mm512_cvtneps_pbh((__m512)x);
#else
  const UVec bits = (UVec)x;
  const UVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UVec spoilt = (UVec)((bits & 0x7fffffffu) > 0x7f800000u) & ((bits >> 16 | 0x40u) ^ rounded);
  return __builtin_convertvector(spoilt ^ rounded, HVec);
#endif
}

// Writes sixteen bfloat16 to every second place from `p` on, and nothing to those between.
static inline void spread(BFloat16* p, HVec x) {
#if defined(__AVX512BW__)
  _mm512_mask_storeu_epi16(p, 0x55555555u, _mm512_cvtepu16_epi32((__m256i)x));
#else
  for (int i = 0; i < kLanes; i++) p[2 * i].bits = x[i];
#endif
}

static inline void put(float* p, float x) { *p = x; }
static inline void put(BFloat16* p, float x) { *p = to_bfloat16(x); }

// Widening is the one thing that compilers make badly of the generic form.
static inline Vec load(const BFloat16* p) {
  HVec half;
  std::memcpy(&half, p, sizeof half);
#if defined(__AVX512F__)
  return (Vec)((UVec)_mm512_cvtepu16_epi32((__m256i)half) << 16);
#else
  return (Vec)(__builtin_convertvector(half, UVec) << 16);
#endif
}

static inline Vec load(const int8_t* p) {
  BVec bytes;
  std::memcpy(&bytes, p, sizeof bytes);
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)bytes));
#else
  return __builtin_convertvector(__builtin_convertvector(bytes, IVec), Vec);
#endif
}

// sum + the products of a pair of bfloat16 `a`, the same in each lane, with the pairs of `w`.
static inline Vec dot_pairs(Vec sum, UVec w, uint32_t a) {
#if defined(__AVX512BF16__)
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(int(a)));
#else
  sum += to_float(BFloat16{uint16_t(a >> 16)}) * (Vec)(w & 0xffff0000u);
  return sum + to_float(BFloat16{uint16_t(a)}) * (Vec)(w << 16);
#endif
}

// sum + the products of four signed bytes `a`, the same in each lane, with four unsigned ones of `w`.
static inline IVec dot_quads(IVec sum, UVec w, uint32_t a) {
#if defined(__AVX512VNNI__)
  return (IVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(int(a)));
#else
  for (int i = 0; i < 4; i++)
    sum += (IVec)(w >> (8 * i) & 0xffu) * int32_t(int8_t(a >> (8 * i)));
  return sum;
#endif
}

template <int... I>
static inline Vec pick(Vec v) {
#if defined(__clang__)
  return __builtin_shufflevector(v, v, I...);
#else
  return __builtin_shuffle(v, IVec{I...});
#endif
}

// The upper lanes of a half, a quarter, an eighth, a sixteenth, moved to the front.
static inline Vec upper8(Vec v) { return pick<8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15>(v); }
static inline Vec upper4(Vec v) { return pick<4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7>(v); }
static inline Vec upper2(Vec v) { return pick<2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3>(v); }
static inline Vec upper1(Vec v) { return pick<1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1>(v); }

// Adds the lanes in one fixed order.
static inline float sum(Vec v) {
  v += upper8(v);
  v += upper4(v);
  v += upper2(v);
  return (v + upper1(v))[0];
}

static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

static inline float largest(Vec v) {
  v = larger(upper8(v), v);
  v = larger(upper4(v), v);
  v = larger(upper2(v), v);
  return larger(upper1(v), v)[0];
}

// e^x for x <= 88 to about one unit in the last place; 0 below -87. NaN stays NaN.
// Source: Cody and Waite's reduction; the polynomial is that of Cephes' expf.
static inline Vec exp(Vec x) {
  const Vec low = all(-87.0f);
#if defined(__AVX512F__)
  const Vec bounded = (Vec)_mm512_max_ps((__m512)low, (__m512)x);  // NaN stays NaN
#else
  const IVec tiny = x < low;
  const Vec bounded = tiny ? low : x;
#endif
  const Vec magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const Vec shifted = bounded * 1.44269504088896341f + magic;
  const Vec n = shifted - magic;
  const Vec r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
  const __mmask16 some = _mm512_cmp_ps_mask((__m512)x, (__m512)low, _CMP_NLT_UQ);
  return (Vec)_mm512_maskz_scalef_ps(some, (__m512)p, (__m512)n);
#else
  const IVec power = ((IVec)shifted - (IVec)magic) << 23;
  const Vec scaled = (Vec)((IVec)p + power);
  return tiny ? all(0.0f) : (x == x ? scaled : x);
#endif
}

}  // namespace cogitate
