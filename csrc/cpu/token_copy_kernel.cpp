#include "token_copy_kernel.h"

#include <cstring>

namespace pycooldown::PYCOOLDOWN_ISA {

namespace {

// Tokens may lie at any address, because files of other projects do not align them. `Unsigned` is the unsigned type of
// the same size, in which negative tokens are large numbers.
template <class Token, class Unsigned, class Out>
std::uint64_t copy(const std::byte* __restrict in, std::size_t count, Out* __restrict out) {
  Unsigned largest = 0;
  for (std::size_t i = 0; i < count; ++i) {
    Token token;
    std::memcpy(&token, in + i * sizeof(Token), sizeof(Token));
    const auto bits = static_cast<Unsigned>(token);
    largest = bits > largest ? bits : largest;
    out[i] = static_cast<Out>(token);
  }
  return largest;
}

template <class Token, class Unsigned>
std::uint64_t copy(const std::byte* in, std::size_t count, bool wide, void* out) {
  return wide ? copy<Token, Unsigned>(in, count, static_cast<std::int64_t*>(out))
              : copy<Token, Unsigned>(in, count, static_cast<std::int32_t*>(out));
}

}  // namespace

std::uint64_t copy_tokens(TokenType type, const std::byte* in, std::size_t count, bool wide, void* out) {
  switch (type) {
    case TokenType::u8:
      return copy<std::uint8_t, std::uint8_t>(in, count, wide, out);
    case TokenType::i8:
      return copy<std::int8_t, std::uint8_t>(in, count, wide, out);
    case TokenType::u16:
      return copy<std::uint16_t, std::uint16_t>(in, count, wide, out);
    case TokenType::i16:
      return copy<std::int16_t, std::uint16_t>(in, count, wide, out);
    case TokenType::u32:
      return copy<std::uint32_t, std::uint32_t>(in, count, wide, out);
    case TokenType::i32:
      return copy<std::int32_t, std::uint32_t>(in, count, wide, out);
    case TokenType::i64:
      break;
  }
  return copy<std::int64_t, std::uint64_t>(in, count, wide, out);
}

void count_up(std::int32_t* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<std::int32_t>(i);
}

}  // namespace pycooldown::PYCOOLDOWN_ISA
