#include "permute_kernel.h"

#include <bit>
#include <cstring>

#if defined(PYCOOLDOWN_ISA_avx2) || defined(PYCOOLDOWN_ISA_avx512)
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

#elif defined(PYCOOLDOWN_ISA_avx2)

namespace {

// Sixteen permutations, one in each 32-bit lane of two vectors: sizes are at most 2^62, so both parts of an index have
// 32 bits. The two vectors alternate, because one alone would wait for its multiplications.
constexpr std::size_t kLanes = 16;
static_assert(sizeof(Permutation) == 64);

struct Lanes {
  __m256i half[2];
};

template <class Function, class... Arguments>
Lanes each(const Function& function, const Arguments&... arguments) {
  return {{function(arguments.half[0]...), function(arguments.half[1]...)}};
}

__m256i splat(std::uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
__m256i odd(__m256i x) { return _mm256_srli_epi64(x, 32); }

// The upper halves of 64-bit products of the even lanes and of the odd ones.
__m256i upper(__m256i even_product, __m256i odd_product) {
  return _mm256_blend_epi32(odd(even_product), odd_product, 0xAA);
}

// The same words of eight cache lines: `words` of words[i] are number 4 * quarter + i.
void transpose(const Permutation* const* permutations, std::size_t quarter, std::size_t half, Lanes* words) {
  const auto row = [&](std::size_t i) {
    const auto part = [&](std::size_t n) { return reinterpret_cast<const __m128i*>(permutations[n]) + quarter; };
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_load_si128(part(i))), _mm_load_si128(part(i + 4)), 1);
  };
  const __m256i a = row(0), b = row(1), c = row(2), d = row(3);
  const __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
  const __m256i ab_upper = _mm256_unpackhi_epi32(a, b), cd_upper = _mm256_unpackhi_epi32(c, d);
  words[0].half[half] = _mm256_unpacklo_epi64(ab, cd);
  words[1].half[half] = _mm256_unpackhi_epi64(ab, cd);
  words[2].half[half] = _mm256_unpacklo_epi64(ab_upper, cd_upper);
  words[3].half[half] = _mm256_unpackhi_epi64(ab_upper, cd_upper);
}

// Permutation::mix(x + key) for x < 2^31, by products of 32 bits.
Lanes mix(const Lanes& x, const Lanes& key) {
  const __m256i first = splat(0x7F4A7C15u), first_upper = splat(0x9E3779B9u);
  const __m256i second = splat(0x6659FD93u), second_upper = splat(0xD6E8FEB8u);
  const auto multiply = [](__m256i constant) { return [=](__m256i a) { return _mm256_mul_epu32(a, constant); }; };
  const Lanes sum = each([](__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }, x, key);
  const Lanes even_product = each(multiply(first), sum);
  const Lanes odd_product = each(multiply(first), each(odd, sum));
  const Lanes high = each(
      [&](__m256i s, __m256i k, __m256i even, __m256i uneven) {
        const __m256i carry = _mm256_srai_epi32(_mm256_andnot_si256(s, k), 31);  // the sum has 33 bits
        const __m256i rest = _mm256_add_epi32(_mm256_mullo_epi32(s, first_upper), _mm256_and_si256(carry, first));
        return _mm256_add_epi32(upper(even, uneven), rest);
      },
      sum, key, even_product, odd_product);
  const Lanes low = each(
      [](__m256i h, __m256i even, __m256i uneven) {
        return _mm256_xor_si256(h, _mm256_blend_epi32(even, _mm256_slli_epi64(uneven, 32), 0xAA));
      },
      high, even_product, odd_product);
  return each(
      [&](__m256i l, __m256i h, __m256i even, __m256i uneven) {
        const __m256i rest = _mm256_add_epi32(_mm256_mullo_epi32(l, second_upper), _mm256_mullo_epi32(h, second));
        return _mm256_add_epi32(upper(even, uneven), rest);
      },
      low, high, each(multiply(second), low), each(multiply(second), each(odd, low)));
}

void permute_lanes(const Permutation* const* permutations, std::int64_t* positions) {
  Lanes keys[8], values[4],
      widths[4];  // values are size, its upper half, high_size; widths are low_bits and, third, low_mask
  for (std::size_t half = 0; half < 2; ++half) {
    transpose(permutations + 8 * half, 0, half, keys);
    transpose(permutations + 8 * half, 1, half, keys + 4);
    transpose(permutations + 8 * half, 2, half, values);
    transpose(permutations + 8 * half, 3, half, widths);
  }
  const Lanes &size = values[0], &high_size = values[2], &low_bits = widths[0], &low_mask = widths[2];

  Lanes low, high;
  for (std::size_t half = 0; half < 2; ++half) {
    const auto* from = reinterpret_cast<const __m256i*>(positions + 8 * half);
    const __m256i a = _mm256_loadu_si256(from), b = _mm256_loadu_si256(from + 1);
    const auto words = [](__m256i c, __m256i d) {  // the lower halves of their lanes
      const __m256 both = _mm256_shuffle_ps(_mm256_castsi256_ps(c), _mm256_castsi256_ps(d), 0x88);
      return _mm256_permute4x64_epi64(_mm256_castps_si256(both), 0xD8);
    };
    const __m256i bits = low_bits.half[half];
    const __m256i a_high = _mm256_srlv_epi64(a, _mm256_cvtepu32_epi64(_mm256_castsi256_si128(bits)));
    const __m256i b_high = _mm256_srlv_epi64(b, _mm256_cvtepu32_epi64(_mm256_extracti128_si256(bits, 1)));
    low.half[half] = _mm256_and_si256(words(a, b), low_mask.half[half]);
    high.half[half] = words(a_high, b_high);
  }

  const auto two_rounds = [&](const Lanes& even_key, const Lanes& odd_key) {
    const Lanes mixed = mix(low, even_key);
    high = each(
        [](__m256i h, __m256i m, __m256i n) {
          const __m256i more = upper(_mm256_mul_epu32(m, n), _mm256_mul_epu32(odd(m), odd(n)));
          const __m256i sum = _mm256_add_epi32(h, more);
          return _mm256_min_epu32(sum, _mm256_sub_epi32(sum, n));
        },
        high, mixed, high_size);
    low = each([](__m256i l, __m256i m, __m256i mask) { return _mm256_xor_si256(l, _mm256_and_si256(m, mask)); }, low,
               mix(high, odd_key), low_mask);
  };
  for (int round = 0; round < 6; round += 2) two_rounds(keys[round], keys[round + 1]);

  // A size below 4,096 has no upper half. Neither the upper half nor low_bits alone shows this.
  const Lanes small = each(
      [](__m256i n, __m256i bits) {
        return _mm256_and_si256(_mm256_cmpgt_epi32(splat(4096), n), _mm256_cmpgt_epi32(splat(7), bits));
      },
      size, low_bits);
  if (!_mm256_testz_si256(small.half[0], small.half[0]) || !_mm256_testz_si256(small.half[1], small.half[1])) {
    const Lanes low_before = low, high_before = high;
    two_rounds(keys[6], keys[7]);
    const auto choose = [](__m256i before, __m256i after, __m256i mask) {
      return _mm256_blendv_epi8(before, after, mask);
    };
    low = each(choose, low_before, low, small);
    high = each(choose, high_before, high, small);
  }

  for (std::size_t half = 0; half < 2; ++half) {
    const __m256i l = low.half[half], h = high.half[half], bits = low_bits.half[half], n = size.half[half];
    // Results beyond n, whose last index has the parts high_size - 1 and (n - 1) & low_mask, walk on. Sizes below 64
    // take more rounds. Both cases are rare and handled one by one.
    const __m256i last = _mm256_and_si256(_mm256_sub_epi32(n, splat(1)), low_mask.half[half]);
    const __m256i walking = _mm256_and_si256(_mm256_cmpeq_epi32(h, _mm256_sub_epi32(high_size.half[half], splat(1))),
                                             _mm256_cmpgt_epi32(l, last));
    const __m256i tiny = _mm256_and_si256(small.half[half], _mm256_cmpgt_epi32(splat(64), n));
    auto alone = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_or_si256(walking, tiny))));
    const auto index = [](__m128i hi, __m128i count, __m128i lo) {
      const __m256i shifted = _mm256_sllv_epi64(_mm256_cvtepu32_epi64(hi), _mm256_cvtepu32_epi64(count));
      return _mm256_or_si256(shifted, _mm256_cvtepu32_epi64(lo));
    };
    std::int64_t before[8];
    std::int64_t* to = positions + 8 * half;
    if (alone) std::memcpy(before, to, sizeof before);
    auto* vectors = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(vectors,
                        index(_mm256_castsi256_si128(h), _mm256_castsi256_si128(bits), _mm256_castsi256_si128(l)));
    _mm256_storeu_si256(vectors + 1, index(_mm256_extracti128_si256(h, 1), _mm256_extracti128_si256(bits, 1),
                                           _mm256_extracti128_si256(l, 1)));
    for (; alone; alone &= alone - 1) {
      const auto i = static_cast<std::size_t>(std::countr_zero(alone));
      to[i] = static_cast<std::int64_t>((*permutations[8 * half + i])(static_cast<std::uint64_t>(before[i])));
    }
  }
}

}  // namespace

void permute(const Permutation* const* permutations, std::int64_t* positions, std::size_t count) {
  std::size_t i = 0;
  for (; i + kLanes <= count; i += kLanes) permute_lanes(permutations + i, positions + i);
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
