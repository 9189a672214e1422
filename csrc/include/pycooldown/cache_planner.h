// What a cache of blocks fetches and evicts when all its uses are known beforehand: a function of the uses, the limit
// and the depth alone. Nothing in it depends on time.
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

// Belady's rule ("A study of replacement algorithms for a virtual-storage computer", 1966): where room is needed, the
// block goes whose next use is farthest; among those with no known use, the one used last longest ago.
//
// Fetches run ahead of the batches that are asked for: those for the step that is asked for and the ones behind it hold
// at most `depth` bytes. Batches are asked for ahead of their use too, by loaders: while a step is asked for, the
// `prefetched` steps before it may still be read, so that no block of them is evicted. Blocks count as held from the
// moment their fetch is planned. Where the limit is too small for that, less is fetched ahead, in the end nothing; the
// blocks of a step and of the `prefetched` ones before it are held whatever the limit. So no fetch waits for a later
// step than its own, and a job cannot come to a stand.
class CachePlanner {
 public:
  CachePlanner(std::vector<std::int64_t> block_bytes, std::int64_t limit, std::int64_t depth, std::int64_t prefetched);

  // Blocks that are there before the first step.
  void hold(std::span<const std::int64_t> blocks);

  // Plans the next `num_steps` steps. `blocks` has the blocks that each step uses, each once a step: those of step i
  // end at ends[i]. Steps beyond num_steps are those to come, as far as they are known.
  CacheActions plan(std::span<const std::int64_t> blocks, std::span<const std::int64_t> ends, std::size_t num_steps);

  std::int64_t held_bytes() const { return held_bytes_; }
  std::int64_t most_held_bytes() const { return most_held_bytes_; }
  std::int64_t next_step() const { return next_step_; }
  // Steps whose blocks, with those before them that may be read, did not fit; and steps for which less than the depth
  // could be fetched ahead.
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
  // The next use, negative for the steps since the last one where there is none in sight; the block.
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
