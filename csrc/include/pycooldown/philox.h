// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11): a stateless
// random generator. Everything random in this package is a function of (seed, stream, index), so it can be computed in
// any order, on any thread or device.
#pragma once

#include <cstdint>

#include "pycooldown/macros.h"

namespace pycooldown {

// The streams of one seed, kept apart by the third word of the counter.
// Number 4 is taken by the seeds of passes (DomainBatchSampler.set_epoch).
enum class Stream : std::uint32_t {
  draw = 0,
  permutation = 1,
  systematic = 2,
  slots = 3,
  whole_blocks = 5,
  short_blocks = 6,
  groups = 7,
  given_away = 8,
};

struct Block {
  std::uint32_t word[4];
};

PYCOOLDOWN_HD Block philox(Block counter, std::uint32_t key0, std::uint32_t key1) {
  std::uint32_t c0 = counter.word[0], c1 = counter.word[1], c2 = counter.word[2], c3 = counter.word[3];
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t b = std::uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ key0;
    c1 = static_cast<std::uint32_t>(b);
    c2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ key1;
    c3 = static_cast<std::uint32_t>(a);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return Block{{c0, c1, c2, c3}};
}

// Block `index` of a stream: 128 random bits. `lane` is free for a second index (a domain, say).
PYCOOLDOWN_HD Block random_block(std::uint64_t seed, Stream stream, std::uint64_t index, std::uint32_t lane = 0) {
  const Block counter{{static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                       static_cast<std::uint32_t>(stream), lane}};
  return philox(counter, static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
}

}  // namespace pycooldown
