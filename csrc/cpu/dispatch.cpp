#include "dispatch.h"

#if defined(PYCOOLDOWN_HAVE_avx512)
#include <cpuid.h>
#endif

#include <cstdlib>
#include <stdexcept>

namespace pycooldown {

namespace {

#if defined(PYCOOLDOWN_HAVE_avx512)
struct Features {
  bool avx2, avx512;
};

// Uses cpuid directly: in code compiled by zig 0.17, __builtin_cpu_supports is always false.
Features detect() {
  unsigned eax, ebx, ecx, edx, saved, upper;
  constexpr unsigned kFirst = bit_OSXSAVE | bit_FMA | bit_F16C, kAvx2 = bit_AVX2 | bit_BMI2;
  constexpr unsigned kAvx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & kFirst) != kFirst) return {false, false};
  __asm__("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));  // which registers the operating system saves
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return {false, false};
  const bool avx2 = (saved & 0x06) == 0x06 && (ebx & kAvx2) == kAvx2;
  return {avx2, avx2 && (saved & 0xe6) == 0xe6 && (ebx & kAvx512) == kAvx512};
}
#endif

bool supported(Isa isa) {
#if defined(PYCOOLDOWN_HAVE_avx512)
  static const Features features = detect();
  if (isa == Isa::avx512) return features.avx512;
  if (isa == Isa::avx2) return features.avx2;
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
