#include "draw_kernel.h"

#include <cstring>

#include "pycooldown/philox.h"

#if defined(PYCOOLDOWN_ISA_avx2) || defined(PYCOOLDOWN_ISA_avx512)
#include <immintrin.h>
#endif

namespace pycooldown::PYCOOLDOWN_ISA {

namespace {

#if defined(PYCOOLDOWN_ISA_avx512)

// Eight Philox blocks at a time for 32 draws, one per 64-bit lane (only the low half of a lane holds a word). The upper
// half of the block numbers is constant within a call, so the compiler can move what depends only on it out of loops.
constexpr std::uint64_t kBlocks = 8;

// Looks rows up in memory.
struct GatheredRows {
  const std::uint32_t* rows;
  explicit GatheredRows(AliasTableView table) : rows(table.rows) {}
  __m512i operator()(__m512i column) const { return _mm512_i32gather_epi32(column, rows, 4); }
};

// Up to 128 rows fit into registers, where a lookup takes four permutations and a selection by the high bits.
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

using RoundKeys = std::uint64_t;  // the seed that they are made from

// The words of eight Philox blocks in sequence.
struct Words {
  __m512i part[2];
};

inline __attribute__((always_inline)) Words random_blocks(std::uint64_t seed, Stream stream, std::uint32_t low,
                                                          std::uint32_t high) {
  const __m512i multiplier0 = _mm512_set1_epi64(0xD2511F53), multiplier1 = _mm512_set1_epi64(0xCD9E8D57);
  // Lane order 0 4 1 5 2 6 3 7, so that the interleaving below puts the blocks in sequence.
  __m512i c0 = _mm512_add_epi64(_mm512_set1_epi64(low), _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7));
  __m512i c1 = _mm512_set1_epi64(high);
  __m512i c2 = _mm512_set1_epi64(static_cast<long long>(stream)), c3 = _mm512_setzero_si512();
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
  return {{_mm512_unpacklo_epi64(words01, words23), _mm512_unpackhi_epi64(words01, words23)}};
}

template <class Rows>
void draw_blocks(AliasTableView table, const Rows& rows, const Words& random, std::int32_t* out) {
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(table.shift));
  const __m512i mask = _mm512_set1_epi32(static_cast<int>((1u << table.shift) - 1));
  for (const __m512i part : random.part) {
    const __m512i column = _mm512_srl_epi32(part, shift);
    const __m512i row = rows(column);
    const __mmask16 keep = _mm512_cmplt_epu32_mask(_mm512_and_si512(part, mask), _mm512_and_si512(row, mask));
    _mm512_storeu_si512(out, _mm512_mask_mov_epi32(_mm512_srl_epi32(row, shift), keep, column));
    out += 16;
  }
}

#elif defined(PYCOOLDOWN_ISA_avx2)

// The same with two groups of four blocks that alternate, because one group alone would wait for its multiplications.
constexpr std::uint64_t kBlocks = 8;

struct Words {
  __m256i part[4];
};

// The keys of all rounds, in each lane.
struct RoundKeys {
  __m256i key[10][2];
  explicit RoundKeys(std::uint64_t seed) {
    auto key0 = static_cast<std::uint32_t>(seed), key1 = static_cast<std::uint32_t>(seed >> 32);
    for (auto& of_round : key) {
      of_round[0] = _mm256_set1_epi64x(key0);
      of_round[1] = _mm256_set1_epi64x(key1);
      key0 += 0x9E3779B9u;
      key1 += 0xBB67AE85u;
    }
  }
};

inline __attribute__((always_inline)) Words random_blocks(const RoundKeys& keys, Stream stream, std::uint32_t low,
                                                          std::uint32_t high) {
  const __m256i multiplier0 = _mm256_set1_epi64x(0xD2511F53), multiplier1 = _mm256_set1_epi64x(0xCD9E8D57);
  __m256i c0[2], c1[2], c2[2], c3[2];
  for (int group = 0; group < 2; ++group) {
    c0[group] = _mm256_add_epi64(_mm256_set1_epi64x(low),
                                 _mm256_setr_epi64x(4 * group, 4 * group + 2, 4 * group + 1, 4 * group + 3));
    c1[group] = _mm256_set1_epi64x(high);
    c2[group] = _mm256_set1_epi64x(static_cast<long long>(stream));
    c3[group] = _mm256_setzero_si256();
  }
  for (const auto& key : keys.key) {
    for (int group = 0; group < 2; ++group) {
      const __m256i a = _mm256_mul_epu32(multiplier0, c0[group]), b = _mm256_mul_epu32(multiplier1, c2[group]);
      c0[group] = _mm256_xor_si256(_mm256_srli_epi64(b, 32), _mm256_xor_si256(c1[group], key[0]));
      c2[group] = _mm256_xor_si256(_mm256_srli_epi64(a, 32), _mm256_xor_si256(c3[group], key[1]));
      c1[group] = b;
      c3[group] = a;
    }
  }
  Words words;
  for (int group = 0; group < 2; ++group) {
    const __m256i words01 = _mm256_blend_epi32(c0[group], _mm256_slli_epi64(c1[group], 32), 0xAA);
    const __m256i words23 = _mm256_blend_epi32(c2[group], _mm256_slli_epi64(c3[group], 32), 0xAA);
    words.part[2 * group] = _mm256_unpacklo_epi64(words01, words23);
    words.part[2 * group + 1] = _mm256_unpackhi_epi64(words01, words23);
  }
  return words;
}

// Looks rows up one by one, because gathers are slow on many processors without AVX-512. Columns leave the vector two
// at a time; storing all of them and loading each would take longer.
struct LoadedRows {
  const std::uint32_t* rows;
  explicit LoadedRows(AliasTableView table) : rows(table.rows) {}
  __m256i operator()(__m256i columns) const {
    const __m128i low = _mm256_castsi256_si128(columns), high = _mm256_extracti128_si256(columns, 1);
    const std::int64_t pairs[4] = {_mm_cvtsi128_si64(low), _mm_extract_epi64(low, 1),  //
                                   _mm_cvtsi128_si64(high), _mm_extract_epi64(high, 1)};
    const auto row = [&](int i) {
      const auto pair = static_cast<std::uint64_t>(pairs[i / 2]);
      return static_cast<int>(rows[i % 2 == 0 ? pair & 0xffffffff : pair >> 32]);
    };
    return _mm256_setr_epi32(row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7));
  }
};

template <class Rows>
void draw_blocks(AliasTableView table, const Rows& rows, const Words& random, std::int32_t* out) {
  const __m128i shift = _mm_cvtsi32_si128(static_cast<int>(table.shift));
  const __m256i mask = _mm256_set1_epi32(static_cast<int>((1u << table.shift) - 1));
  for (const __m256i part : random.part) {
    const __m256i column = _mm256_srl_epi32(part, shift);
    const __m256i row = rows(column);
    // Both sides are below 2^31 (there are at least two columns), so a signed comparison is correct.
    const __m256i keep = _mm256_cmpgt_epi32(_mm256_and_si256(row, mask), _mm256_and_si256(part, mask));
    const __m256i drawn = _mm256_blendv_epi8(_mm256_srl_epi32(row, shift), column, keep);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), drawn);
    out += 8;
  }
}

#else

constexpr std::uint64_t kBlocks = 1;

using Words = Block;
using RoundKeys = std::uint64_t;  // the seed that they are made from

inline __attribute__((always_inline)) Words random_blocks(std::uint64_t seed, Stream stream, std::uint32_t low,
                                                          std::uint32_t high) {
  return random_block(seed, stream, std::uint64_t{high} << 32 | low);
}

struct LoadedRows {
  explicit LoadedRows(AliasTableView) {}
};

void draw_blocks(AliasTableView table, const LoadedRows&, const Words& random, std::int32_t* out) {
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
  const auto whole_blocks = [&](const auto& rows) {
    if (end - i < 4 * kBlocks) return;
    const RoundKeys keys(seed);
    const auto high = static_cast<std::uint32_t>(i / 4 >> 32);
    for (; end - i >= 4 * kBlocks; i += 4 * kBlocks, out += 4 * kBlocks)  // not a sum, which might wrap
      draw_blocks(table, rows, random_blocks(keys, Stream::draw, static_cast<std::uint32_t>(i / 4), high), out);
  };
#if defined(PYCOOLDOWN_ISA_avx512)
  if (table.shift >= 32 - 7) {
    whole_blocks(HeldRows(table));
  } else {
    whole_blocks(GatheredRows(table));
  }
#else
  whole_blocks(LoadedRows(table));
#endif
  for (; i < end; ++i) *out++ = single(i);
}

void random_words(std::uint64_t seed, Stream stream, std::uint64_t block, std::span<std::uint32_t> out) {
  const RoundKeys keys(seed);
  const auto high = static_cast<std::uint32_t>(block >> 32);
  const std::uint64_t blocks_of_high = (std::uint64_t{1} << 32) - (block & 0xffffffff);
  std::size_t i = 0;
  if (out.size() / 4 < blocks_of_high) {
    for (; out.size() - i >= 4 * kBlocks; i += 4 * kBlocks, block += kBlocks) {
      const Words words = random_blocks(keys, stream, static_cast<std::uint32_t>(block), high);
      static_assert(sizeof words == 16 * kBlocks);
      std::memcpy(out.data() + i, &words, sizeof words);
    }
  }
  for (; i < out.size(); ++block) {
    const Block words = random_block(seed, stream, block);
    for (std::size_t word = 0; word < 4 && i < out.size(); ++word) out[i++] = words.word[word];
  }
}

}  // namespace pycooldown::PYCOOLDOWN_ISA
