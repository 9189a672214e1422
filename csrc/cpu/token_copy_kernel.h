// The inner loops of token streams. There is one definition per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pycooldown/token_reader.h"

#define PYCOOLDOWN_DECLARE(isa)                                                                            \
  namespace isa {                                                                                          \
  /* out[i] = in[i] of `count` tokens, to int64 if `wide`, else int32. Returns the largest token, where    \
     negative ones count as the largest of all. */                                                         \
  std::uint64_t copy_tokens(TokenType type, const std::byte* in, std::size_t count, bool wide, void* out); \
  /* out[i] = i */                                                                                         \
  void count_up(std::int32_t* out, std::size_t count);                                                     \
  }

namespace pycooldown {
PYCOOLDOWN_DECLARE(baseline)
PYCOOLDOWN_DECLARE(avx2)
PYCOOLDOWN_DECLARE(avx512)
}  // namespace pycooldown

#undef PYCOOLDOWN_DECLARE
