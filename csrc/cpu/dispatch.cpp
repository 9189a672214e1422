#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace pycooldown {

namespace {

bool supported(Isa isa) {
#if defined(PYCOOLDOWN_HAVE_avx512)
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                               __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  static const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::avx512) return has_avx512;
  if (isa == Isa::avx2) return has_avx2;
#endif
  return isa == Isa::baseline;
}

}  // namespace

std::string isa_name(Isa isa) { return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline"; }

Isa active_isa() {
  if (const char* forced = std::getenv("PYCOOLDOWN_ISA"); forced && *forced) {
    for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512}) {
      if (isa_name(isa) != forced) continue;
      if (supported(isa)) return isa;
      throw std::invalid_argument("PYCOOLDOWN_ISA=" + isa_name(isa) +
                                  " is not supported by this processor or build; unset it to choose automatically");
    }
    throw std::invalid_argument("PYCOOLDOWN_ISA must be baseline, avx2 or avx512, got '" + std::string(forced) + "'");
  }
  return supported(Isa::avx512) ? Isa::avx512 : supported(Isa::avx2) ? Isa::avx2 : Isa::baseline;
}

}  // namespace pycooldown
