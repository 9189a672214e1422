// positions[i] = (*permutations[i])(positions[i]), for i < count. One definition per instruction set.
#pragma once

#include <cstddef>

#include "pycooldown/permutation.h"

#define PYCOOLDOWN_DECLARE(isa)                                                                     \
  namespace isa {                                                                                   \
  void permute(const Permutation* const* permutations, std::int64_t* positions, std::size_t count); \
  }

namespace pycooldown {
PYCOOLDOWN_DECLARE(baseline)
PYCOOLDOWN_DECLARE(avx2)
PYCOOLDOWN_DECLARE(avx512)
}  // namespace pycooldown

#undef PYCOOLDOWN_DECLARE
