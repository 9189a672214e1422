#include "pycooldown/block_order.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace pycooldown {

namespace {

// floor(i n / m), also if i n has more than 64 bits.
std::uint64_t share(std::uint64_t i, std::uint64_t n, std::uint64_t m) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<std::uint64_t>(Wide{i} * n / m);
}

}  // namespace

BlockLayout::BlockLayout(std::span<const std::int64_t> shard_sizes, std::uint64_t block, std::uint64_t group)
    : block_(block) {
  if (block == 0 || group == 0) throw std::invalid_argument("block and group: expected positive numbers");
  for (std::size_t i = 0; i < shard_sizes.size(); ++i) {
    if (shard_sizes[i] < 0) {
      throw std::invalid_argument("shard_sizes[" + std::to_string(i) + "] = " + std::to_string(shard_sizes[i]) +
                                  "; expected a number of samples");
    }
    const auto size = static_cast<std::uint64_t>(shard_sizes[i]);
    if (size % block != 0) short_shards_.push_back(i);
    starts_.push_back(starts_.back() + size);
    whole_before_.push_back(whole_before_.back() + size / block);
  }
  if (size() == 0) throw std::invalid_argument("shard_sizes: expected a sample at least");
  const std::uint64_t blocks = num_whole() + num_short();
  num_groups_ = blocks / group + (blocks % group != 0);
}

std::uint64_t BlockLayout::whole_start(std::uint64_t number) const {
  const auto next = std::ranges::upper_bound(whole_before_, number);
  const auto shard = static_cast<std::size_t>(next - whole_before_.begin()) - 1;
  return starts_[shard] + (number - whole_before_[shard]) * block_;
}

std::uint64_t BlockLayout::short_start(std::uint64_t number) const {
  return starts_[short_shards_[number] + 1] - short_length(number);
}

std::uint64_t BlockLayout::short_length(std::uint64_t number) const {
  const std::uint64_t shard = short_shards_[number];
  return (starts_[shard + 1] - starts_[shard]) % block_;
}

BlockOrder::BlockOrder(const BlockLayout& layout, std::uint64_t seed, std::uint64_t epoch, std::uint32_t lane)
    : layout_(&layout),
      seed_(seed),
      epoch_(epoch),
      lane_(lane),
      whole_(seed, Stream::whole_blocks, epoch, lane, std::max<std::uint64_t>(layout.num_whole(), 1)),
      short_(seed, Stream::short_blocks, epoch, lane, std::max<std::uint64_t>(layout.num_short(), 1)) {
  for (std::uint64_t i = 0; i < layout.num_short(); ++i)
    short_ends_.push_back(short_ends_.back() + layout.short_length(short_(i)));
}

std::uint64_t BlockOrder::begin_of(std::uint64_t group) const {
  const std::uint64_t groups = layout_->num_groups();
  return share(group, layout_->num_whole(), groups) * layout_->block() +
         short_ends_[share(group, layout_->num_short(), groups)];
}

Permutation BlockOrder::enter(std::uint64_t position) {
  const std::uint64_t groups = layout_->num_groups();
  std::uint64_t group = 0;
  for (std::uint64_t after = groups; after - group > 1;) {
    const std::uint64_t middle = group + (after - group) / 2;
    (begin_of(middle) <= position ? group : after) = middle;
  }
  begin_ = begin_of(group);
  length_ = begin_of(group + 1) - begin_;
  whole_starts_.clear();
  rest_starts_.clear();
  rest_ends_.clear();
  const std::uint64_t whole_end = share(group + 1, layout_->num_whole(), groups);
  for (std::uint64_t i = share(group, layout_->num_whole(), groups); i < whole_end; ++i)
    whole_starts_.push_back(layout_->whole_start(whole_(i)));
  std::uint64_t end = whole_starts_.size() * layout_->block();
  const std::uint64_t short_end = share(group + 1, layout_->num_short(), groups);
  for (std::uint64_t i = share(group, layout_->num_short(), groups); i < short_end; ++i) {
    end += short_ends_[i + 1] - short_ends_[i];
    rest_starts_.push_back(layout_->short_start(short_(i)));
    rest_ends_.push_back(end);
  }
  // The index of a random block has 63 bits to spare: the number of the group among those of all epochs.
  const std::uint64_t index = (epoch_ * groups + group) & ~(std::uint64_t{1} << 63);
  return Permutation(seed_, Stream::groups, index, lane_, length_);
}

std::uint64_t BlockOrder::sample(std::uint64_t place) const {
  const std::uint64_t block = place / layout_->block();
  if (block < whole_starts_.size()) return whole_starts_[block] + place % layout_->block();
  const auto rest = static_cast<std::size_t>(std::ranges::upper_bound(rest_ends_, place) - rest_ends_.begin());
  const std::uint64_t begin = rest == 0 ? whole_starts_.size() * layout_->block() : rest_ends_[rest - 1];
  return rest_starts_[rest] + (place - begin);
}

}  // namespace pycooldown
