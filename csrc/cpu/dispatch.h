// The instruction set that the kernels use. Every kernel is defined in the namespaces baseline, avx2 and avx512.
#pragma once

#include <string>

namespace pycooldown {

enum class Isa { baseline, avx2, avx512 };

// The best set that this machine and this build support, or the one named by the environment variable PYCOOLDOWN_ISA.
// Read once per call, so that a test can force a set. Throws std::invalid_argument for an unknown or unsupported name.
Isa active_isa();

std::string isa_name(Isa isa);

}  // namespace pycooldown

// PYCOOLDOWN_DISPATCH(f)(args...) calls avx512::f, avx2::f or baseline::f.
#if defined(PYCOOLDOWN_HAVE_avx512)
#define PYCOOLDOWN_DISPATCH(function)                                         \
  (::pycooldown::active_isa() == ::pycooldown::Isa::avx512 ? avx512::function \
   : ::pycooldown::active_isa() == ::pycooldown::Isa::avx2 ? avx2::function   \
                                                           : baseline::function)
#else
#define PYCOOLDOWN_DISPATCH(function) (baseline::function)
#endif
