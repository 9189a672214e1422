// A keyed bijection on [0, n): a shuffle without memory. A Feistel network on the smallest sufficient number of bits, with
// cycle walking (Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002): apply it again until the
// value falls below n, fewer than two times on average.
#pragma once

#include <cstdint>

#include "pycooldown/macros.h"
#include "pycooldown/philox.h"

namespace pycooldown {

class Permutation {
 public:
  // n in [1, 2^62].
  PYCOOLDOWN_HD Permutation(std::uint64_t seed, Stream stream, std::uint64_t index, std::uint32_t lane,
                            std::uint64_t n)
      : size_(n) {
    int bits = 2;
    while (bits < 62 && (n - 1) >> bits) ++bits;
    low_bits_ = (bits + 1) / 2;
    low_mask_ = (std::uint64_t{1} << low_bits_) - 1;
    high_mask_ = (std::uint64_t{1} << (bits - low_bits_)) - 1;
    // Eight round keys from two blocks; the top bit of the index tells the second from the first.
    const Block first = random_block(seed, stream, index, lane);
    const Block second = random_block(seed, stream, index | std::uint64_t{1} << 63, lane);
    for (int i = 0; i < 4; ++i) {
      keys_[i] = first.word[i];
      keys_[i + 4] = second.word[i];
    }
  }

  PYCOOLDOWN_HD std::uint64_t operator()(std::uint64_t i) const {
    do {
      std::uint64_t low = i & low_mask_, high = i >> low_bits_;
      for (int round = 0; round < kRounds; round += 2) {
        high ^= mix(low, keys_[round]) & high_mask_;
        low ^= mix(high, keys_[round + 1]) & low_mask_;
      }
      i = high << low_bits_ | low;
    } while (i >= size_);
    return i;
  }

 private:
  static constexpr int kRounds = 8;

  // The high bits of a product depend on all bits of its factors, the low ones do not: hence the shift.
  PYCOOLDOWN_HD static std::uint64_t mix(std::uint64_t half, std::uint32_t key) {
    std::uint64_t x = ((half + key) ^ std::uint64_t{key} << 32) * 0x9E3779B97F4A7C15u;
    x ^= x >> 32;
    return (x * 0xD6E8FEB86659FD93u) >> 32;
  }

  std::uint64_t size_, low_mask_, high_mask_;
  int low_bits_;
  std::uint32_t keys_[8];
};

}  // namespace pycooldown
