// The samples of a step's global batch. An allocation chooses the domain of every slot. Cursors then turn the n-th use
// of a domain into a sample, with each epoch of a domain being a permutation of it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "pycooldown/alias_table.h"
#include "pycooldown/block_order.h"
#include "pycooldown/permutation.h"

namespace pycooldown {

enum class Allocation {
  multinomial,  // independent draws
  systematic,   // one uniform offset: floor(B q_i) or ceil(B q_i) samples of domain i, unbiased
  quota,        // rounding errors carry over: always within one sample of the sum of B q_i
};

// The mixture in force until step `end`.
struct MixtureSpan {
  std::shared_ptr<const AliasTable> table;
  std::uint64_t end;

  bool operator==(const MixtureSpan&) const = default;
};

// From draw number `first_draw` on, which begins an epoch, each epoch of a domain has `size` samples.
struct EpochSize {
  std::uint64_t first_draw, size;
};

// From step `first_step` on, a batch has `size` samples.
struct BatchSize {
  std::uint64_t first_step, size;
};

// Plans batch after batch. Multinomial and systematic allocation depend only on (seed, step), quota also on its
// credits. Not thread-safe.
class BatchPlanner {
 public:
  // `sizes` are in samples; sample indices count the domains one after another. With `once`, each sample is drawn at
  // most once: the slots of an exhausted domain go to the others. A homogeneous batch has one domain: the allocation
  // decides one slot of each batch, and all others follow it. The two options cannot be combined.
  BatchPlanner(std::span<const std::int64_t> sizes, Allocation allocation, std::int64_t batch_size, std::uint64_t seed,
               bool shuffle, bool once, bool homogeneous);

  // For a domain whose data grows: its sizes in the order of their first draws, the first of which is 0, none above the
  // size given to the constructor. By default a domain has that size throughout.
  void set_epoch_sizes(std::size_t domain, std::vector<EpochSize> sizes);

  // For batches whose size changes: their sizes in the order of their first steps, the first of which is 0. By default
  // they have the size given to the constructor throughout.
  void set_batch_sizes(std::span<const BatchSize> sizes);

  // For a domain that is shuffled by blocks, whose shards have its samples; see block_order.h.
  void set_blocks(std::size_t domain, BlockLayout layout);

  std::size_t num_domains() const { return domains_.size(); }
  std::size_t batch_size() const { return batch_size_; }  // size at the last planned step

  // How often each domain has been drawn, and what quota allocation owes it, in units of 2^-32 slots.
  std::vector<std::int64_t> counts() const;
  std::span<const std::int64_t> credits() const { return credits_; }
  void seek(std::span<const std::int64_t> counts, std::span<const std::int64_t> credits);

  // Plans the batch of `step` and moves past it. `spans` has the mixture of this step first. The following mixtures, as
  // far as known, let quota allocation see deadlines ahead. Their tables share one number of outcomes, which may be
  // less than the number of domains: the last domains are not drawn yet. The results hold until the next call:
  // domain_ids() has all slots, and indices and epochs are written for the slots in [first_slot, first_slot +
  // indices.size()).
  void plan(std::span<const MixtureSpan> spans, std::uint64_t step, std::size_t first_slot,
            std::span<std::int64_t> indices, std::span<std::int64_t> epochs);
  std::span<const std::int32_t> domain_ids() const { return std::span(domain_ids_).first(batch_size_); }

  // Moves past the batch of `step` without planning its samples.
  void skip(std::span<const MixtureSpan> spans, std::uint64_t step);

 private:
  struct Blocks {
    BlockLayout layout;
    std::optional<BlockOrder> order = std::nullopt;  // of `permuted_epoch`
  };
  struct Domain {
    std::uint64_t size, first_index;  // size in the running epoch
    std::uint64_t epoch, position;    // position within the epoch, < size
    std::uint64_t epoch_start;        // draws before the epoch
    std::uint64_t permuted_epoch;     // the epoch that `permutation` belongs to
    std::unique_ptr<Blocks> blocks;
    Permutation permutation;  // of the epoch, or of a group of blocks
  };
  // With thousands of domains, each read is a cache miss for each of these lines.
  static_assert(sizeof(Domain) == 128);
  // The steps from `first_step` on, whose batches have one size, and the random numbers used before.
  struct Segment {
    std::uint64_t first_step, batch_size;
    std::uint64_t first_draw;   // of multinomial allocation
    std::uint64_t first_block;  // of the shuffles of slots
  };
  std::uint64_t slots_of(std::uint64_t batch_size) const { return homogeneous_ ? 1 : batch_size; }
  std::size_t slots() const { return slots_of(batch_size_); }  // that the allocation decides
  void begin(std::span<const MixtureSpan> spans, std::uint64_t step);
  std::uint64_t first_draw(std::uint64_t step) const;
  void draw_slots(const AliasTable& table, std::uint64_t step);
  void permute_from(std::uint32_t lane);
  void place(std::size_t domain, std::uint64_t draws);
  void advance(std::size_t domain, std::uint64_t draws);

  void choose_domains(std::span<const MixtureSpan> spans, std::uint64_t step);
  void give_away(const AliasTable& table, std::uint64_t step);
  template <class Take>
  void allocate_systematic(const AliasTable& table, std::uint64_t step, const Take& take);
  template <class Take>
  void allocate_quota(std::span<const MixtureSpan> spans, std::uint64_t step, const Take& take);
  template <class Take>
  void allocate(std::span<const MixtureSpan> spans, std::uint64_t step, const Take& take);
  // For all allocations but multinomial: writes the domains of all slots, or only counts them.
  void allocate_slots(std::span<const MixtureSpan> spans, std::uint64_t step);
  void skip_slots(std::span<const MixtureSpan> spans, std::uint64_t step);
  void follow(std::span<const MixtureSpan> spans, std::uint64_t step);
  bool follow_next(std::span<const MixtureSpan> spans, std::uint64_t step);
  void set_deadline(std::size_t domain, std::uint64_t step);
  std::uint64_t last_granted(std::span<const std::uint64_t> claims, std::span<const std::size_t> counts,
                             std::size_t slots);
  void shuffle_slots(std::uint64_t step);

  std::size_t batch_size_;
  std::vector<Segment> segments_;
  std::size_t segment_ = 0;  // the segment of the last planned step
  std::vector<Domain> domains_;
  std::vector<std::int64_t> sizes_;
  std::vector<std::vector<EpochSize>> epoch_sizes_;
  std::vector<std::int64_t> credits_;
  std::vector<std::uint32_t> words_;      // random words for the shuffle of slots
  std::vector<std::int32_t> domain_ids_;  // one slot more than the batch, so that writing needs no branch
  // For quota allocation: the spans that the deadlines were computed from, the step before which each domain's next
  // sample must be drawn, and claims to one more slot (the batches until the deadline, then the domain).
  std::vector<MixtureSpan> spans_;
  std::vector<std::uint64_t> deadlines_, claims_, ranked_;
  // For domains that do not earn their next sample before the spans end: what they still need at the start of the last
  // span, in units; 0 for other domains. When a span is appended, only these deadlines change.
  std::vector<std::uint64_t> open_needs_;
  Allocation allocation_;
  std::uint64_t seed_;
  bool shuffle_;
  bool once_;
  bool homogeneous_;
};

}  // namespace pycooldown
