#include "permute_kernel.h"

#if defined(PYCOOLDOWN_ISA_avx512)
#include <immintrin.h>
#endif

namespace pycooldown::PYCOOLDOWN_ISA {

#if defined(PYCOOLDOWN_ISA_avx512)

namespace {

constexpr std::size_t kLanes = 8;
static_assert(sizeof(Permutation) == 64);

// Eight permutations, one in each 64-bit lane: eight cache lines, transposed.
struct Lanes {
  __m512i keys[4];  // two in each lane, the lower half first
  __m512i size, high_size, low_bits, low_mask;

  explicit Lanes(const Permutation* const* permutations) {
    const auto row = [&](int i) { return _mm512_load_si512(permutations[i]); };
    // First pairs of rows, then quarters of pairs: words 0, 2, 4, 6 of the cache lines from the even words, the others
    // from the odd ones.
    const auto column = [](__m512i a, __m512i b, __m512i c, __m512i d, __m512i* lower, __m512i* upper) {
      const __m512i ab_low = _mm512_shuffle_i64x2(a, b, 0x88), ab_high = _mm512_shuffle_i64x2(a, b, 0xDD);
      const __m512i cd_low = _mm512_shuffle_i64x2(c, d, 0x88), cd_high = _mm512_shuffle_i64x2(c, d, 0xDD);
      lower[0] = _mm512_shuffle_i64x2(ab_low, cd_low, 0x88);
      lower[2] = _mm512_shuffle_i64x2(ab_high, cd_high, 0x88);
      upper[0] = _mm512_shuffle_i64x2(ab_low, cd_low, 0xDD);
      upper[2] = _mm512_shuffle_i64x2(ab_high, cd_high, 0xDD);
    };
    __m512i words[8];
    for (int odd = 0; odd < 2; ++odd) {
      const auto pair = [&](int i) {
        return odd ? _mm512_unpackhi_epi64(row(i), row(i + 1)) : _mm512_unpacklo_epi64(row(i), row(i + 1));
      };
      column(pair(0), pair(2), pair(4), pair(6), words + odd, words + 4 + odd);
    }
    for (int i = 0; i < 4; ++i) keys[i] = words[i];
    size = words[4];
    high_size = words[5];
    low_bits = words[6];
    low_mask = words[7];
  }
};

__m512i mix(__m512i x) {
  x = _mm512_mullo_epi64(x, _mm512_set1_epi64(static_cast<long long>(0x9E3779B97F4A7C15u)));
  x = _mm512_xor_si512(x, _mm512_srli_epi64(x, 32));
  return _mm512_srli_epi64(_mm512_mullo_epi64(x, _mm512_set1_epi64(static_cast<long long>(0xD6E8FEB86659FD93u))), 32);
}

__m512i permute_lanes(const Lanes& p, __m512i i) {
  const __mmask8 small = _mm512_cmplt_epu64_mask(p.size, _mm512_set1_epi64(4096));
  const __mmask8 tiny = _mm512_cmplt_epu64_mask(p.size, _mm512_set1_epi64(64));
  __mmask8 walking = 0xff;
  do {
    __m512i low = _mm512_and_si512(i, p.low_mask), high = _mm512_srlv_epi64(i, p.low_bits);
    for (int round = 0; round < 24; round += 2) {
      const __mmask8 active = walking & (round < 6 ? 0xff : round < 8 ? small : tiny);
      if (!active) break;
      const __m512i both = p.keys[round / 2 % 4], more = _mm512_set1_epi64(0x9E3779B9ll * (round / 8));
      const __m512i even = _mm512_and_si512(both, _mm512_set1_epi64(0xffffffff)), odd = _mm512_srli_epi64(both, 32);
      const __m512i product = _mm512_mul_epu32(mix(low + even + more), p.high_size);
      const __m512i sum = high + _mm512_srli_epi64(product, 32);
      high = _mm512_mask_min_epu64(high, active, sum, sum - p.high_size);
      low = _mm512_mask_xor_epi64(low, active, low, _mm512_and_si512(mix(high + odd + more), p.low_mask));
    }
    i = _mm512_mask_or_epi64(i, walking, _mm512_sllv_epi64(high, p.low_bits), low);
    walking = _mm512_mask_cmpge_epu64_mask(walking, i, p.size);
  } while (walking);
  return i;
}

}  // namespace

void permute(const Permutation* const* permutations, std::int64_t* positions, std::size_t count) {
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const __m512i permuted = permute_lanes(Lanes(permutations + i), _mm512_loadu_si512(positions + i));
    _mm512_storeu_si512(positions + i, permuted);
  }
  for (; i < count; ++i)
    positions[i] = static_cast<std::int64_t>((*permutations[i])(static_cast<std::uint64_t>(positions[i])));
}

#else

void permute(const Permutation* const* permutations, std::int64_t* positions, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i)
    positions[i] = static_cast<std::int64_t>((*permutations[i])(static_cast<std::uint64_t>(positions[i])));
}

#endif

}  // namespace pycooldown::PYCOOLDOWN_ISA
