// The fetches and evictions of a cache of blocks when all its uses are known in advance: a function of only the uses,
// the limit and the depth. Nothing in it depends on time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <queue>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

namespace pycooldown {

// Fetches in their order, flat.
struct CacheActions {
  std::vector<std::int64_t> fetches;     // block numbers
  std::vector<std::int64_t> steps;       // the step that uses each
  std::vector<std::int64_t> after;       // each begins when every rank has asked for the batch of this step
  std::vector<std::int64_t> evict_ends;  // evictions before each begins, counted from the first fetch
  std::vector<std::int64_t> evictions;   // block numbers
};

// Belady's rule ("A study of replacement algorithms for a virtual-storage computer", 1966): if room is needed, the
// block whose next use is farthest is evicted; among those without a known use, the one whose last use is oldest.
//
// Fetches run ahead of the requested batches: those for the requested step and later ones hold at most `depth` bytes.
// Loaders request batches ahead of their use too. While a step is requested, the `prefetched` steps before it may still
// be read, so no block of them is evicted. Blocks count as held from the moment their fetch is planned. If the limit is
// too small for that, less is fetched ahead, and in the end nothing. The blocks of a step and of the `prefetched` steps
// before it are held regardless of the limit. So no fetch waits for a later step than its own, and a job cannot stall.
class CachePlanner {
 public:
  CachePlanner(std::vector<std::int64_t> block_bytes, std::int64_t limit, std::int64_t depth, std::int64_t prefetched);

  // Sets the blocks that are held before the first step.
  void hold(std::span<const std::int64_t> blocks);

  // Plans the next `num_steps` steps. `blocks` has the blocks that each step uses, each once per step: those of step i
  // end at ends[i]. Steps after num_steps are known later steps.
  CacheActions plan(std::span<const std::int64_t> blocks, std::span<const std::int64_t> ends, std::size_t num_steps);

  std::int64_t held_bytes() const { return held_bytes_; }
  std::int64_t most_held_bytes() const { return most_held_bytes_; }
  std::int64_t next_step() const { return next_step_; }
  // Steps whose blocks, with those of earlier steps that may still be read, did not fit; and steps for which less than
  // the depth could be fetched ahead.
  std::int64_t steps_over_limit() const { return steps_over_limit_; }
  std::int64_t steps_shrunk() const { return steps_shrunk_; }

 private:
  struct Held {
    std::int64_t last_step, next_use;
  };
  struct OpenStep {
    std::vector<std::int64_t> blocks;
    std::int64_t fetched_bytes;
  };
  // The next use (negative if none is known: minus the steps since the last one), and the block.
  using Candidate = std::pair<std::int64_t, std::int64_t>;

  void offer(std::int64_t block, const Held& held);
  void ask_for_next();
  bool evict(CacheActions& actions);
  std::size_t index(std::int64_t block) const;

  std::vector<std::int64_t> block_bytes_;
  std::int64_t limit_, depth_, prefetched_;
  std::int64_t held_bytes_ = 0, most_held_bytes_ = 0, window_bytes_ = 0;
  std::int64_t next_step_ = 0, asked_ = 0, consumed_ = 0;  // consumed_: those before asked_ - prefetched_
  std::int64_t steps_over_limit_ = 0, steps_shrunk_ = 0;
  std::unordered_map<std::int64_t, Held> held_;
  std::deque<OpenStep> open_;                  // steps [consumed_, next_step_]
  std::priority_queue<Candidate> candidates_;  // some are outdated
};

}  // namespace pycooldown
