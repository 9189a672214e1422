// A vector of floats of the width of the instruction set that is compiled for: the few operations that the kernels
// need, loads and stores of 16-bit formats among them. Included by *_kernel.cpp only.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "pycooldown/half.h"

#if defined(PYCOOLDOWN_ISA_avx512) || defined(PYCOOLDOWN_ISA_avx2) || defined(__SSE2__)
#include <immintrin.h>
#endif

namespace pycooldown::PYCOOLDOWN_ISA {

// Native supports + - * / and comparisons through the compiler's vector extension on every instruction set.
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

#define PYCOOLDOWN_INLINE static inline __attribute__((always_inline))

PYCOOLDOWN_INLINE Vec splat(float x) { return x - Vec{}; }

// a * b + c
PYCOOLDOWN_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(PYCOOLDOWN_ISA_avx512)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(PYCOOLDOWN_ISA_avx2)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

// b where the two do not compare, as when one is NaN
PYCOOLDOWN_INLINE Vec max(Vec a, Vec b) {
#if defined(PYCOOLDOWN_ISA_avx512)
  return _mm512_max_ps(a, b);
#elif defined(PYCOOLDOWN_ISA_avx2)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

// 2^x with a relative error of 1e-7; 0 below -126, also for -infinity; NaN for NaN. For x <= 127.
PYCOOLDOWN_INLINE Vec exp2(Vec x) {
#if defined(PYCOOLDOWN_ISA_avx512)
  const Vec whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits, here with the bias of the exponent added.
  const Vec magic = splat(0x1.8p23f + 127);
  const Vec shifted = x + magic;
  const Vec whole = shifted - magic;
#endif
  const Vec f = x - whole;
  Vec p = splat(1.5345811e-4f);
  p = fma(p, f, splat(1.33999312e-3f));
  p = fma(p, f, splat(9.61848896e-3f));
  p = fma(p, f, splat(5.55032878e-2f));
  p = fma(p, f, splat(2.40226469e-1f));
  p = fma(p, f, splat(6.93147206e-1f));
  p = fma(p, f, splat(1.0f));
#if defined(PYCOOLDOWN_ISA_avx512)
  return _mm512_scalef_ps(p, whole);
#else
  const IntVec scale = reinterpret_cast<IntVec>(shifted) << 23;
  const IntVec kept = ~(x < splat(-126.0f));
  return reinterpret_cast<Vec>(reinterpret_cast<IntVec>(p * reinterpret_cast<Vec>(scale)) & kept);
#endif
}

// tanh with a relative error of 2e-7
PYCOOLDOWN_INLINE Vec tanh(Vec x) {
  const Vec z = x * x;
  Vec small = splat(-5.66078922e-3f);
  small = fma(small, z, splat(2.06020079e-2f));
  small = fma(small, z, splat(-5.37292301e-2f));
  small = fma(small, z, splat(1.33313290e-1f));
  small = fma(small, z, splat(-3.33332783e-1f));
  small = fma(small * z, x, x);
  const Vec bounded = x > splat(20.0f) ? splat(20.0f) : x < splat(-20.0f) ? splat(-20.0f) : x;
  const Vec large = splat(1.0f) - splat(2.0f) / (exp2(bounded * splat(2.8853901f)) + splat(1.0f));
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

PYCOOLDOWN_INLINE HalfVec rounded(Vec v, const Bf16*) {
  const IntVec bits = reinterpret_cast<IntVec>(v);
  const IntVec even = (bits >> 16) & 1;
  const IntVec high = (bits + even + 0x7fff) >> 16;  // a NaN of the format keeps its high bits
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

// Store a and b one after the other past the caches; p must be aligned to 2 * kWidth elements.
template <class T>
PYCOOLDOWN_INLINE void stream(T* p, Vec a, Vec b) {
  const auto low = rounded(a, p), high = rounded(b, p);
#if defined(PYCOOLDOWN_ISA_avx512)
  if constexpr (sizeof(T) == 4) {
    _mm512_stream_ps(reinterpret_cast<float*>(p), low);
    _mm512_stream_ps(reinterpret_cast<float*>(p) + kWidth, high);
  } else {  // a full line at once
    const __m512i both = _mm512_castsi256_si512(reinterpret_cast<__m256i>(low));
    _mm512_stream_si512(reinterpret_cast<__m512i*>(p), _mm512_inserti64x4(both, reinterpret_cast<__m256i>(high), 1));
  }
#elif defined(PYCOOLDOWN_ISA_avx2)
  if constexpr (sizeof(T) == 4) {
    _mm256_stream_ps(reinterpret_cast<float*>(p), low);
    _mm256_stream_ps(reinterpret_cast<float*>(p) + kWidth, high);
  } else {
    const __m256i both = _mm256_castsi128_si256(reinterpret_cast<__m128i>(low));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p),
                        _mm256_inserti128_si256(both, reinterpret_cast<__m128i>(high), 1));
  }
#else
  std::memcpy(static_cast<void*>(p), &low, sizeof low);
  std::memcpy(static_cast<void*>(p + kWidth), &high, sizeof high);
#endif
}

// The first n < kWidth elements, the other lanes filled.
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

// Makes streamed stores visible to, and ordered before, what follows.
PYCOOLDOWN_INLINE void stream_fence() {
#if defined(PYCOOLDOWN_ISA_avx512) || defined(PYCOOLDOWN_ISA_avx2)
  _mm_sfence();
#endif
}

}  // namespace pycooldown::PYCOOLDOWN_ISA
