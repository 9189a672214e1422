// out[i - begin] = draw number i, for i in [begin, end). One definition per instruction set.
#pragma once

#include "pycooldown/alias_table.h"

#define PYCOOLDOWN_DECLARE(isa)                                                                     \
  namespace isa {                                                                                   \
  void draw_range(AliasTableView table, std::uint64_t seed, std::uint64_t begin, std::uint64_t end, \
                  std::int32_t* out);                                                               \
  }

namespace pycooldown {
PYCOOLDOWN_DECLARE(baseline)
PYCOOLDOWN_DECLARE(avx2)
PYCOOLDOWN_DECLARE(avx512)
}  // namespace pycooldown

#undef PYCOOLDOWN_DECLARE
