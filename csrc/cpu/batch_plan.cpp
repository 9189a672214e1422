#include "pycooldown/batch_plan.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

namespace pycooldown {

namespace {

constexpr std::size_t kAhead = 12;
constexpr std::uint64_t kNoEpoch = ~std::uint64_t{0};
constexpr auto kUnits = static_cast<std::int64_t>(AliasTable::kUnits);

// In how many batches after that of `step` a domain will have earned `need` more units, as far ahead as can be told.
std::uint64_t batches_left(std::span<const Stage> stages, std::uint64_t step, std::uint64_t batch_size,
                           std::size_t domain, std::uint64_t need) {
  constexpr std::uint64_t kForever = (std::uint64_t{1} << 39) - 1;
  std::uint64_t begin = step + 1;
  for (const Stage& stage : stages) {
    const bool last = &stage == &stages.back();
    if (stage.end <= begin && !last) continue;
    if (const std::uint64_t rate = batch_size * stage.table->weights()[domain]; rate > 0) {
      const std::uint64_t batches = (need + rate - 1) / rate;
      if (last || batches <= stage.end - begin) return std::min(begin - (step + 1) + batches, kForever);
      need -= rate * (stage.end - begin);
    }
    begin = stage.end;
  }
  return kForever;
}

}  // namespace

BatchPlanner::BatchPlanner(std::span<const std::int64_t> sizes, Allocation allocation, std::int64_t batch_size,
                           std::uint64_t seed, bool shuffle)
    : sizes_(sizes.begin(), sizes.end()),
      credits_(sizes.size(), 0),
      allocation_(allocation),
      seed_(seed),
      shuffle_(shuffle) {
  if (batch_size < 1 || batch_size >= std::int64_t{1} << 31) {
    throw std::invalid_argument("batch_size = " + std::to_string(batch_size) + "; expected 1 to 2^31 - 1");
  }
  domain_ids_.resize(static_cast<std::size_t>(batch_size));
  std::uint64_t first_index = 0;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] <= 0) {
      throw std::invalid_argument("sizes[" + std::to_string(i) + "] = " + std::to_string(sizes[i]) +
                                  "; expected a positive number of samples");
    }
    const auto size = static_cast<std::uint64_t>(sizes[i]);
    const auto lane = static_cast<std::uint32_t>(i);
    domains_.push_back({size, first_index, 0, 0, 0, 0, Permutation(seed, Stream::permutation, 0, lane, size)});
    extents_.push_back({{0, size}});
    first_index += size;
  }
}

void BatchPlanner::set_extents(std::size_t domain, std::vector<Extent> extents) {
  const auto fail = [&](const std::string& what) {
    throw std::invalid_argument("extents of domain " + std::to_string(domain) + ": " + what);
  };
  if (domain >= num_domains()) fail("there are " + std::to_string(num_domains()) + " domains");
  const auto most = static_cast<std::uint64_t>(sizes_[domain]);
  if (extents.empty() || extents.front().first_draw != 0) fail("expected a first one from draw 0 on");
  for (std::size_t i = 0; i < extents.size(); ++i) {
    if (extents[i].size == 0 || extents[i].size > most) fail("expected sizes of 1 to " + std::to_string(most));
    if (i == 0) continue;
    const auto [first_draw, size] = extents[i - 1];
    if (extents[i].first_draw <= first_draw || (extents[i].first_draw - first_draw) % size != 0) {
      fail("draw " + std::to_string(extents[i].first_draw) + " begins no epoch after draw " +
           std::to_string(first_draw) + " at a size of " + std::to_string(size));
    }
  }
  extents_[domain] = std::move(extents);
  place(domain, domains_[domain].epoch_start + domains_[domain].position);
}

// Moves a domain to where it has been drawn so often.
void BatchPlanner::place(std::size_t domain, std::uint64_t draws) {
  Domain& d = domains_[domain];
  d.epoch = d.epoch_start = 0;
  d.permuted_epoch = kNoEpoch;
  for (const auto& [first_draw, size] : extents_[domain]) {
    if (first_draw > draws) break;
    if (first_draw > 0) d.epoch += (first_draw - d.epoch_start) / d.size;
    d.epoch_start = first_draw;
    d.size = size;
  }
  const std::uint64_t epochs = (draws - d.epoch_start) / d.size;
  d.epoch += epochs;
  d.epoch_start += epochs * d.size;
  d.position = draws - d.epoch_start;
}

std::vector<std::int64_t> BatchPlanner::counts() const {
  std::vector<std::int64_t> counts;
  counts.reserve(domains_.size());
  for (const Domain& d : domains_) counts.push_back(static_cast<std::int64_t>(d.epoch_start + d.position));
  return counts;
}

void BatchPlanner::seek(std::span<const std::int64_t> counts, std::span<const std::int64_t> credits) {
  if (counts.size() != num_domains() || credits.size() != num_domains()) {
    throw std::invalid_argument("got " + std::to_string(counts.size()) + " counts and " +
                                std::to_string(credits.size()) + " credits; expected one for each of " +
                                std::to_string(num_domains()) + " domains");
  }
  if (const auto negative = std::ranges::find_if(counts, [](auto n) { return n < 0; }); negative != counts.end()) {
    throw std::invalid_argument("counts has " + std::to_string(*negative) + "; expected numbers of draws >= 0");
  }
  if (const auto sum = std::accumulate(credits.begin(), credits.end(), std::int64_t{0}); sum != 0) {
    throw std::invalid_argument("credits sum to " + std::to_string(sum) + "; expected 0");
  }
  for (std::size_t i = 0; i < counts.size(); ++i) place(i, static_cast<std::uint64_t>(counts[i]));
  std::ranges::copy(credits, credits_.begin());
}

void BatchPlanner::plan(std::span<const Stage> stages, std::uint64_t step, std::size_t begin,
                        std::span<std::int64_t> indices, std::span<std::int64_t> epochs) {
  const AliasTable& table = *stages.front().table;
  if (table.weights().size() > num_domains()) {
    throw std::invalid_argument("the mixture of step " + std::to_string(step) + " has " +
                                std::to_string(table.weights().size()) + " domains; expected at most " +
                                std::to_string(num_domains()));
  }
  if (allocation_ == Allocation::multinomial) draw(table.view(), seed_, step * batch_size(), domain_ids_, 1);
  if (allocation_ == Allocation::systematic) allocate_systematic(table, step);
  if (allocation_ == Allocation::quota) allocate_quota(stages, step);

  for (std::size_t slot = 0; slot < batch_size(); ++slot) {
    const auto lane = static_cast<std::uint32_t>(domain_ids_[slot]);
    Domain& d = domains_[lane];
    if (slot + kAhead < batch_size()) {  // with thousands of domains, each is a cache miss
      const char* next = reinterpret_cast<const char*>(&domains_[static_cast<std::size_t>(domain_ids_[slot + kAhead])]);
      __builtin_prefetch(next);
      __builtin_prefetch(next + sizeof(Domain) - 1);
    }
    if (slot - begin < indices.size()) {  // also false before begin, where the difference wraps
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
    if (++d.position == d.size) place(lane, d.epoch_start + d.size);
  }
}

void BatchPlanner::allocate_systematic(const AliasTable& table, std::uint64_t step) {
  const auto weights = table.weights();
  const std::uint64_t num_domains = weights.size();
  const Block random = random_block(seed_, Stream::systematic, step);

  // The domains in an order that changes with the step: i -> (multiplier * i + start) mod K with a random multiplier
  // coprime to K, which costs one addition per domain.
  std::uint64_t multiplier = random.word[2] % num_domains;
  while (std::gcd(multiplier, num_domains) != 1) multiplier = (multiplier + 1) % num_domains;
  std::uint64_t domain = random.word[1] % num_domains;

  // In units of 2^-32 samples: domain i owns [C_{i-1}, C_i) with C = cumsum(B q) + offset, and gets as many samples as
  // this interval has whole numbers. B * weight cannot overflow: B < 2^31 and weights sum to 2^32.
  std::uint64_t cumulative = random.word[0], filled = 0;
  for (std::uint64_t i = 0; i < num_domains; ++i) {
    cumulative += batch_size() * weights[domain];
    for (; filled < cumulative >> 32; ++filled) domain_ids_[filled] = static_cast<std::int32_t>(domain);
    domain += multiplier;
    if (domain >= num_domains) domain -= num_domains;
  }
  shuffle_slots(step);
}

// Earliest deadline first. The j-th sample of a domain may be drawn once the domain has earned more than j - 1, and
// must be by the end of the batch in which it has earned j. With all deadlines known, this order meets each of them,
// since drawing fractions as they are earned would (Tijdeman, "The chairman assignment problem", 1980, has the bound of
// one sample).
void BatchPlanner::allocate_quota(std::span<const Stage> stages, std::uint64_t step) {
  const auto weights = stages.front().table->weights();
  claims_.clear();
  std::size_t filled = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    credits_[i] += static_cast<std::int64_t>(batch_size() * weights[i]);
    for (; credits_[i] >= kUnits && filled < batch_size(); credits_[i] -= kUnits) {  // due now
      domain_ids_[filled++] = static_cast<std::int32_t>(i);
    }
    if (credits_[i] > 0) {
      const auto need = static_cast<std::uint64_t>(std::max<std::int64_t>(kUnits - credits_[i], 0));
      claims_.push_back(batches_left(stages, step, batch_size(), i, need) * AliasTable::kMaxOutcomes + i);
    }
  }
  // Credits sum to zero between batches, so there are at least as many claims as slots left. The last claim that is
  // granted is found in a copy, so that the order of domains does not depend on the library's partitioning.
  if (const std::size_t left = batch_size() - filled; left > 0) {
    ranked_.assign(claims_.begin(), claims_.end());
    const auto last = ranked_.begin() + static_cast<std::ptrdiff_t>(left - 1);
    std::nth_element(ranked_.begin(), last, ranked_.end());
    for (const std::uint64_t claim : claims_) {
      if (claim > *last) continue;
      const std::uint64_t domain = claim & (AliasTable::kMaxOutcomes - 1);
      credits_[domain] -= kUnits;
      domain_ids_[filled++] = static_cast<std::int32_t>(domain);
    }
  }
  shuffle_slots(step);
}

// Fisher and Yates's shuffle, so that a slice of the batch is a random part of it.
void BatchPlanner::shuffle_slots(std::uint64_t step) {
  const std::uint64_t first_block = step * (batch_size() / 4 + 1);
  Block random = random_block(seed_, Stream::slots, first_block + batch_size() / 4);
  for (std::size_t left = batch_size(); left > 1; --left) {
    if (left % 4 == 3) random = random_block(seed_, Stream::slots, first_block + left / 4);
    const std::size_t other = std::uint64_t{random.word[left % 4]} * left >> 32;
    std::swap(domain_ids_[left - 1], domain_ids_[other]);
  }
}

}  // namespace pycooldown
