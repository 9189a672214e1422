// Plans the batch of a step: how many samples of each domain (batch_allocation.cpp), which ones (permute_kernel.cpp),
// and in which order.
#include "pycooldown/batch_planner.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "permute_kernel.h"

namespace pycooldown {

namespace {

constexpr std::size_t kAhead = 12;
constexpr std::uint64_t kNoEpoch = ~std::uint64_t{0};

}  // namespace

BatchPlanner::BatchPlanner(std::span<const std::int64_t> sizes, Allocation allocation, std::int64_t batch_size,
                           std::uint64_t seed, bool shuffle, bool once, bool homogeneous)
    : batch_size_(static_cast<std::size_t>(batch_size)),
      sizes_(sizes.begin(), sizes.end()),
      credits_(sizes.size(), 0),
      deadlines_(sizes.size()),
      claims_(sizes.size()),
      open_needs_(sizes.size()),
      allocation_(allocation),
      seed_(seed),
      shuffle_(shuffle),
      once_(once),
      homogeneous_(homogeneous) {
  const BatchSize throughout{0, static_cast<std::uint64_t>(batch_size)};
  set_batch_sizes(std::span(&throughout, 1));
  const Permutation unused(seed, Stream::permutation, 0, 0, 1);
  std::uint64_t first_index = 0;
  domains_.reserve(sizes.size());
  epoch_sizes_.reserve(sizes.size());
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] <= 0) {
      throw std::invalid_argument("sizes[" + std::to_string(i) + "] = " + std::to_string(sizes[i]) +
                                  "; expected a positive number of samples");
    }
    const auto size = static_cast<std::uint64_t>(sizes[i]);
    domains_.push_back({size, first_index, 0, 0, 0, kNoEpoch, nullptr, unused});
    epoch_sizes_.push_back({{0, size}});
    first_index += size;
  }
}

void BatchPlanner::set_batch_sizes(std::span<const BatchSize> sizes) {
  if (sizes.empty() || sizes.front().first_step != 0) {
    throw std::invalid_argument("batch sizes: expected a first one from step 0 on");
  }
  std::vector<Segment> segments;
  std::uint64_t most = 0;
  for (const auto [first_step, size] : sizes) {
    if (size < 1 || size >= std::uint64_t{1} << 31) {
      throw std::invalid_argument("batch_size = " + std::to_string(static_cast<std::int64_t>(size)) +
                                  "; expected 1 to 2^31 - 1");
    }
    Segment segment{first_step, size, 0, 0};
    if (!segments.empty()) {
      const Segment& before = segments.back();
      if (first_step <= before.first_step) throw std::invalid_argument("batch sizes: expected increasing first steps");
      const std::uint64_t steps = first_step - before.first_step;
      segment.first_draw = before.first_draw + steps * slots_of(before.batch_size);
      segment.first_block = before.first_block + steps * (slots_of(before.batch_size) / 4 + 1);
    }
    segments.push_back(segment);
    most = std::max(most, size);
  }
  segments_ = std::move(segments);
  segment_ = 0;
  batch_size_ = static_cast<std::size_t>(segments_.front().batch_size);
  domain_ids_.resize(static_cast<std::size_t>(most) + 1);
  spans_.clear();
}

void BatchPlanner::set_epoch_sizes(std::size_t domain, std::vector<EpochSize> sizes) {
  const auto fail = [&](const std::string& what) {
    throw std::invalid_argument("epoch sizes of domain " + std::to_string(domain) + ": " + what);
  };
  if (domain >= num_domains()) fail("there are " + std::to_string(num_domains()) + " domains");
  const auto most = static_cast<std::uint64_t>(sizes_[domain]);
  if (sizes.empty() || sizes.front().first_draw != 0) fail("expected a first one from draw 0 on");
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i].size == 0 || sizes[i].size > most) fail("expected sizes of 1 to " + std::to_string(most));
    if (i == 0) continue;
    const auto [first_draw, size] = sizes[i - 1];
    if (sizes[i].first_draw <= first_draw || (sizes[i].first_draw - first_draw) % size != 0) {
      fail("draw " + std::to_string(sizes[i].first_draw) + " begins no epoch after draw " + std::to_string(first_draw) +
           " at a size of " + std::to_string(size));
    }
  }
  epoch_sizes_[domain] = std::move(sizes);
  place(domain, domains_[domain].epoch_start + domains_[domain].position);
}

void BatchPlanner::set_blocks(std::size_t domain, BlockLayout layout) {
  if (domain >= num_domains() || layout.size() != static_cast<std::uint64_t>(sizes_[domain])) {
    throw std::invalid_argument("blocks of domain " + std::to_string(domain) + " have " +
                                std::to_string(layout.size()) + " samples; expected those of a domain");
  }
  domains_[domain].blocks = std::make_unique<Blocks>(Blocks{std::move(layout)});
  domains_[domain].permuted_epoch = kNoEpoch;
}

// Makes the permutation for a domain's position.
void BatchPlanner::permute_from(std::uint32_t lane) {
  Domain& d = domains_[lane];
  if (!d.blocks) {
    d.permutation = Permutation(seed_, Stream::permutation, d.epoch, lane, d.size);
  } else {
    if (d.permuted_epoch != d.epoch) d.blocks->order.emplace(d.blocks->layout, seed_, d.epoch, lane);
    d.permutation = d.blocks->order->enter(d.position);
  }
  d.permuted_epoch = d.epoch;
}

// Moves a domain to the position after `draws` draws.
void BatchPlanner::place(std::size_t domain, std::uint64_t draws) {
  Domain& d = domains_[domain];
  d.epoch = d.epoch_start = 0;
  d.permuted_epoch = kNoEpoch;
  for (const auto& [first_draw, size] : epoch_sizes_[domain]) {
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

// Moves a domain past `draws` more draws.
void BatchPlanner::advance(std::size_t domain, std::uint64_t draws) {
  Domain& d = domains_[domain];
  d.position += draws;
  if (d.position >= d.size) place(domain, d.epoch_start + d.position);
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
  // A domain never gets more than the sample that it has begun to earn. Credits sum to 0: samples that some domains got
  // too early are owed to others.
  constexpr auto kUnits = static_cast<std::int64_t>(AliasTable::kUnits);
  const std::int64_t most = static_cast<std::int64_t>(num_domains()) * kUnits;
  std::int64_t sum = 0;  // cannot overflow: each is below 2^24 samples, and there are at most 2^24 domains
  for (const std::int64_t credit : credits) {
    if (credit <= -kUnits || credit >= most) {
      throw std::invalid_argument("credits has " + std::to_string(credit) + "; expected numbers between " +
                                  std::to_string(-kUnits) + " and " + std::to_string(most));
    }
    sum += credit;
  }
  if (sum != 0) throw std::invalid_argument("credits sum to " + std::to_string(sum) + "; expected 0");
  for (std::size_t i = 0; i < counts.size(); ++i) place(i, static_cast<std::uint64_t>(counts[i]));
  std::ranges::copy(credits, credits_.begin());
  spans_.clear();
}

// Applies the batch size of a step, and checks its mixtures.
void BatchPlanner::begin(std::span<const MixtureSpan> spans, std::uint64_t step) {
  const auto next =
      std::ranges::upper_bound(segments_, step, {}, [](const Segment& segment) { return segment.first_step; });
  if (const auto segment = static_cast<std::size_t>(next - segments_.begin()) - 1; segment != segment_) {
    segment_ = segment;
    batch_size_ = static_cast<std::size_t>(segments_[segment].batch_size);
    spans_.clear();  // deadlines depend on it
  }
  for (const MixtureSpan& span : spans) {
    const std::size_t outcomes = span.table->weights().size();
    if (outcomes <= num_domains() && outcomes == spans.front().table->weights().size()) continue;
    throw std::invalid_argument("a mixture known at step " + std::to_string(step) + " has " + std::to_string(outcomes) +
                                " domains; expected as many as the first one, at most " +
                                std::to_string(num_domains()));
  }
}

// The number of the first draw of multinomial allocation in a step of the present segment.
std::uint64_t BatchPlanner::first_draw(std::uint64_t step) const {
  const Segment& segment = segments_[segment_];
  return segment.first_draw + (step - segment.first_step) * slots();
}

// Draws the domains of all slots independently.
void BatchPlanner::draw_slots(const AliasTable& table, std::uint64_t step) {
  draw(table.view(), seed_, first_draw(step), std::span(domain_ids_).first(slots()), 1);
}

void BatchPlanner::skip(std::span<const MixtureSpan> spans, std::uint64_t step) {
  begin(spans, step);
  if (allocation_ != Allocation::multinomial && !once_) {
    skip_slots(spans, step);
    return;
  }
  choose_domains(spans, step);  // with `once`, the order of the slots decides which ones go to other domains
  for (const std::int32_t domain : domain_ids().first(slots()))
    advance(static_cast<std::size_t>(domain), batch_size_ / slots());
}

void BatchPlanner::choose_domains(std::span<const MixtureSpan> spans, std::uint64_t step) {
  if (allocation_ == Allocation::multinomial) {
    draw_slots(*spans.front().table, step);
  } else {
    allocate_slots(spans, step);
  }
  if (once_) give_away(*spans.front().table, step);
}

void BatchPlanner::plan(std::span<const MixtureSpan> spans, std::uint64_t step, std::size_t first_slot,
                        std::span<std::int64_t> indices, std::span<std::int64_t> epochs) {
  begin(spans, step);
  if (first_slot > batch_size() || indices.size() > batch_size() - first_slot) {
    throw std::invalid_argument("slots [" + std::to_string(first_slot) + ", " +
                                std::to_string(first_slot + indices.size()) + ") of a batch of " +
                                std::to_string(batch_size()));
  }
  choose_domains(spans, step);
  if (homogeneous_) std::ranges::fill(std::span(domain_ids_).first(batch_size_), domain_ids_.front());

  // Positions are permuted in place, in groups. The last `waiting` samples so far are not permuted yet.
  const auto permute = PYCOOLDOWN_DISPATCH(permute);
  std::array<const Permutation*, 64> permutations;
  std::size_t waiting = 0;
  const auto permute_waiting = [&](std::size_t end) {
    if (shuffle_) permute(permutations.data(), indices.data() + end - waiting, waiting);
    for (std::size_t i = end - waiting; i < end; ++i) {
      const Domain& d = domains_[static_cast<std::size_t>(domain_ids_[first_slot + i])];
      if (d.blocks && shuffle_)
        indices[i] = static_cast<std::int64_t>(d.blocks->order->sample(static_cast<std::uint64_t>(indices[i])));
      indices[i] += static_cast<std::int64_t>(d.first_index);
    }
    waiting = 0;
  };
  for (std::size_t slot = 0; slot < batch_size(); ++slot) {
    const auto lane = static_cast<std::uint32_t>(domain_ids_[slot]);
    Domain& d = domains_[lane];
    if (slot + kAhead < batch_size()) {  // with thousands of domains, each is a cache miss
      const char* next = reinterpret_cast<const char*>(&domains_[static_cast<std::size_t>(domain_ids_[slot + kAhead])]);
      __builtin_prefetch(next);
      __builtin_prefetch(next + sizeof(Domain) - 1);
    }
    if (const std::size_t i = slot - first_slot;
        i < indices.size()) {  // also false before first_slot, where i wraps around
      const bool by_blocks = shuffle_ && d.blocks;
      if (shuffle_ && (d.permuted_epoch != d.epoch || (by_blocks && !d.blocks->order->holds(d.position)))) {
        permute_waiting(i);  // some may belong to the epoch or group that has ended
        permute_from(lane);
      }
      indices[i] = static_cast<std::int64_t>(d.position - (by_blocks ? d.blocks->order->begin() : 0));
      epochs[i] = static_cast<std::int64_t>(d.epoch);
      permutations[waiting] = &d.permutation;
      if (++waiting == permutations.size()) permute_waiting(i + 1);
    }
    if (++d.position == d.size) place(lane, d.epoch_start + d.size);
  }
  permute_waiting(indices.size());
}

}  // namespace pycooldown
