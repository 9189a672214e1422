// The two 16-bit floating point formats as bit patterns, with scalar conversions that round to nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>

namespace pycooldown {

struct Bf16 {
  std::uint16_t bits;
};

struct F16 {
  std::uint16_t bits;
};

inline float to_float(float x) { return x; }

inline float to_float(Bf16 x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x.bits) << 16); }

inline float to_float(F16 x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000) << 16;
  std::uint32_t rest = static_cast<std::uint32_t>(x.bits & 0x7fff) << 13;
  if (rest >= 0x0f800000) return std::bit_cast<float>(sign | (rest + 0x70000000));  // infinity and NaN
  // A product with 2^112 moves the exponent bias from 15 to 127, subnormal numbers included.
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(std::bit_cast<float>(rest) * 0x1p112f));
}

template <class T>
T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

template <>
inline Bf16 from_float<Bf16>(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (x != x) return {static_cast<std::uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<std::uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <>
inline F16 from_float<F16>(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000);
  const std::uint32_t rest = bits & 0x7fffffff;
  const auto with_sign = [sign](std::uint32_t magnitude) { return F16{static_cast<std::uint16_t>(sign | magnitude)}; };
  if (rest > 0x7f800000) return with_sign(0x7e00);
  if (rest >= 0x477ff000) return with_sign(0x7c00);  // 65520 and more round to infinity
  if (rest < 0x38800000) {                           // subnormal: let the addition of 1/2 round at bit 2^-24
    const float shifted = std::bit_cast<float>(rest) + 0.5f;
    return with_sign(std::bit_cast<std::uint32_t>(shifted) - 0x3f000000);
  }
  return with_sign((rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13);
}

}  // namespace pycooldown
