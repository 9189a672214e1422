// A shuffle that keeps neighbours together, for samples that are fetched by blocks. The shards of a domain are cut into
// blocks, none of which spans two shards. An epoch permutes the blocks, takes them in groups, and permutes the samples
// within each group. So only the blocks of one group are in use at a time.
//
// A block has `block` samples, except the last one of a shard, which may be shorter. Full and short blocks are permuted
// separately, and each group takes its share of both, so the position where a group begins depends only on the lengths
// of the short blocks. Memory is O(shards), not O(samples).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pycooldown/permutation.h"

namespace pycooldown {

// The blocks of a domain.
class BlockLayout {
 public:
  // Sizes in samples, none of them negative; at least one sample in all. `block` and `group` are positive: samples in a
  // block, blocks in a group.
  BlockLayout(std::span<const std::int64_t> shard_sizes, std::uint64_t block, std::uint64_t group);

  std::uint64_t size() const { return starts_.back(); }  // samples
  std::uint64_t block() const { return block_; }
  std::uint64_t num_whole() const { return whole_before_.back(); }
  std::uint64_t num_short() const { return short_shards_.size(); }
  std::uint64_t num_groups() const { return num_groups_; }

  // The first sample of a whole block; that and the length of a short one.
  std::uint64_t whole_start(std::uint64_t number) const;
  std::uint64_t short_start(std::uint64_t number) const;
  std::uint64_t short_length(std::uint64_t number) const;

 private:
  std::vector<std::uint64_t> starts_{0};        // of each shard, in samples; one more than there are shards
  std::vector<std::uint64_t> whole_before_{0};  // whole blocks before each shard, likewise
  std::vector<std::uint64_t> short_shards_;     // those that end with a short block
  std::uint64_t block_, num_groups_;
};

// The order of a domain's samples in an epoch, computed for one group at a time.
class BlockOrder {
 public:
  BlockOrder(const BlockLayout& layout, std::uint64_t seed, std::uint64_t epoch, std::uint32_t lane);

  // Whether a position of the epoch is in the present group.
  bool holds(std::uint64_t position) const { return position - begin_ < length_; }

  // Goes to the group of a position, and returns the permutation of the places in it.
  Permutation enter(std::uint64_t position);

  std::uint64_t begin() const { return begin_; }  // position of the group's first place

  // The sample at a place of the group.
  std::uint64_t sample(std::uint64_t place) const;

 private:
  std::uint64_t begin_of(std::uint64_t group) const;

  const BlockLayout* layout_;
  std::uint64_t seed_, epoch_;
  std::uint32_t lane_;
  Permutation whole_, short_;
  std::vector<std::uint64_t> short_ends_{0};  // samples in the short blocks before each one, in permuted order
  std::uint64_t begin_ = 0, length_ = 0;      // of the present group
  std::vector<std::uint64_t> whole_starts_;   // first samples of its whole blocks
  std::vector<std::uint64_t> rest_ends_, rest_starts_;  // exclusive last places and first samples of its short blocks
};

}  // namespace pycooldown
