// Checksums that only detect damage: any change of one word changes them.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>

namespace pycooldown {

// Each step is a bijection in the hash and in the word.
inline std::uint64_t checksum_step(std::uint64_t hash, std::uint64_t word) {
  hash = (hash ^ word) * 0x100000001b3u;
  return hash ^ hash >> 32;
}

// FNV-1a over 8-byte words.
inline std::uint64_t checksum(std::string_view bytes, std::uint64_t seed = 0) {
  std::uint64_t hash = 0xcbf29ce484222325u ^ seed;
  for (std::size_t at = 0; at < bytes.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min<std::size_t>(8, bytes.size() - at));
    hash = checksum_step(hash, word);
  }
  return hash;
}

// The same over eight interleaved stripes of words, so that the processor works on all of them in parallel.
inline std::uint64_t striped_checksum(std::string_view bytes) {
  constexpr std::size_t kStripes = 8, kBytes = 8 * kStripes;
  std::array<std::uint64_t, kStripes> words, hashes;
  for (std::size_t i = 0; i < kStripes; ++i) hashes[i] = checksum_step(bytes.size(), i + 1);
  std::size_t at = 0;
  for (; at + kBytes <= bytes.size(); at += kBytes) {
    std::memcpy(words.data(), bytes.data() + at, kBytes);
    for (std::size_t i = 0; i < kStripes; ++i) hashes[i] = checksum_step(hashes[i], words[i]);
  }
  return checksum(bytes.substr(at), checksum({reinterpret_cast<const char*>(hashes.data()), kBytes}));
}

}  // namespace pycooldown
