// Walker's alias method with Vose's construction (IEEE TSE 1991), in integers. Probabilities are first rounded to
// integer weights that sum to 2^32. The table realises these weights exactly, so the probabilities of draws can be read
// back bit for bit. One row is 32 bits: with 2^b columns, the low 32 - b bits are the column's threshold and the high b
// bits its alias. One random word serves as column (high bits) and fraction (low bits).
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "pycooldown/macros.h"

namespace pycooldown {

// A plain struct, passed by value to kernels on host and device.
struct AliasTableView {
  const std::uint32_t* rows;
  std::uint32_t shift;  // 32 - b

  PYCOOLDOWN_HD std::uint32_t pick(std::uint32_t random) const {
    const std::uint32_t mask = (std::uint32_t{1} << shift) - 1;
    const std::uint32_t column = random >> shift;
    const std::uint32_t row = rows[column];
    return (random & mask) < (row & mask) ? column : row >> shift;
  }
};

class AliasTable {
 public:
  // Integer weights are spread over this many units.
  static constexpr std::uint64_t kUnits = std::uint64_t{1} << 32;
  static constexpr std::size_t kMaxOutcomes = std::size_t{1} << 24;

  // Non-negative weights, not necessarily normalised. Each positive one keeps at least one unit, so no wanted outcome
  // becomes impossible. Throws std::invalid_argument.
  explicit AliasTable(std::span<const double> probabilities);

  // The table for draws. The first call builds it, because allocations that only count do not need it. Thread-safe.
  AliasTableView view() const;
  // Outcome i is drawn with probability weights()[i] / kUnits exactly.
  std::span<const std::uint64_t> weights() const { return weights_; }

 private:
  void build_rows() const;

  std::vector<std::uint64_t> weights_;
  mutable std::once_flag rows_built_;
  mutable std::vector<std::uint32_t> rows_;
  mutable std::uint32_t shift_ = 0;
};

// out[i] = draw number offset + i of this seed: word (offset + i) % 4 of Philox block (offset + i) / 4.
// num_threads = 0 uses every hardware thread. The same bits on every instruction set and thread count. Throws
// std::invalid_argument beyond draw number 2^64 - 2.
void draw(AliasTableView table, std::uint64_t seed, std::uint64_t offset, std::span<std::int32_t> out, int num_threads);

}  // namespace pycooldown
