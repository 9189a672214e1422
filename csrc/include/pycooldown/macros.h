// PYCOOLDOWN_HD marks a function for host and device. It is always inlined, so that no copy compiled for one
// instruction set can be linked into code for another.
#pragma once

#if defined(__CUDACC__)
#define PYCOOLDOWN_HD __host__ __device__ __forceinline__
#else
#define PYCOOLDOWN_HD inline __attribute__((always_inline))
#endif
