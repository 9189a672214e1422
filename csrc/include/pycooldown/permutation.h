// A keyed bijection on [0, n): a shuffle without memory. It is a Feistel network on pairs (high, low) with low < 2^b
// and high < h, where h is the least number with h 2^b >= n. For the few results beyond n, the network is applied again
// (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002). Since h need not be a power
// of two, such results are rare.
#pragma once

#include <cstdint>

#include "pycooldown/macros.h"
#include "pycooldown/philox.h"

namespace pycooldown {

// One cache line, which vector code loads as a whole.
struct alignas(64) Permutation {
  std::uint32_t keys[8];
  std::uint64_t size, high_size, low_bits, low_mask;

  // n in [1, 2^62]. (stream, index, lane) identify the permutation, as they do a random block.
  PYCOOLDOWN_HD Permutation(std::uint64_t seed, Stream stream, std::uint64_t index, std::uint32_t lane, std::uint64_t n)
      : size(n) {
    std::uint64_t bits = 1;
    while (bits < 62 && (n - 1) >> bits) ++bits;
    low_bits = bits / 2;
    low_mask = (std::uint64_t{1} << low_bits) - 1;
    high_size = (n + low_mask) >> low_bits;
    // Eight keys from two blocks; the second one has the top bit of the index set.
    const Block first = random_block(seed, stream, index, lane);
    const Block second = random_block(seed, stream, index | std::uint64_t{1} << 63, lane);
    for (int i = 0; i < 4; ++i) {
      keys[i] = first.word[i];
      keys[i + 4] = second.word[i];
    }
  }

  PYCOOLDOWN_HD std::uint64_t operator()(std::uint64_t i) const {
    do {
      i = size >= 4096 ? network<6>(i) : size >= 64 ? network<8>(i) : network<24>(i);  // small sets need more rounds
    } while (i >= size);
    return i;
  }

 private:
  template <int kRounds>
  PYCOOLDOWN_HD std::uint64_t network(std::uint64_t i) const {
    std::uint64_t low = i & low_mask, high = i >> low_bits;
    for (int round = 0; round < kRounds; round += 2) {
      high += (mix(low + key(round)) * high_size) >> 32;
      const std::uint64_t wrapped = high - high_size;  // a huge number if high is below high_size
      high = wrapped < high ? wrapped : high;
      low ^= mix(high + key(round + 1)) & low_mask;
    }
    return high << low_bits | low;
  }

  PYCOOLDOWN_HD std::uint64_t key(int round) const {
    return keys[round & 7] + std::uint64_t{0x9E3779B9} * static_cast<std::uint64_t>(round >> 3);
  }

  // 32 random bits. The high bits of a product depend on all bits of its factors, the low ones do not: hence the
  // shifts.
  PYCOOLDOWN_HD static std::uint64_t mix(std::uint64_t x) {
    x *= 0x9E3779B97F4A7C15u;
    x ^= x >> 32;
    return (x * 0xD6E8FEB86659FD93u) >> 32;
  }
};

}  // namespace pycooldown
