// The alias table: built in linear time from probabilities, rounded to integers, and drawn from by the kernel of
// draw_kernel.cpp.
#include "pycooldown/alias_table.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "draw_kernel.h"
#include "parallel.h"

namespace pycooldown {

namespace {

constexpr double kExcluded = -2;  // the key of an entry that must not be taken

// Calls take(i) for the `count` entries with the largest keys, and among equal keys for the first ones. Keys lie in
// [low, high], or are kExcluded, which is smaller. Linear in the number of keys: buckets separate most of them.
template <class Take>
void take_largest(std::span<const double> keys, double low, double high, std::size_t count, const Take& take) {
  if (count == 0) return;
  constexpr std::size_t kBuckets = 1024;
  std::array<std::size_t, kBuckets> sizes{};
  std::vector<std::uint16_t> bucket_of(keys.size());
  const double scale = kBuckets / (high - low);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    bucket_of[i] = static_cast<std::uint16_t>(std::clamp((keys[i] - low) * scale, 0.0, kBuckets - 1.0));
    ++sizes[bucket_of[i]];
  }
  std::size_t bucket = kBuckets - 1;
  for (; sizes[bucket] < count; --bucket) count -= sizes[bucket];
  std::vector<std::size_t> in_bucket;
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (bucket_of[i] > bucket) take(i);
    if (bucket_of[i] == bucket) in_bucket.push_back(i);
  }
  const auto end = in_bucket.begin() + static_cast<std::ptrdiff_t>(count);
  std::ranges::nth_element(in_bucket, end - 1,
                           [&](auto a, auto b) { return keys[a] > keys[b] || (keys[a] == keys[b] && a < b); });
  std::for_each(in_bucket.begin(), end, take);
}

// Takes `excess` units from the weights above 1, in rounds of one unit from each of them. The last round takes only
// from the largest.
void take_back(std::span<std::uint64_t> weights, std::uint64_t excess) {
  const auto taken = [&](std::uint64_t rounds) {
    std::uint64_t sum = 0;
    for (const std::uint64_t weight : weights) sum += weight > 1 ? std::min(rounds, weight - 1) : 0;
    return sum;
  };
  std::uint64_t rounds = 0, too_many = excess + 1;  // by bisection, as one weight may have to give almost all
  if (taken(1) > excess) too_many = 1;
  while (too_many - rounds > 1) {
    const std::uint64_t middle = rounds + (too_many - rounds) / 2;
    (taken(middle) <= excess ? rounds : too_many) = middle;
  }
  excess -= taken(rounds);
  std::vector<double> keys(weights.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    keys[i] = weights[i] > rounds + 1 ? static_cast<double>(weights[i]) : kExcluded;
    weights[i] -= weights[i] > 1 ? std::min(rounds, weights[i] - 1) : 0;
  }
  take_largest(keys, 0, static_cast<double>(AliasTable::kUnits), excess, [&](std::size_t i) { --weights[i]; });
}

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
  std::vector<double> remainders(probabilities.size());
  std::int64_t left = static_cast<std::int64_t>(AliasTable::kUnits);
  std::int64_t num_positive = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const bool positive = probabilities[i] > 0;
    const double exact = probabilities[i] / sum * static_cast<double>(AliasTable::kUnits);
    const double rounded = positive ? std::max(1.0, std::floor(exact)) : 0.0;
    weights[i] = static_cast<std::uint64_t>(rounded);
    remainders[i] = positive ? exact - rounded : kExcluded;
    left -= static_cast<std::int64_t>(rounded);
    num_positive += positive;
  }
  if (left < 0) {  // units given to tiny probabilities are taken from the largest
    take_back(weights, static_cast<std::uint64_t>(-left));
  } else {  // units lost to rounding down go to the largest remainders
    if (const auto rounds = static_cast<std::uint64_t>(left / num_positive); rounds > 0) {
      for (std::size_t i = 0; i < weights.size(); ++i) weights[i] += probabilities[i] > 0 ? rounds : 0;
    }
    const auto count = static_cast<std::size_t>(left % num_positive);
    take_largest(remainders, -1, 1, count, [&](std::size_t i) { ++weights[i]; });
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
}

AliasTableView AliasTable::view() const {
  std::call_once(rows_built_, [this] { build_rows(); });
  return {rows_.data(), shift_};
}

void AliasTable::build_rows() const {
  // Columns of 2^shift units each; at least two, so that a shift never reaches the word size.
  const auto columns = std::max<std::size_t>(2, std::bit_ceil(weights_.size()));
  shift_ = 32u - static_cast<std::uint32_t>(std::bit_width(columns) - 1);
  const std::uint64_t capacity = std::uint64_t{1} << shift_;

  std::vector<std::uint64_t> content(columns, 0);
  std::ranges::copy(weights_, content.begin());
  // Two stacks in one array: small columns from its start, large ones from its end.
  std::vector<std::uint32_t> stacks(columns);
  std::size_t num_small = 0, first_large = columns;
  rows_.resize(columns);
  for (std::uint32_t column = 0; column < columns; ++column) {
    rows_[column] = column << shift_;  // a full column is its own alias
    if (content[column] < capacity) stacks[num_small++] = column;
    if (content[column] > capacity) stacks[--first_large] = column;
  }
  while (num_small > 0) {
    const std::uint32_t column = stacks[--num_small], donor = stacks[first_large];
    rows_[column] = donor << shift_ | static_cast<std::uint32_t>(content[column]);
    content[donor] -= capacity - content[column];
    if (content[donor] > capacity) continue;
    ++first_large;
    if (content[donor] < capacity) stacks[num_small++] = donor;
  }
}

void draw(AliasTableView table, std::uint64_t seed, std::uint64_t offset, std::span<std::int32_t> out,
          int num_threads) {
  if (out.size() > ~offset) {
    throw std::invalid_argument("offset = " + std::to_string(offset) + " and n = " + std::to_string(out.size()) +
                                "; expected draws before number 2^64 - 1");
  }
  if (out.empty()) return;
  constexpr std::uint64_t kChunk = 1 << 16;  // a multiple of four: every chunk but the first starts a Philox block
  const auto kernel = PYCOOLDOWN_DISPATCH(draw_range);
  const std::uint64_t end = offset + out.size(), first = offset / kChunk, last = (end - 1) / kChunk;
  parallel_for(static_cast<std::int64_t>(last - first + 1), num_threads, [&](std::int64_t number) {
    const std::uint64_t chunk = first + static_cast<std::uint64_t>(number);
    const std::uint64_t begin = std::max(offset, chunk * kChunk);
    kernel(table, seed, begin, chunk == last ? end : (chunk + 1) * kChunk, out.data() + (begin - offset));
  });
}

}  // namespace pycooldown
