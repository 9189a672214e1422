#include "draw_kernel.h"

#include "pycooldown/philox.h"

#if defined(PYCOOLDOWN_ISA_avx2) || defined(PYCOOLDOWN_ISA_avx512)
#include <immintrin.h>
#endif

namespace pycooldown::PYCOOLDOWN_ISA {

namespace {

#if defined(PYCOOLDOWN_ISA_avx512)

// Eight Philox blocks at a time, one per 64-bit lane (only the low half of a lane holds a word), then 32 draws.
constexpr std::uint64_t kBlocks = 8;

// Looks rows up in memory.
struct GatheredRows {
  const std::uint32_t* rows;
  explicit GatheredRows(AliasTableView table) : rows(table.rows) {}
  __m512i operator()(__m512i column) const { return _mm512_i32gather_epi32(column, rows, 4); }
};

// Up to 128 rows fit into registers, where looking up takes four permutations and a choice by the high bits.
struct HeldRows {
  __m512i rows[8];
  explicit HeldRows(AliasTableView table) {
    const std::uint32_t columns = std::uint32_t{1} << (32 - table.shift);
    for (std::uint32_t i = 0; i < 8; ++i) {
      const std::uint32_t left = columns > 16 * i ? columns - 16 * i : 0;
      const auto valid = static_cast<__mmask16>(left >= 16 ? 0xFFFF : (1u << left) - 1);
      rows[i] = _mm512_maskz_loadu_epi32(valid, table.rows + 16 * i);
    }
  }
  __m512i operator()(__m512i column) const {
    const auto quarter = [&](int i) { return _mm512_permutex2var_epi32(rows[2 * i], column, rows[2 * i + 1]); };
    const __mmask16 odd = _mm512_test_epi32_mask(column, _mm512_set1_epi32(32));
    const __mmask16 upper = _mm512_test_epi32_mask(column, _mm512_set1_epi32(64));
    return _mm512_mask_blend_epi32(upper, _mm512_mask_blend_epi32(odd, quarter(0), quarter(1)),
                                   _mm512_mask_blend_epi32(odd, quarter(2), quarter(3)));
  }
};

template <class Rows>
void draw_blocks(AliasTableView table, const Rows& rows, std::uint64_t seed, std::uint64_t block, std::int32_t* out) {
  const __m512i low = _mm512_set1_epi64(0xffffffff);
  const __m512i multiplier0 = _mm512_set1_epi64(0xD2511F53), multiplier1 = _mm512_set1_epi64(0xCD9E8D57);
  // Lane order 0 4 1 5 2 6 3 7, so that the interleaving below puts the blocks in sequence.
  const __m512i counter =
      _mm512_add_epi64(_mm512_set1_epi64(static_cast<long long>(block)), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
  __m512i c0 = _mm512_and_si512(counter, low), c1 = _mm512_srli_epi64(counter, 32);
  __m512i c2 = _mm512_set1_epi64(static_cast<long long>(Stream::draw)), c3 = _mm512_setzero_si512();
  auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  // The product's low half needs no masking: the multiplication reads only the low half of a lane, and the high half
  // that comes along is shifted out or masked at the end.
  for (int round = 0; round < 10; ++round) {
    const __m512i a = _mm512_mul_epu32(multiplier0, c0), b = _mm512_mul_epu32(multiplier1, c2);
    c0 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(b, 32), c1, _mm512_set1_epi64(key0), 0x96);
    c2 = _mm512_ternarylogic_epi64(_mm512_srli_epi64(a, 32), c3, _mm512_set1_epi64(key1), 0x96);
    c1 = b;
    c3 = a;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  const __mmask16 odd = 0xAAAA;
  const __m512i words01 = _mm512_mask_shuffle_epi32(c0, odd, c1, _MM_PERM_CCAA);  // w0 | w1 << 32
  const __m512i words23 = _mm512_mask_shuffle_epi32(c2, odd, c3, _MM_PERM_CCAA);
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(table.shift));
  const __m512i mask = _mm512_set1_epi32(static_cast<int>((1u << table.shift) - 1));
  const auto pick = [&](__m512i random) {
    const __m512i column = _mm512_srl_epi32(random, shift);
    const __m512i row = rows(column);
    const __mmask16 keep = _mm512_cmplt_epu32_mask(_mm512_and_si512(random, mask), _mm512_and_si512(row, mask));
    return _mm512_mask_mov_epi32(_mm512_srl_epi32(row, shift), keep, column);
  };
  _mm512_storeu_si512(out, pick(_mm512_unpacklo_epi64(words01, words23)));
  _mm512_storeu_si512(out + 16, pick(_mm512_unpackhi_epi64(words01, words23)));
}

#elif defined(PYCOOLDOWN_ISA_avx2)

// The same with four blocks and 16 draws.
constexpr std::uint64_t kBlocks = 4;

void draw_blocks(AliasTableView table, std::uint64_t seed, std::uint64_t block, std::int32_t* out) {
  const __m256i low = _mm256_set1_epi64x(0xffffffff);
  const __m256i multiplier0 = _mm256_set1_epi64x(0xD2511F53), multiplier1 = _mm256_set1_epi64x(0xCD9E8D57);
  const __m256i counter =
      _mm256_add_epi64(_mm256_set1_epi64x(static_cast<long long>(block)), _mm256_setr_epi64x(0, 2, 1, 3));
  __m256i c0 = _mm256_and_si256(counter, low), c1 = _mm256_srli_epi64(counter, 32);
  __m256i c2 = _mm256_set1_epi64x(static_cast<long long>(Stream::draw)), c3 = _mm256_setzero_si256();
  auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const __m256i a = _mm256_mul_epu32(multiplier0, c0), b = _mm256_mul_epu32(multiplier1, c2);
    c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(b, 32), c1), _mm256_set1_epi64x(key0));
    c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(a, 32), c3), _mm256_set1_epi64x(key1));
    c1 = b;
    c3 = a;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  const __m256i words01 = _mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0xAA);
  const __m256i words23 = _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0xAA);
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(table.shift));
  const __m256i mask = _mm256_set1_epi32(static_cast<int>((1u << table.shift) - 1));
  const auto pick = [&](__m256i random) {
    const __m256i column = _mm256_srl_epi32(random, shift);
    const __m256i row = _mm256_i32gather_epi32(reinterpret_cast<const int*>(table.rows), column, 4);
    // Both sides are below 2^31 (there are at least two columns), so a signed comparison serves.
    const __m256i keep = _mm256_cmpgt_epi32(_mm256_and_si256(row, mask), _mm256_and_si256(random, mask));
    return _mm256_blendv_epi8(_mm256_srl_epi32(row, shift), column, keep);
  };
  auto* to = reinterpret_cast<__m256i*>(out);
  _mm256_storeu_si256(to, pick(_mm256_unpacklo_epi64(words01, words23)));
  _mm256_storeu_si256(to + 1, pick(_mm256_unpackhi_epi64(words01, words23)));
}

#else

constexpr std::uint64_t kBlocks = 1;

void draw_blocks(AliasTableView table, std::uint64_t seed, std::uint64_t block, std::int32_t* out) {
  const Block random = random_block(seed, Stream::draw, block);
  for (int word = 0; word < 4; ++word) out[word] = static_cast<std::int32_t>(table.pick(random.word[word]));
}

#endif

}  // namespace

void draw_range(AliasTableView table, std::uint64_t seed, std::uint64_t begin, std::uint64_t end, std::int32_t* out) {
  const auto single = [&](std::uint64_t i) {
    return static_cast<std::int32_t>(table.pick(random_block(seed, Stream::draw, i / 4).word[i % 4]));
  };
  std::uint64_t i = begin;
  for (; i < end && i % 4 != 0; ++i) *out++ = single(i);
  const auto whole_blocks = [&](const auto& draw) {
    for (; end - i >= 4 * kBlocks; i += 4 * kBlocks, out += 4 * kBlocks) draw(i / 4);  // no sum, as it might wrap
  };
#if defined(PYCOOLDOWN_ISA_avx512)
  if (table.shift >= 32 - 7) {
    whole_blocks([&, rows = HeldRows(table)](std::uint64_t block) { draw_blocks(table, rows, seed, block, out); });
  } else {
    whole_blocks([&, rows = GatheredRows(table)](std::uint64_t block) { draw_blocks(table, rows, seed, block, out); });
  }
#else
  whole_blocks([&](std::uint64_t block) { draw_blocks(table, seed, block, out); });
#endif
  for (; i < end; ++i) *out++ = single(i);
}

}  // namespace pycooldown::PYCOOLDOWN_ISA
