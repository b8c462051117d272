// Sixteen floats at a time, by the compiler's own vector extension: AVX-512 where the flags allow
// it, pairs of AVX2 or quads of SSE registers elsewhere.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace cogitate {

constexpr int kLanes = 16;

// As many lanes as one register holds.
#if defined(__AVX512F__)
constexpr int kNative = 16;
#elif defined(__AVX2__)
constexpr int kNative = 8;
#else
constexpr int kNative = 4;
#endif
typedef float NativeVec __attribute__((vector_size(4 * kNative)));
typedef int32_t NativeIVec __attribute__((vector_size(4 * kNative)));
typedef uint32_t NativeUVec __attribute__((vector_size(4 * kNative)));
typedef uint16_t NativeHVec __attribute__((vector_size(2 * kNative)));
typedef int8_t NativeBVec __attribute__((vector_size(kNative)));

// Twice as many lanes, as two values of their own: a vector wider than a register is kept in memory by
// compilers, and every multiply-add then waits for a store.
template <class H>
struct Twice {
  H low, high;

  // The same bits as lanes of another type.
  template <class O>
  explicit operator Twice<O>() const { return {(O)low, (O)high}; }

  auto operator[](int i) const {
    constexpr int half = sizeof(H) / sizeof(low[0]);
    return i < half ? low[i] : high[i - half];
  }
};

// A vector of some native type's lanes, sixteen of them.
template <class V, int Lanes = kNative>
struct Wide {
  using Type = typename Wide<Twice<V>, 2 * Lanes>::Type;
};
template <class V>
struct Wide<V, kLanes> {
  using Type = V;
};

using Vec = Wide<NativeVec>::Type;
using IVec = Wide<NativeIVec>::Type;
using UVec = Wide<NativeUVec>::Type;
using HVec = Wide<NativeHVec>::Type;
using BVec = Wide<NativeBVec>::Type;

template <class S>
using Number = std::enable_if_t<std::is_arithmetic<S>::value>;

#define COGITATE_LANEWISE(op)                                                               \
  template <class H>                                                                        \
  static inline auto operator op(Twice<H> a, Twice<H> b) {                                  \
    return Twice<decltype(a.low op b.low)>{a.low op b.low, a.high op b.high};               \
  }                                                                                         \
  template <class H, class S, class = Number<S>>                                            \
  static inline auto operator op(Twice<H> a, S b) {                                         \
    return Twice<decltype(a.low op b)>{a.low op b, a.high op b};                            \
  }                                                                                         \
  template <class H, class S, class = Number<S>>                                            \
  static inline auto operator op(S a, Twice<H> b) {                                         \
    return Twice<decltype(a op b.low)>{a op b.low, a op b.high};                            \
  }
COGITATE_LANEWISE(+)
COGITATE_LANEWISE(-)
COGITATE_LANEWISE(*)
COGITATE_LANEWISE(/)
COGITATE_LANEWISE(&)
COGITATE_LANEWISE(|)
COGITATE_LANEWISE(^)
COGITATE_LANEWISE(<<)
COGITATE_LANEWISE(>>)
COGITATE_LANEWISE(<)
COGITATE_LANEWISE(>)
COGITATE_LANEWISE(==)
#undef COGITATE_LANEWISE

template <class H, class Other>
static inline Twice<H>& operator+=(Twice<H>& a, Other b) { return a = a + b; }

// Lane by lane `a` where the mask is set, else `b`.
template <class Mask, class V>
static inline V select(Mask mask, V a, V b) { return mask ? a : b; }
template <class M, class H>
static inline Twice<H> select(Twice<M> mask, Twice<H> a, Twice<H> b) {
  return {select(mask.low, a.low, b.low), select(mask.high, a.high, b.high)};
}

// The same numbers as lanes of another type, and vectors from and to memory.
template <class V>
struct Lanes {
  template <class From>
  static V of(From v) { return __builtin_convertvector(v, V); }
  static V load(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(void* p, V v) { std::memcpy(p, &v, sizeof v); }
};
template <class H>
struct Lanes<Twice<H>> {
  template <class From>
  static Twice<H> of(Twice<From> v) { return {Lanes<H>::of(v.low), Lanes<H>::of(v.high)}; }
  static Twice<H> load(const void* p) {
    return {Lanes<H>::load(p), Lanes<H>::load(static_cast<const char*>(p) + sizeof(H))};
  }
  static void store(void* p, Twice<H> v) {
    Lanes<H>::store(p, v.low);
    Lanes<H>::store(static_cast<char*>(p) + sizeof(H), v.high);
  }
};

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
// Where bytes have none, those of pairs of 16 bits, which bytes are widened to.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool kShortDot = !kByteDot;
#else
constexpr bool kShortDot = false;
#endif

static inline Vec load(const float* p) { return Lanes<Vec>::load(p); }
static inline UVec load_words(const void* p) { return Lanes<UVec>::load(p); }
static inline void store(float* p, Vec v) { Lanes<Vec>::store(p, v); }

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
  return Lanes<HVec>::of(spoilt ^ rounded);
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
#if defined(__AVX512F__)
static inline Vec load(const BFloat16* p) {
  return (Vec)((UVec)_mm512_cvtepu16_epi32((__m256i)Lanes<HVec>::load(p)) << 16);
}
static inline Vec load(const int8_t* p) {
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)Lanes<BVec>::load(p)));
}
#elif defined(__AVX2__)
static inline NativeVec widen(const BFloat16* p) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (NativeVec)((NativeUVec)_mm256_cvtepu16_epi32(halves) << 16);
}
static inline NativeVec widen(const int8_t* p) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (NativeVec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
static inline Vec load(const BFloat16* p) { return {widen(p), widen(p + kNative)}; }
static inline Vec load(const int8_t* p) { return {widen(p), widen(p + kNative)}; }
#else
static inline Vec load(const BFloat16* p) {
  return (Vec)(Lanes<UVec>::of(Lanes<HVec>::load(p)) << 16);
}
static inline Vec load(const int8_t* p) {
  return Lanes<Vec>::of(Lanes<IVec>::of(Lanes<BVec>::load(p)));
}
#endif

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

// sum + the products of a pair of whole numbers of 16 bits `a`, the same in each lane, with the pairs of
// signed bytes at `w`.
#if defined(__AVX2__) && !defined(__AVX512F__)
static inline IVec dot_bytes(IVec sum, const int8_t* w, uint32_t a) {
  const auto products = [&](int half) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w) + half);
    return (NativeIVec)_mm256_madd_epi16(_mm256_cvtepi8_epi16(bytes), _mm256_set1_epi32(int(a)));
  };
  return {sum.low + products(0), sum.high + products(1)};
}
#else
IVec dot_bytes(IVec sum, const int8_t* w, uint32_t a);  // never called
#endif

static inline Vec larger(Vec a, Vec b) { return select(a > b, a, b); }

#if defined(__AVX512F__)
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

static inline float largest(Vec v) {
  v = larger(upper8(v), v);
  v = larger(upper4(v), v);
  v = larger(upper2(v), v);
  return larger(upper1(v), v)[0];
}
#else
// Folds the lanes to one in a fixed order, the upper half onto the lower.
template <class F>
static inline float fold(Vec v, F&& join) {
  float lanes[kLanes];
  store(lanes, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] = join(lanes[i + half], lanes[i]);
  return lanes[0];
}

static inline float sum(Vec v) {
  return fold(v, [](float upper, float lower) { return lower + upper; });
}

static inline float largest(Vec v) {
  return fold(v, [](float upper, float lower) { return upper > lower ? upper : lower; });
}
#endif

// e^x for x <= 88 to about one unit in the last place; 0 below -87. NaN stays NaN.
// Source: Cody and Waite's reduction; the polynomial is that of Cephes' expf.
static inline Vec exp(Vec x) {
  const Vec low = all(-87.0f);
#if defined(__AVX512F__)
  const Vec bounded = (Vec)_mm512_max_ps((__m512)low, (__m512)x);  // NaN stays NaN
#else
  const IVec tiny = x < low;
  const Vec bounded = select(tiny, low, x);
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
  return select(tiny, all(0.0f), select(x == x, scaled, x));
#endif
}

}  // namespace cogitate
