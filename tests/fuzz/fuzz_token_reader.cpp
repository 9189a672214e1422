// Gives the reader of tokens files, ends and rows of any kind for a number of seconds: nothing may be read or written
// out of bounds, and what it fills must be tokens, places and segments of a row.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <list>
#include <random>
#include <vector>

#include "pycooldown/token_reader.h"

namespace {

using namespace pycooldown;

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "broken: %s\n", what);
  std::abort();
}

class Case {
 public:
  explicit Case(std::uint64_t seed) : rng_(seed) {}

  // Whether the reader took it all.
  bool run() {
    TokenReader reader;
    try {
      for (std::uint64_t files = 1 + below(3); files > 0; --files) add_file(reader);
      fill(reader);
    } catch (const std::exception&) {  // which is how all that is wrong is to be reported
      return false;
    }
    return true;
  }

 private:
  std::uint64_t below(std::uint64_t n) { return rng_() % n; }
  bool one_in(std::uint64_t n) { return below(n) == 0; }

  void damage(std::vector<std::uint64_t>& numbers) {
    for (std::uint64_t& number : numbers)
      if (one_in(4)) number = one_in(3) ? rng_() : below(50);
  }

  void add_file(TokenReader& reader) {
    const auto type = static_cast<TokenType>(below(7));
    const std::uint64_t width = token_bytes(type), tokens = below(40);
    auto& bytes = bytes_.emplace_back(tokens * width + 1);  // one more, so that tokens may lie at odd places
    for (std::uint64_t i = 0; i < bytes.size(); ++i)
      bytes[i] = std::byte(i % width == 0 || one_in(50) ? below(100) : 0);
    auto &offsets = numbers_.emplace_back(), &block_ends = numbers_.emplace_back(), &ends = numbers_.emplace_back();
    for (std::uint64_t at = 0; at < tokens;) {
      offsets.push_back(at * width);
      block_ends.push_back(at += 1 + below(tokens - at));
    }
    if (!offsets.empty() && one_in(2)) offsets.back() += 1;
    for (std::uint64_t at = 0; at < tokens; ends.push_back(at)) at += below(1 + tokens - at);
    if (one_in(20)) damage(offsets);
    if (one_in(20)) damage(block_ends);
    if (one_in(3)) damage(ends);
    const std::uint64_t vocabulary_size = one_in(2) ? 100 : std::numeric_limits<std::uint64_t>::max();
    reader.add({"file", "", bytes, type, tokens, vocabulary_size, offsets, block_ends, ends});
  }

  void fill(const TokenReader& reader) {
    const bool whole_documents = one_in(2), wide = one_in(2);
    const auto length = static_cast<std::int64_t>(1 + below(12)), size = reader.size();
    const auto place = [&] {
      return one_in(30) || size == 0 ? static_cast<std::int64_t>(rng_()) : static_cast<std::int64_t>(below(size));
    };
    std::vector<std::int64_t> pieces{0}, begins, limits;
    for (std::uint64_t rows = below(5); rows > 0; --rows) {
      for (std::uint64_t count = whole_documents ? below(3) : 1; count > 0; --count) {
        begins.push_back(place());
        limits.push_back(one_in(5) ? place() : size);
      }
      pieces.push_back(static_cast<std::int64_t>(begins.size()));
    }
    const std::size_t values = (pieces.size() - 1) * length;
    std::vector<std::byte> ids(values * (wide ? 8 : 4)), labels(ids), shift_labels(ids);
    std::vector<std::int32_t> positions(values), segments(values);
    TokenRows rows{};
    rows.length = length;
    rows.pieces = pieces, rows.begins = begins, rows.limits = limits;
    rows.whole_documents = whole_documents, rows.across_documents = one_in(2), rows.wide = wide;
    rows.ids = ids.data();
    rows.positions = one_in(4) ? nullptr : positions.data();
    rows.segments = one_in(4) ? nullptr : segments.data();
    rows.labels = one_in(4) ? nullptr : labels.data();
    rows.shift_labels = one_in(4) ? nullptr : shift_labels.data();
    reader.fill(rows);
    for (std::size_t i = 0; i < values; ++i) {
      require(positions[i] >= 0 && positions[i] < length, "a position out of the row");
      require(segments[i] >= 0 && segments[i] <= length, "more segments than places");
      require(wide ? reinterpret_cast<std::int64_t*>(ids.data())[i] >= 0 : true, "a negative token");
    }
  }

  std::mt19937_64 rng_;
  std::list<std::vector<std::byte>> bytes_;  // which stay where they are
  std::list<std::vector<std::uint64_t>> numbers_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fprintf(stderr, "usage: %s seconds\n", argv[0]), 2;
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[1]));
  std::uint64_t runs = 0, taken = 0;
  for (; std::chrono::steady_clock::now() < end; ++runs) taken += Case(runs).run();
  std::printf("%lu cases, %lu of them read whole, nothing broken\n", runs, taken);
}
