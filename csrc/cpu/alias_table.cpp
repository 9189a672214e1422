#include "pycooldown/alias_table.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "draw_kernel.h"
#include "parallel.h"

namespace pycooldown {

namespace {

// Largest-remainder rounding of probabilities to integers that sum to kUnits, at least 1 where positive.
std::vector<std::uint64_t> quantise(std::span<const double> probabilities) {
  double sum = 0, error = 0;  // Kahan's compensated sum
  for (std::size_t i = 0; i < probabilities.size(); ++i) {
    const double p = probabilities[i];
    if (!(p >= 0) || std::isinf(p)) {
      throw std::invalid_argument("probabilities[" + std::to_string(i) + "] = " + std::to_string(p) +
                                  "; expected finite non-negative numbers");
    }
    const double term = p - error, next = sum + term;
    error = (next - sum) - term;
    sum = next;
  }
  if (!(sum > 0) || std::isinf(sum)) {
    throw std::invalid_argument("probabilities sum to " + std::to_string(sum) +
                                "; expected a positive finite sum: give at least one outcome a positive probability");
  }
  std::vector<std::uint64_t> weights(probabilities.size());
  std::vector<double> remainder(probabilities.size());
  std::int64_t left = static_cast<std::int64_t>(AliasTable::kUnits);
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const double exact = probabilities[i] / sum * static_cast<double>(AliasTable::kUnits);
    const double rounded = probabilities[i] > 0 ? std::max(1.0, std::floor(exact)) : 0.0;
    weights[i] = static_cast<std::uint64_t>(rounded);
    remainder[i] = exact - rounded;
    left -= static_cast<std::int64_t>(rounded);
  }
  std::vector<std::size_t> order(weights.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (left > 0) {  // units lost to rounding down go to the largest remainders
    std::ranges::stable_sort(order, [&](auto a, auto b) { return remainder[a] > remainder[b]; });
    for (std::size_t k = 0; left > 0; k = (k + 1) % order.size()) {
      if (weights[order[k]] > 0) ++weights[order[k]], --left;
    }
  } else if (left < 0) {  // units given to tiny probabilities are taken from the largest
    std::ranges::stable_sort(order, [&](auto a, auto b) { return weights[a] > weights[b]; });
    for (std::size_t k = 0; left < 0; k = (k + 1) % order.size()) {
      if (weights[order[k]] > 1) --weights[order[k]], ++left;
    }
  }
  return weights;
}

}  // namespace

AliasTable::AliasTable(std::span<const double> probabilities) {
  if (probabilities.empty() || probabilities.size() > kMaxOutcomes) {
    throw std::invalid_argument("probabilities has " + std::to_string(probabilities.size()) +
                                " entries; expected 1 to " + std::to_string(kMaxOutcomes));
  }
  weights_ = quantise(probabilities);

  // Columns of 2^shift units each; at least two, so that a shift never reaches the word size.
  const auto columns = std::max<std::size_t>(2, std::bit_ceil(weights_.size()));
  shift_ = 32u - static_cast<std::uint32_t>(std::bit_width(columns) - 1);
  const std::uint64_t capacity = std::uint64_t{1} << shift_;

  std::vector<std::uint64_t> content(columns, 0);
  std::ranges::copy(weights_, content.begin());
  std::vector<std::uint32_t> small, large;
  rows_.resize(columns);
  for (std::uint32_t column = 0; column < columns; ++column) {
    rows_[column] = column << shift_;  // a full column is its own alias
    if (content[column] < capacity) small.push_back(column);
    if (content[column] > capacity) large.push_back(column);
  }
  while (!small.empty()) {
    const std::uint32_t column = small.back(), donor = large.back();
    small.pop_back();
    rows_[column] = donor << shift_ | static_cast<std::uint32_t>(content[column]);
    content[donor] -= capacity - content[column];
    if (content[donor] > capacity) continue;
    large.pop_back();
    if (content[donor] < capacity) small.push_back(donor);
  }
}

void draw(AliasTableView table, std::uint64_t seed, std::uint64_t offset, std::span<std::int32_t> out,
          int num_threads) {
  constexpr std::uint64_t kChunk = 1 << 16;  // a multiple of four: every chunk but the first starts a Philox block
  const auto kernel = PYCOOLDOWN_DISPATCH(draw_range);
  const std::uint64_t first = offset / kChunk, last = (offset + out.size() + kChunk - 1) / kChunk;
  parallel_for(static_cast<std::int64_t>(last - first), num_threads, [&](std::int64_t chunk) {
    const std::uint64_t begin = std::max(offset, (first + static_cast<std::uint64_t>(chunk)) * kChunk);
    const std::uint64_t end = std::min(offset + out.size(), (first + static_cast<std::uint64_t>(chunk) + 1) * kChunk);
    kernel(table, seed, begin, end, out.data() + (begin - offset));
  });
}

}  // namespace pycooldown
