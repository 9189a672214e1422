// SmallCrush (L'Ecuyer and Simard, "TestU01", ACM TOMS 2007) over the words that draws are made of, in their order, and
// over the same words with their bits reversed, since most of its tests look at the high bits alone. Exits with 1 if a
// p-value lies outside [1e-4, 1 - 1e-4]. The words are fixed by their seeds: each run gives the same answer.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "pycooldown/philox.h"

extern "C" {
#include <testu01/bbattery.h>
#include <testu01/swrite.h>
#include <testu01/unif01.h>
}

namespace {

using namespace pycooldown;

std::uint64_t seed, number;
Stream stream;
Block block;

unsigned next_word() {
  if (number % 4 == 0) block = random_block(seed, stream, number / 4);
  return block.word[number++ % 4];
}

unsigned next_reversed() {
  unsigned in = next_word(), out = 0;
  for (int bit = 0; bit < 32; ++bit, in >>= 1) out = out << 1 | (in & 1u);
  return out;
}

bool passes(const char* name, unsigned (*next)(), std::uint64_t with_seed, Stream of_stream) {
  seed = with_seed;
  stream = of_stream;
  number = 0;
  char text[100];
  std::snprintf(text, sizeof text, "%s of stream %u, seed %llu", name, static_cast<unsigned>(of_stream),
                static_cast<unsigned long long>(with_seed));
  unif01_Gen* generator = unif01_CreateExternGenBits(text, next);
  bbattery_SmallCrush(generator);
  unif01_DeleteExternGenBits(generator);
  bool good = bbattery_NTests > 0;
  for (int i = 0; i < bbattery_NTests; ++i) good = good && bbattery_pVal[i] >= 1e-4 && bbattery_pVal[i] <= 1 - 1e-4;
  return good;
}

}  // namespace

int main() {
  swrite_Basic = FALSE;  // summaries only
  bool good = true;
  for (const std::uint64_t with_seed : {std::uint64_t{0}, std::uint64_t{1} << 63 | 5}) {
    for (const Stream of_stream : {Stream::draw, Stream::slots}) {
      good &= passes("words", next_word, with_seed, of_stream);
      good &= passes("reversed words", next_reversed, with_seed, of_stream);
    }
  }
  return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
