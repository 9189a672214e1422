// out[i - begin] = draw number i, for i in [begin, end), a part of a range of 2^34 that begins at a multiple of 2^34;
// and the words of a stream of random blocks from `block` on, in sequence. One definition per instruction set.
#pragma once

#include <span>

#include "pycooldown/alias_table.h"
#include "pycooldown/philox.h"

#define PYCOOLDOWN_DECLARE(isa)                                                                            \
  namespace isa {                                                                                          \
  void draw_range(AliasTableView table, std::uint64_t seed, std::uint64_t begin, std::uint64_t end,        \
                  std::int32_t* out);                                                                      \
  void random_words(std::uint64_t seed, Stream stream, std::uint64_t block, std::span<std::uint32_t> out); \
  }

namespace pycooldown {
PYCOOLDOWN_DECLARE(baseline)
PYCOOLDOWN_DECLARE(avx2)
PYCOOLDOWN_DECLARE(avx512)
}  // namespace pycooldown

#undef PYCOOLDOWN_DECLARE
