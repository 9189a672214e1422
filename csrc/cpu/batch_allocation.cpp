// Computes how many slots of a batch each domain gets, and which.
#include <algorithm>
#include <array>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "draw_kernel.h"
#include "pycooldown/batch_planner.h"

namespace pycooldown {

namespace {

constexpr auto kUnits = static_cast<std::int64_t>(AliasTable::kUnits);
constexpr std::uint64_t kNever = ~std::uint64_t{0};
constexpr std::uint64_t kMostBatches = (std::uint64_t{1} << 39) - 1;  // the most batches ahead that a claim can store
constexpr std::size_t kBuckets = 256;

}  // namespace

// Calls take(domain, begin, end) for each domain, in the order of its slots. The domain gets slots [begin, end).
template <class Take>
void BatchPlanner::allocate_systematic(const AliasTable& table, std::uint64_t step, const Take& take) {
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
    cumulative += slots() * weights[domain];
    take(domain, filled, cumulative >> 32);
    filled = cumulative >> 32;
    domain += multiplier;
    domain -= domain >= num_domains ? num_domains : 0;
  }
}

// Calls take(domain, begin, end) for slots [begin, end) of a domain, once or twice for each domain. The order is
// earliest deadline first: a domain may be drawn for the j-th time once it has earned more than j - 1 samples, and must
// be by the end of the batch in which it has earned j. If all deadlines are known, this order meets each of them,
// because drawing fractions as they are earned would (Tijdeman, "The chairman assignment problem", 1980, proves the
// bound of one sample).
template <class Take>
void BatchPlanner::allocate_quota(std::span<const MixtureSpan> spans, std::uint64_t step, const Take& take) {
  follow(spans, step);
  const auto weights = spans.front().table->weights();
  const std::span credits(credits_);
  const std::span deadlines(deadlines_), claims(claims_);
  std::array<std::size_t, kBuckets> counts{};  // number of claims, by batches until the deadline
  std::size_t filled = 0, num_claims = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    credits[i] += static_cast<std::int64_t>(slots() * weights[i]);
    if (credits[i] >= kUnits) {  // due now
      const std::size_t due = std::min(static_cast<std::size_t>(credits[i] / kUnits), slots() - filled);
      credits[i] -= static_cast<std::int64_t>(due) * kUnits;
      take(i, filled, filled + due);
      filled += due;
      set_deadline(i, step + 1);
    }
    const std::uint64_t batches = std::min(deadlines[i] - (step + 1), kMostBatches);
    claims[num_claims] = batches * AliasTable::kMaxOutcomes + i;
    counts[std::min<std::size_t>(batches, kBuckets - 1)] += credits[i] > 0;
    num_claims += credits[i] > 0;
  }
  // Credits sum to zero between batches, so there are at least as many claims as slots left, unless a domain outside
  // the mixture has credit.
  if (filled + num_claims < slots()) {
    throw std::invalid_argument("the credits of the mixture's domains at step " + std::to_string(step) +
                                " do not sum to 0");
  }
  if (filled == slots()) return;
  const std::uint64_t last = last_granted(claims.first(num_claims), counts, slots() - filled);
  std::size_t granted = 0;  // granted claims move to the front, without a branch
  for (std::size_t i = 0; i < num_claims; ++i) {
    claims[granted] = claims[i];
    granted += claims[i] <= last;
  }
  for (const std::uint64_t claim : claims.first(granted)) {
    const std::size_t domain = claim % AliasTable::kMaxOutcomes;
    credits[domain] -= kUnits;
    take(domain, filled, filled + 1);
    ++filled;
    set_deadline(domain, step + 1);
  }
}

template <class Take>
void BatchPlanner::allocate(std::span<const MixtureSpan> spans, std::uint64_t step, const Take& take) {
  if (allocation_ == Allocation::systematic) allocate_systematic(*spans.front().table, step, take);
  if (allocation_ == Allocation::quota) allocate_quota(spans, step, take);
}

void BatchPlanner::allocate_slots(std::span<const MixtureSpan> spans, std::uint64_t step) {
  allocate(spans, step, [this](std::uint64_t domain, std::uint64_t slot, std::uint64_t end) {
    domain_ids_[slot] = static_cast<std::int32_t>(domain);  // also if it gets no slot: a branch would be unpredictable
    while (++slot < end) domain_ids_[slot] = static_cast<std::int32_t>(domain);
  });
  shuffle_slots(step);
}

void BatchPlanner::skip_slots(std::span<const MixtureSpan> spans, std::uint64_t step) {
  allocate(spans, step, [this](std::uint64_t domain, std::uint64_t begin, std::uint64_t end) {
    advance(domain, (end - begin) * (batch_size_ / slots()));
  });
}

// Computes the deadlines for `spans`. They stay valid while time passes and the spans that follow stay the same.
void BatchPlanner::follow(std::span<const MixtureSpan> spans, std::uint64_t step) {
  const std::size_t passed = spans_.size() - std::min(spans_.size(), spans.size());
  const bool same = !spans_.empty() && std::ranges::equal(std::span(spans_).subspan(passed), spans);
  if (same && passed == 0) return;
  const bool followed = same || follow_next(spans, step);
  spans_.assign(spans.begin(), spans.end());
  if (followed) return;
  for (std::size_t i = 0; i < spans.front().table->weights().size(); ++i) set_deadline(i, step);
}

// If `spans` are the known ones plus one more at the end, updates the deadlines that the new one decides. Otherwise
// does nothing and returns false.
bool BatchPlanner::follow_next(std::span<const MixtureSpan> spans, std::uint64_t step) {
  if (spans_.size() < 2 || spans.size() < 2 || spans_.size() + 1 < spans.size()) return false;
  const std::size_t passed = spans_.size() + 1 - spans.size();
  if (!std::ranges::equal(std::span(spans_).subspan(passed), spans.first(spans.size() - 1))) return false;
  const std::uint64_t start = spans_[spans_.size() - 2].end, end = spans_.back().end;  // of the former last span
  if (start < step) return false;  // needs are known only at its start
  const auto known = spans_.back().table->weights(), next = spans.back().table->weights();
  for (std::size_t i = 0; i < next.size(); ++i) {
    if (open_needs_[i] == 0) continue;
    std::uint64_t earned;
    const bool overflows = __builtin_mul_overflow(slots() * known[i], end - start, &earned);
    const std::uint64_t need = overflows || open_needs_[i] <= earned ? 0 : open_needs_[i] - earned;
    const std::uint64_t rate = slots() * next[i];
    if (need > 0) deadlines_[i] = rate > 0 ? end + (need + rate - 1) / rate : kNever;
    open_needs_[i] = need;
  }
  return true;
}

// The deadline of a domain's next sample, from its credit before `step`: the end of the batch in which it will have
// earned the sample, as far ahead as can be known.
void BatchPlanner::set_deadline(std::size_t domain, std::uint64_t step) {
  auto need = static_cast<std::uint64_t>(std::max<std::int64_t>(kUnits - credits_[domain], 0));
  deadlines_[domain] = kNever;
  open_needs_[domain] = 0;
  for (const MixtureSpan& span : spans_) {
    const bool last = &span == &spans_.back();
    if (span.end <= step && !last) continue;
    if (last) open_needs_[domain] = need;
    if (const std::uint64_t rate = slots() * span.table->weights()[domain]; rate > 0) {
      const std::uint64_t batches = (need + rate - 1) / rate;
      if (last || batches <= span.end - step) {
        deadlines_[domain] = step + batches;
        return;
      }
      need -= rate * (span.end - step);
    }
    step = span.end;
  }
}

// Returns the last claim in order that gets one of the slots. Few claims have the same number of batches, so their
// counts lead to it. Equally urgent claims are in the order of their domains.
std::uint64_t BatchPlanner::last_granted(std::span<const std::uint64_t> claims, std::span<const std::size_t> counts,
                                         std::size_t slots) {
  std::size_t bucket = 0;
  for (; counts[bucket] < slots; ++bucket) slots -= counts[bucket];
  const auto is_in_bucket = [&](std::uint64_t claim) {
    return std::min<std::size_t>(claim / AliasTable::kMaxOutcomes, kBuckets - 1) == bucket;
  };
  if (bucket < kBuckets - 1)
    return *std::ranges::find_if(claims, [&](auto claim) { return (slots -= is_in_bucket(claim)) == 0; });
  ranked_.clear();  // a copy, because the order of domains must not depend on the library's partitioning
  std::ranges::copy_if(claims, std::back_inserter(ranked_), is_in_bucket);
  const auto last = ranked_.begin() + static_cast<std::ptrdiff_t>(slots - 1);
  std::ranges::nth_element(ranked_, last);
  return *last;
}

// With `once`, gives each slot whose domain has no sample left to another domain, drawn by the mixture.
void BatchPlanner::give_away(const AliasTable& table, std::uint64_t step) {
  const auto weights = table.weights();
  std::vector<std::uint64_t> left(weights.size()), cumulative;
  for (std::size_t i = 0; i < left.size(); ++i) {
    const std::uint64_t drawn = domains_[i].epoch_start + domains_[i].position;
    left[i] = static_cast<std::uint64_t>(sizes_[i]) - std::min(drawn, static_cast<std::uint64_t>(sizes_[i]));
  }
  for (std::size_t slot = 0; slot < batch_size(); ++slot) {
    auto domain = static_cast<std::size_t>(domain_ids_[slot]);
    if (left[domain] == 0) {
      if (cumulative.empty()) {
        std::uint64_t sum = 0;
        for (std::size_t i = 0; i < left.size(); ++i) cumulative.push_back(sum += left[i] > 0 ? weights[i] : 0);
      }
      if (cumulative.back() == 0) {
        throw std::invalid_argument("no domain that the mixture of step " + std::to_string(step) +
                                    " draws has a sample left");
      }
      const std::uint64_t random = random_block(seed_, Stream::given_away, first_draw(step) + slot).word[0];
      const std::uint64_t place = random * cumulative.back() >> 32;  // cannot overflow: weights sum to 2^32
      domain = static_cast<std::size_t>(std::ranges::upper_bound(cumulative, place) - cumulative.begin());
      domain_ids_[slot] = static_cast<std::int32_t>(domain);
    }
    if (--left[domain] == 0) cumulative.clear();
  }
}

// Fisher and Yates's shuffle, so that a slice of the batch is a random part of it.
void BatchPlanner::shuffle_slots(std::uint64_t step) {
  const Segment& segment = segments_[segment_];
  const std::uint64_t first_block = segment.first_block + (step - segment.first_step) * (slots() / 4 + 1);
  words_.resize(slots() + 1);
  PYCOOLDOWN_DISPATCH(random_words)(seed_, Stream::slots, first_block, words_);
  for (std::size_t left = slots(); left > 1; --left)
    std::swap(domain_ids_[left - 1], domain_ids_[std::uint64_t{words_[left]} * left >> 32]);
}

}  // namespace pycooldown
