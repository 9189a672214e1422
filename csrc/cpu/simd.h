// A vector of floats as wide as the instruction set allows, with the few operations that the kernels need, including
// loads and stores of 16-bit formats. Included by *_kernel.cpp only.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "pycooldown/half.h"

#if defined(PYCOOLDOWN_ISA_avx512) || defined(PYCOOLDOWN_ISA_avx2) || defined(__SSE2__)
#include <immintrin.h>
#endif

namespace pycooldown::PYCOOLDOWN_ISA {

// The compiler's vector extension gives these + - * / and comparisons on every instruction set.
#if defined(PYCOOLDOWN_ISA_avx512)
constexpr int kWidth = 16;
#elif defined(PYCOOLDOWN_ISA_avx2)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
typedef float Vec __attribute__((vector_size(kWidth * sizeof(float))));
typedef std::int32_t IntVec __attribute__((vector_size(kWidth * sizeof(float))));
typedef std::uint16_t HalfVec __attribute__((vector_size(kWidth * sizeof(std::uint16_t))));

#define PYCOOLDOWN_INLINE inline __attribute__((always_inline))

PYCOOLDOWN_INLINE Vec splat(float x) { return x - Vec{}; }

// Returns a * b + c, rounded once if the instruction set supports it.
PYCOOLDOWN_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(PYCOOLDOWN_ISA_avx512)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(PYCOOLDOWN_ISA_avx2)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// Returns the larger of each pair of elements; b if one of them is NaN.
PYCOOLDOWN_INLINE Vec max(Vec a, Vec b) {
#if defined(PYCOOLDOWN_ISA_avx512)
  return _mm512_max_ps(a, b);
#elif defined(PYCOOLDOWN_ISA_avx2)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// Returns e^x, for x <= 88, with a relative error of 1e-7, or of 2e-7 by the shorter polynomial. The result is 0 if it
// would be below 2^-126, as for -infinity, and NaN for NaN.
template <bool kShort = false>
PYCOOLDOWN_INLINE Vec exp(Vec x) {
  const Vec log2e = splat(1.44269504f);
#if defined(PYCOOLDOWN_ISA_avx512)
  const Vec scaled = x * log2e;
  const Vec whole = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const Vec f = scaled - whole;
#else
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. Here the bias of the exponent is added too,
  // so that these bits, and the scale made of them, are 0 for -127 and below.
  const Vec magic = splat(0x1.8p23f + 127), bounded = max(splat(-88.1f), x);
  const Vec shifted = fma(bounded, log2e, magic);
  const Vec whole = shifted - magic;
  const Vec f = fma(bounded, log2e, -whole);
#endif
  constexpr std::array<float, 5> kLong{1.33999312e-3f, 9.61848896e-3f, 5.55032878e-2f, 2.40226469e-1f, 6.93147206e-1f};
  constexpr std::array<float, 5> kBrief{1.32764720e-3f, 9.67554133e-3f, 5.55071327e-2f, 2.40221197e-1f, 6.93146967e-1f};
  constexpr auto coefficients = kShort ? kBrief : kLong;
  Vec p = splat(coefficients[0]);
  if constexpr (!kShort) p = fma(splat(1.5345811e-4f), f, p);
  for (std::size_t k = 1; k < coefficients.size(); ++k) p = fma(p, f, splat(coefficients[k]));
  p = fma(p, f, splat(1.0f));
#if defined(PYCOOLDOWN_ISA_avx512)
  return _mm512_scalef_ps(p, whole);
#else
  return p * reinterpret_cast<Vec>(reinterpret_cast<IntVec>(shifted) << 23);
#endif
}

// Returns tanh(x) with a relative error of 2e-7.
PYCOOLDOWN_INLINE Vec tanh(Vec x) {
  const Vec z = x * x;
  Vec small = splat(-5.66078922e-3f);
  small = fma(small, z, splat(2.06020079e-2f));
  small = fma(small, z, splat(-5.37292301e-2f));
  small = fma(small, z, splat(1.33313290e-1f));
  small = fma(small, z, splat(-3.33332783e-1f));
  small = fma(small * z, x, x);
  const Vec bounded = x > splat(20.0f) ? splat(20.0f) : x < splat(-20.0f) ? splat(-20.0f) : x;
  const Vec large = splat(1.0f) - splat(2.0f) / (exp(bounded + bounded) + splat(1.0f));
  return z < splat(0.4f) ? small : large;
}

PYCOOLDOWN_INLINE float reduce_max(Vec v) {
  float result = v[0];
  for (int i = 1; i < kWidth; ++i) result = v[i] > result ? v[i] : result;
  return result;
}

PYCOOLDOWN_INLINE float reduce_add(Vec v) {
  float lane[kWidth];
  std::memcpy(lane, &v, sizeof v);
  for (int half = kWidth / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

PYCOOLDOWN_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

PYCOOLDOWN_INLINE Vec load(const Bf16* p) {
#if defined(PYCOOLDOWN_ISA_avx512)
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(PYCOOLDOWN_ISA_avx2)
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  HalfVec narrow;
  std::memcpy(&narrow, p, sizeof narrow);
  const IntVec wide = __builtin_convertvector(narrow, IntVec);
#endif
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(wide) << 16);
}

PYCOOLDOWN_INLINE Vec load(const F16* p) {
#if defined(PYCOOLDOWN_ISA_avx512)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(PYCOOLDOWN_ISA_avx2)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  Vec v;
  for (int i = 0; i < kWidth; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

PYCOOLDOWN_INLINE Vec rounded(Vec v, const float*) { return v; }

// Returns bits whose high half is the nearest bfloat16. Ties, one in 65,536, are rounded away from zero. An infinity
// stays one.
PYCOOLDOWN_INLINE IntVec rounded_bits(Vec v) { return reinterpret_cast<IntVec>(v) + 0x8000; }

PYCOOLDOWN_INLINE HalfVec rounded(Vec v, const Bf16*) {
  const IntVec high = rounded_bits(v) >> 16;
#if defined(PYCOOLDOWN_ISA_avx512)
  return reinterpret_cast<HalfVec>(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(high)));
#elif defined(PYCOOLDOWN_ISA_avx2)
  const __m256i low = reinterpret_cast<__m256i>(high & 0xffff);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0b1000);
  return reinterpret_cast<HalfVec>(_mm256_castsi256_si128(packed));
#else
  return __builtin_convertvector(high, HalfVec);
#endif
}

PYCOOLDOWN_INLINE HalfVec rounded(Vec v, const F16*) {
#if defined(PYCOOLDOWN_ISA_avx512)
  return reinterpret_cast<HalfVec>(_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(PYCOOLDOWN_ISA_avx2)
  return reinterpret_cast<HalfVec>(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  HalfVec half;
  for (int i = 0; i < kWidth; ++i) half[i] = from_float<F16>(v[i]).bits;
  return half;
#endif
}

template <class T>
PYCOOLDOWN_INLINE void store(T* p, Vec v) {
  const auto bits = rounded(v, p);
  std::memcpy(static_cast<void*>(p), &bits, sizeof bits);
}

#if defined(PYCOOLDOWN_ISA_avx512)
typedef __m512i Pair;
PYCOOLDOWN_INLINE void stream_line(void* p, Pair line) { _mm512_stream_si512(static_cast<__m512i*>(p), line); }
#elif defined(PYCOOLDOWN_ISA_avx2)
typedef __m256i Pair;
PYCOOLDOWN_INLINE void stream_line(void* p, Pair line) { _mm256_stream_si256(static_cast<__m256i*>(p), line); }
#endif

#if defined(PYCOOLDOWN_ISA_avx512) || defined(PYCOOLDOWN_ISA_avx2)
PYCOOLDOWN_INLINE Pair rounded(Vec a, Vec b, const Bf16*) {
  const auto low = reinterpret_cast<Pair>(rounded_bits(a)), high = reinterpret_cast<Pair>(rounded_bits(b));
#if defined(PYCOOLDOWN_ISA_avx512)
  alignas(64) static constexpr std::uint16_t kOdd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                         23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                         45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  return _mm512_permutex2var_epi16(low, _mm512_load_si512(kOdd), high);
#else
  const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(low, 16), _mm256_srli_epi32(high, 16));
  return _mm256_permute4x64_epi64(packed, 0b11011000);
#endif
}

PYCOOLDOWN_INLINE Pair rounded(Vec a, Vec b, const F16* p) {
  const auto low = rounded(a, p), high = rounded(b, p);
#if defined(PYCOOLDOWN_ISA_avx512)
  return _mm512_inserti64x4(_mm512_castsi256_si512(reinterpret_cast<__m256i>(low)), reinterpret_cast<__m256i>(high), 1);
#else
  return _mm256_inserti128_si256(_mm256_castsi128_si256(reinterpret_cast<__m128i>(low)),
                                 reinterpret_cast<__m128i>(high), 1);
#endif
}
#endif

// Stores a and then b, past the caches; p must be aligned to 2 * kWidth elements.
template <class T>
PYCOOLDOWN_INLINE void stream(T* p, Vec a, Vec b) {
#if defined(PYCOOLDOWN_ISA_avx512) || defined(PYCOOLDOWN_ISA_avx2)
  if constexpr (sizeof(T) == 2) {  // a full line at once
    stream_line(p, rounded(a, b, p));
  } else {
    stream_line(p, reinterpret_cast<Pair>(a));
    stream_line(p + kWidth, reinterpret_cast<Pair>(b));
  }
#else
  store(p, a);
  store(p + kWidth, b);
#endif
}

// Loads the first n < kWidth elements and fills the other lanes.
template <class T>
PYCOOLDOWN_INLINE Vec load_first(const T* p, std::int64_t n, float fill) {
  T lanes[kWidth];
  std::fill(lanes, lanes + kWidth, from_float<T>(fill));
  std::memcpy(static_cast<void*>(lanes), p, static_cast<std::size_t>(n) * sizeof(T));
  return load(lanes);
}

template <class T>
PYCOOLDOWN_INLINE void store_first(T* p, std::int64_t n, Vec v) {
  const auto bits = rounded(v, p);
  std::memcpy(static_cast<void*>(p), &bits, static_cast<std::size_t>(n) * sizeof(T));
}

// Makes streamed stores visible to later operations, and ordered before them.
PYCOOLDOWN_INLINE void stream_fence() {
#if defined(PYCOOLDOWN_ISA_avx512) || defined(PYCOOLDOWN_ISA_avx2)
  _mm_sfence();
#endif
}

}  // namespace pycooldown::PYCOOLDOWN_ISA
