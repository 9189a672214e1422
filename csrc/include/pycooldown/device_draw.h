// Draws on a device: the work of each thread of a grid. It depends only on the thread's number, so the host can do the
// same work thread by thread and compare.
#pragma once

#include <cstdint>

#include "pycooldown/alias_table.h"
#include "pycooldown/philox.h"

namespace pycooldown {

// Writes the draws of a whole Philox block to a place that is aligned to 16 bytes, on a device in one store.
PYCOOLDOWN_HD void store_block(const std::int32_t (&drawn)[4], std::int32_t* out) {
#ifdef __CUDA_ARCH__
  __stcs(reinterpret_cast<int4*>(out), make_int4(drawn[0], drawn[1], drawn[2], drawn[3]));  // nvcc splits other stores
#else
  for (int word = 0; word < 4; ++word) out[word] = drawn[word];
#endif
}

// How many threads share draws [offset, offset + n): one for each Philox block that has some of them.
PYCOOLDOWN_HD std::uint64_t num_draw_threads(std::uint64_t offset, std::uint64_t n) {
  return n == 0 ? 0 : (offset % 4 + n - 1) / 4 + 1;
}

// Writes the draws of Philox block offset / 4 + thread that lie in [offset, offset + n) to out, where draw `offset` is
// the first.
PYCOOLDOWN_HD void draw_as_thread(AliasTableView table, std::uint64_t seed, std::uint64_t offset, std::uint64_t n,
                                  std::uint64_t thread, std::int32_t* out) {
  const Block random = random_block(seed, Stream::draw, offset / 4 + thread);
  const std::uint64_t first = 4 * thread - offset % 4;  // place of the block's word 0; of thread 0 it may wrap below 0
  std::int32_t drawn[4];
  for (int word = 0; word < 4; ++word) drawn[word] = static_cast<std::int32_t>(table.pick(random.word[word]));
  const bool whole = first < n && n - first >= 4;
  if (whole && reinterpret_cast<std::uintptr_t>(out + first) % sizeof(drawn) == 0) {
    store_block(drawn, out + first);
    return;
  }
  for (std::uint64_t word = 0; word < 4; ++word) {
    if (first + word < n) out[first + word] = drawn[word];
  }
}

}  // namespace pycooldown
