#include "pycooldown/batch_plan.h"

#include <numeric>
#include <stdexcept>
#include <string>

namespace pycooldown {

namespace {

void allocate_systematic(const AliasTable& table, std::uint64_t seed, std::uint64_t step,
                         std::span<std::int32_t> domain_ids) {
  const auto weights = table.weights();
  const std::uint64_t num_domains = weights.size(), batch_size = domain_ids.size();
  const Permutation slot(seed, Stream::slots, step, 0, batch_size);
  const Block random = random_block(seed, Stream::systematic, step);

  // The order of the domains: i -> (multiplier * i + start) mod K with a random multiplier coprime to K, which costs
  // one addition per domain.
  std::uint64_t multiplier = random.word[2] % num_domains;
  while (std::gcd(multiplier, num_domains) != 1) multiplier = (multiplier + 1) % num_domains;
  std::uint64_t domain = random.word[1] % num_domains;

  // In units of 2^-32 samples: domain i owns [C_{i-1}, C_i) with C = cumsum(B q) + offset, and gets as many samples as
  // this interval has whole numbers. B * weight cannot overflow: batch_size < 2^31 and weights sum to 2^32.
  std::uint64_t cumulative = random.word[0], filled = 0;
  for (std::uint64_t i = 0; i < num_domains; ++i) {
    cumulative += batch_size * weights[domain];
    for (; filled < cumulative >> 32; ++filled) domain_ids[slot(filled)] = static_cast<std::int32_t>(domain);
    domain += multiplier;
    if (domain >= num_domains) domain -= num_domains;
  }
}

}  // namespace

void allocate(const AliasTable& table, Allocation allocation, std::uint64_t seed, std::uint64_t step,
              std::span<std::int32_t> domain_ids) {
  switch (allocation) {
    case Allocation::multinomial:
      return draw(table.view(), seed, step * domain_ids.size(), domain_ids, 1);
    case Allocation::systematic:
      return allocate_systematic(table, seed, step, domain_ids);
  }
}

DomainCursors::DomainCursors(std::span<const std::int64_t> sizes, std::uint64_t seed, bool shuffle)
    : seed_(seed), shuffle_(shuffle) {
  std::uint64_t first_index = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] <= 0) {
      throw std::invalid_argument("sizes[" + std::to_string(i) + "] = " + std::to_string(sizes[i]) +
                                  "; expected a positive number of samples");
    }
    const auto size = static_cast<std::uint64_t>(sizes[i]);
    const auto lane = static_cast<std::uint32_t>(i);
    domains_.push_back({size, first_index, 0, 0, 0, Permutation(seed, Stream::permutation, 0, lane, size)});
    first_index += size;
  }
}

std::vector<std::int64_t> DomainCursors::counts() const {
  std::vector<std::int64_t> counts;
  for (const Domain& d : domains_) counts.push_back(static_cast<std::int64_t>(d.epoch * d.size + d.position));
  return counts;
}

void DomainCursors::set_counts(std::span<const std::int64_t> counts) {
  if (counts.size() != domains_.size()) {
    throw std::invalid_argument("counts has " + std::to_string(counts.size()) + " entries; expected one for each of " +
                                std::to_string(domains_.size()) + " domains");
  }
  for (std::size_t i = 0; i < counts.size(); ++i) {
    if (counts[i] < 0) {
      throw std::invalid_argument("counts[" + std::to_string(i) + "] = " + std::to_string(counts[i]) +
                                  "; expected a number of draws >= 0");
    }
    domains_[i].epoch = static_cast<std::uint64_t>(counts[i]) / domains_[i].size;
    domains_[i].position = static_cast<std::uint64_t>(counts[i]) % domains_[i].size;
  }
}

void DomainCursors::advance(std::span<const std::int32_t> domain_ids, std::size_t begin, std::size_t end,
                            std::span<std::int64_t> indices, std::span<std::int64_t> epochs) {
  for (std::size_t slot = 0; slot < domain_ids.size(); ++slot) {
    const auto lane = static_cast<std::uint32_t>(domain_ids[slot]);
    Domain& d = domains_[lane];
    if (slot >= begin && slot < end) {
      std::uint64_t position = d.position;
      if (shuffle_) {
        if (d.permuted_epoch != d.epoch) {
          d.permutation = Permutation(seed_, Stream::permutation, d.epoch, lane, d.size);
          d.permuted_epoch = d.epoch;
        }
        position = d.permutation(position);
      }
      indices[slot - begin] = static_cast<std::int64_t>(d.first_index + position);
      epochs[slot - begin] = static_cast<std::int64_t>(d.epoch);
    }
    if (++d.position == d.size) {
      d.position = 0;
      ++d.epoch;
    }
  }
}

void DomainCursors::advance(std::span<const std::int32_t> domain_ids) { advance(domain_ids, 0, 0, {}, {}); }

}  // namespace pycooldown
