#include "pycooldown/cache_planner.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

namespace pycooldown {

namespace {

// Keys for unknown next uses: the earlier the last use, the larger.
constexpr std::int64_t kUnknown = std::int64_t{1} << 62;

std::int64_t unknown_use(std::int64_t last_step) { return kUnknown - last_step; }

}  // namespace

CachePlanner::CachePlanner(std::vector<std::int64_t> block_bytes, std::int64_t limit, std::int64_t depth,
                           std::int64_t prefetched)
    : block_bytes_(std::move(block_bytes)), limit_(limit), depth_(depth), prefetched_(prefetched) {
  if (limit < 0 || depth < 0) throw std::invalid_argument("limit and depth: expected numbers of bytes");
  if (prefetched < 0) throw std::invalid_argument("prefetched: expected a number of steps");
  if (std::ranges::any_of(block_bytes_, [](std::int64_t bytes) { return bytes < 0; }))
    throw std::invalid_argument("block_bytes: expected numbers of bytes");
}

std::size_t CachePlanner::index(std::int64_t block) const {
  if (block < 0 || block >= static_cast<std::int64_t>(block_bytes_.size())) {
    throw std::invalid_argument("block " + std::to_string(block) + "; there are " +
                                std::to_string(block_bytes_.size()));
  }
  return static_cast<std::size_t>(block);
}

void CachePlanner::hold(std::span<const std::int64_t> blocks) {
  if (next_step_ != 0) throw std::invalid_argument("blocks are held before the first step is planned");
  for (const std::int64_t block : blocks) {
    const std::int64_t bytes = block_bytes_[index(block)];
    if (held_.emplace(block, Held{-1, kUnknown}).second) held_bytes_ += bytes;
  }
  most_held_bytes_ = std::max(most_held_bytes_, held_bytes_);
}

void CachePlanner::offer(std::int64_t block, const Held& held) { candidates_.emplace(held.next_use, block); }

// Advances to the next step: blocks fetched for the step before no longer count as ahead, and blocks of one more step
// may be evicted, unless later steps use them.
void CachePlanner::ask_for_next() {
  window_bytes_ -= open_[static_cast<std::size_t>(asked_++ - consumed_)].fetched_bytes;
  if (asked_ - consumed_ <= prefetched_) return;
  for (const std::int64_t block : open_.front().blocks) {
    const auto found = held_.find(block);
    if (found != held_.end() && found->second.last_step == consumed_) offer(block, found->second);
  }
  open_.pop_front();
  ++consumed_;
}

bool CachePlanner::evict(CacheActions& actions) {
  while (!candidates_.empty()) {
    const auto [use, block] = candidates_.top();
    candidates_.pop();
    const auto found = held_.find(block);
    if (found == held_.end() || found->second.next_use != use || found->second.last_step >= consumed_) continue;
    held_bytes_ -= block_bytes_[static_cast<std::size_t>(block)];
    held_.erase(found);
    actions.evictions.push_back(block);
    return true;
  }
  return false;
}

CacheActions CachePlanner::plan(std::span<const std::int64_t> blocks, std::span<const std::int64_t> ends,
                                std::size_t num_steps) {
  if (num_steps > ends.size() || (!ends.empty() && ends.back() != static_cast<std::int64_t>(blocks.size())) ||
      (!ends.empty() && ends.front() < 0) || !std::ranges::is_sorted(ends)) {
    throw std::invalid_argument(
        "ends: expected the ends of at least num_steps steps, in order, the last one that of "
        "blocks");
  }
  // The step of the next use after each use, and of the first use of each block, counted as next_step_ is.
  std::vector<std::int64_t> next_uses(blocks.size());
  std::unordered_map<std::int64_t, std::int64_t> first_uses;
  for (std::size_t step = ends.size(); step-- > 0;) {
    const auto begin = static_cast<std::size_t>(step == 0 ? 0 : ends[step - 1]);
    const std::int64_t number = next_step_ + static_cast<std::int64_t>(step);
    for (std::size_t i = begin; i < static_cast<std::size_t>(ends[step]); ++i) {
      index(blocks[i]);
      const auto [found, is_last] = first_uses.try_emplace(blocks[i], number);
      if (!is_last && found->second == number) throw std::invalid_argument("a step has a block twice");
      next_uses[i] = is_last ? unknown_use(number) : found->second;
      found->second = number;
    }
  }
  candidates_ = {};
  for (auto& [block, held] : held_) {
    const auto found = first_uses.find(block);
    held.next_use = found == first_uses.end() ? unknown_use(held.last_step) : found->second;
    if (held.last_step < consumed_) offer(block, held);
  }
  CacheActions actions;
  for (std::size_t i = 0, begin = 0; i < num_steps; ++i, ++next_step_) {
    const std::int64_t step = next_step_;
    const auto end = static_cast<std::size_t>(ends[i]);
    const auto used = blocks.subspan(begin, end - begin);
    open_.push_back({{used.begin(), used.end()}, 0});
    bool over = false, shrunk = false;
    // First the blocks that are held, so that none of them is evicted for others of the same step.
    for (std::size_t j = begin; j < end; ++j)
      if (const auto found = held_.find(blocks[j]); found != held_.end()) found->second = {step, next_uses[j]};
    for (std::size_t j = begin; j < end; ++j) {
      const std::int64_t block = blocks[j], bytes = block_bytes_[static_cast<std::size_t>(block)];
      if (!held_.try_emplace(block, Held{step, next_uses[j]}).second) continue;
      held_bytes_ += bytes;
      window_bytes_ += bytes;
      open_.back().fetched_bytes += bytes;
      while (window_bytes_ > depth_ && asked_ < step) ask_for_next();
      while (held_bytes_ > limit_) {
        if (evict(actions)) continue;
        if (asked_ == step) {
          over = true;
          break;
        }
        shrunk = true;
        ask_for_next();
      }
      most_held_bytes_ = std::max(most_held_bytes_, held_bytes_);
      actions.fetches.push_back(block);
      actions.steps.push_back(step);
      actions.after.push_back(asked_);
      actions.evict_ends.push_back(static_cast<std::int64_t>(actions.evictions.size()));
    }
    steps_over_limit_ += over;
    steps_shrunk_ += shrunk;
    begin = end;
  }
  return actions;
}

}  // namespace pycooldown
