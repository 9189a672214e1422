// Which samples make up the global batch of a step. Two independent parts: an allocation chooses the domain of every
// slot as a function of (seed, step); cursors then turn the n-th use of a domain into a sample, each epoch of a domain
// being a permutation of it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pycooldown/alias_table.h"
#include "pycooldown/permutation.h"

namespace pycooldown {

enum class Allocation {
  multinomial,  // independent draws
  systematic,   // one uniform offset: floor(B q_i) or ceil(B q_i) samples of domain i, unbiased
};

// domain_ids[slot] for all slots of the batch of `step`. Systematic allocation takes the domains in an order that
// changes with the step and spreads them over the slots at random.
void allocate(const AliasTable& table, Allocation allocation, std::uint64_t seed, std::uint64_t step,
              std::span<std::int32_t> domain_ids);

// Where each domain stands. `sizes` are in samples; indices count the domains laid end to end.
class DomainCursors {
 public:
  DomainCursors(std::span<const std::int64_t> sizes, std::uint64_t seed, bool shuffle);

  std::size_t num_domains() const { return domains_.size(); }
  // How often each domain has been drawn.
  std::vector<std::int64_t> counts() const;
  void set_counts(std::span<const std::int64_t> counts);

  // Moves past domain_ids. For the slots in [begin, end) writes the sample's index and its domain's epoch.
  void advance(std::span<const std::int32_t> domain_ids, std::size_t begin, std::size_t end,
               std::span<std::int64_t> indices, std::span<std::int64_t> epochs);
  void advance(std::span<const std::int32_t> domain_ids);

 private:
  struct Domain {
    std::uint64_t size, first_index;
    std::uint64_t epoch, position;  // position within the epoch, < size
    std::uint64_t permuted_epoch;   // the epoch that `permutation` belongs to
    Permutation permutation;
  };

  std::vector<Domain> domains_;
  std::uint64_t seed_;
  bool shuffle_;
};

}  // namespace pycooldown
