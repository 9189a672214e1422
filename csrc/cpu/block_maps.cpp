#include "pycooldown/block_maps.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <stdexcept>
#include <system_error>

#include "checksum.h"

namespace pycooldown {

namespace {

constexpr char kMagic[8] = {'p', 'y', 'c', 'd', 'b', 'l', 'k', '1'};

std::string hex(std::int64_t value) {
  std::array<char, 16> digits;
  return {digits.data(), std::to_chars(digits.begin(), digits.end(), value, 16).ptr};
}

[[noreturn]] void fail(int error, const std::string& what) {
  throw std::system_error(error, std::generic_category(), what);
}

std::string_view view(const MappedFile& file) { return {file.data(), file.size()}; }

}  // namespace

std::string seal_block(std::string_view content) {
  std::string seal(kMagic, sizeof kMagic);
  for (const std::uint64_t number : {std::uint64_t{content.size()}, striped_checksum(content)})
    seal.append(reinterpret_cast<const char*>(&number), sizeof number);
  return seal;
}

BlockLayout::BlockLayout(std::vector<std::int64_t> all_bases, std::vector<std::int64_t> all_bounds,
                         std::vector<std::string> all_stems)
    : bases(std::move(all_bases)), bounds(std::move(all_bounds)), stems(std::move(all_stems)) {
  if (bases.size() != stems.size() + 1 || bounds.size() % 2 != 0)
    throw std::invalid_argument("bases, bounds and stems do not fit each other");
  if (bounds.empty()) return;
  // About four blocks for each number in the guide.
  const auto count = static_cast<std::int64_t>(num_blocks()), last = begin(count - 1);
  const std::uint64_t width = std::max<std::int64_t>(1, last / std::max<std::int64_t>(1, count / 4));
  shift_ = static_cast<int>(std::bit_width(width)) - 1;
  std::int64_t block = 0;
  for (std::int64_t at = 0; at >> shift_ <= last >> shift_; at += std::int64_t{1} << shift_) {
    while (block + 1 < count && begin(block + 1) <= at) ++block;
    guide_.push_back(block);
  }
  guide_.push_back(count - 1);
}

std::int64_t BlockLayout::find(std::int64_t byte) const {
  const auto at = std::min(static_cast<std::size_t>(byte >> shift_), guide_.size() - 2);
  std::int64_t first = guide_[at], count = guide_[at + 1] - first + 1;
  while (count > 1) {
    const std::int64_t half = count / 2;
    first = begin(first + half) <= byte ? first + half : first;
    count -= half;
  }
  return first;
}

std::string BlockLayout::file_name(std::int64_t block) const {
  // Empty objects have the same base as the next object that is not empty. The search returns the last of them.
  const auto object = static_cast<std::size_t>(std::ranges::upper_bound(bases, begin(block)) - bases.begin() - 1);
  return stems[object] + '-' + hex(begin(block) - bases[object]) + '-' + hex(end(block) - bases[object]) + ".block";
}

BlockMaps::BlockMaps(std::string folder, BlockLayout layout, const std::string& states, std::size_t max_maps)
    : folder_(std::move(folder)),
      layout_(std::move(layout)),
      states_(states, layout_.num_blocks()),
      max_maps_(max_maps),
      places_(layout_.num_blocks(), kNowhere) {}

BlockMaps::Found BlockMaps::find(std::int64_t block) {
  const std::uint8_t now = states_.state(block);
  if (const std::uint32_t place = places_[static_cast<std::size_t>(block)]; place != kNowhere) {
    Held& held = held_[place];
    if (held.state == now) {
      held.last_read = reads_;
      return {State::there, held.file};
    }
    drop(place);
  }
  if (now == 0) return {State::absent, nullptr};
  Found found = map(block, now);
  if (found.state == State::there) {
    places_[static_cast<std::size_t>(block)] = static_cast<std::uint32_t>(held_.size());
    held_.push_back({.block = block, .state = now, .last_read = reads_, .file = found.file});
  }
  return found;
}

void BlockMaps::note_entry(std::int64_t block, std::uint32_t entry) {
  Held& held = held_[places_[static_cast<std::size_t>(block)]];
  held.entry = entry;
  held.entry_read = reads_;
}

BlockMaps::Found BlockMaps::map(std::int64_t block, std::uint8_t state) {
  std::shared_ptr<MappedFile> file;
  try {
    file = std::make_shared<MappedFile>(path(block));
  } catch (const std::system_error& error) {
    if (error.code().value() == ENOENT) return {State::absent, nullptr};  // evicted in the meantime
    throw;
  }
  const auto size = static_cast<std::size_t>(layout_.end(block) - layout_.begin(block));
  if (file->size() != size + kSealBytes) return {State::damaged, nullptr};
#if defined(MADV_POPULATE_READ)
  // One call replaces a page fault for every few pages. It only saves time, so it may fail.
  ::madvise(const_cast<char*>(file->data()), file->size(), MADV_POPULATE_READ);
#endif
  MapGuard guard;
  MappedBytes* const watched = file->mapped();
  guard.watch({&watched, 1});
  const std::string_view content = view(*file);
  const bool is_whole = states_.is_checked(block, state) || content.substr(size) == seal_block(content.substr(0, size));
  guard.watch({});
  if (!is_whole || watched->lost) return {State::damaged, nullptr};
  states_.note_checked(block, state);
  return {State::there, file};
}

void BlockMaps::drop(std::size_t place) {
  places_[static_cast<std::size_t>(held_[place].block)] = kNowhere;
  if (place + 1 < held_.size()) {
    held_[place] = std::move(held_.back());
    places_[static_cast<std::size_t>(held_[place].block)] = static_cast<std::uint32_t>(place);
  }
  held_.pop_back();
}

void BlockMaps::begin_read() {
  ++reads_;
  if (const std::uint64_t evictions = states_.evictions(); evictions != evictions_) {
    evictions_ = evictions;
    for (std::size_t place = held_.size(); place-- > 0;)
      if (states_.state(held_[place].block) != held_[place].state) drop(place);
  }
  if (held_.size() <= max_maps_) return;
  // Releases a quarter at once, so that the list is seldom scanned.
  std::vector<std::uint64_t> reads;
  for (const Held& held : held_) reads.push_back(held.last_read);
  const auto quarter = reads.begin() + static_cast<std::ptrdiff_t>(held_.size() - max_maps_ + max_maps_ / 4);
  std::ranges::nth_element(reads, std::min(quarter, reads.end() - 1));
  const std::uint64_t oldest = *std::min(quarter, reads.end() - 1);
  for (std::size_t place = held_.size(); place-- > 0;)
    if (held_[place].last_read <= oldest) drop(place);
}

BlockRanges::BlockRanges(std::shared_ptr<BlockMaps> maps, std::span<const std::int64_t> objects,
                         std::span<const std::int64_t> starts, std::span<const std::int64_t> ends)
    : maps_(std::move(maps)) {
  if (objects.size() != starts.size() || objects.size() != ends.size())
    throw std::invalid_argument("objects, starts and ends must be of one size");
  maps_->begin_read();
  const BlockLayout& layout = maps_->layout();
  places_.reserve(objects.size());
  for (std::size_t i = 0; i < objects.size(); ++i) {
    const auto refuse = [&] {
      throw std::invalid_argument("bytes " + std::to_string(starts[i]) + " to " + std::to_string(ends[i]) +
                                  " of object " + std::to_string(objects[i]) + " are in no block");
    };
    const auto object = static_cast<std::size_t>(objects[i]);
    if (objects[i] < 0 || object + 1 >= layout.bases.size() || layout.num_blocks() == 0 || starts[i] < 0 ||
        starts[i] > ends[i] || ends[i] > layout.bases[object + 1] - layout.bases[object])
      refuse();
    const std::int64_t begin = layout.bases[object] + starts[i], size = ends[i] - starts[i];
    std::int64_t block = layout.find(begin);
    if (begin < layout.begin(block) || begin > layout.end(block)) refuse();
    const Place place{enter(block), layout.end(block) < begin + size, begin - layout.begin(block), size};
    while (layout.end(block) < begin + size) {
      if (static_cast<std::size_t>(++block) == layout.num_blocks() || layout.begin(block) != layout.end(block - 1))
        refuse();
      next_entries_.push_back(enter(block));
    }
    places_.push_back(place);
  }
  if (missing_.empty()) resolve();
}

std::uint32_t BlockRanges::enter(std::int64_t block) {
  if (const auto entry = maps_->entry(block)) return *entry;
  const auto number = static_cast<std::uint32_t>(entries_.size());
  auto [state, file] = maps_->find(block);
  if (state == BlockMaps::State::there) {
    maps_->note_entry(block, number);
  } else {
    const auto [found, is_new] = missing_entries_.try_emplace(block, number);
    if (!is_new) return found->second;
    missing_.push_back(block);
    if (state == BlockMaps::State::damaged) damaged_.push_back(block);
  }
  entries_.push_back({block, std::move(file), nullptr});
  return number;
}

void BlockRanges::give(std::int64_t block, std::string content) {
  const auto found = missing_entries_.find(block);
  if (found == missing_entries_.end())
    throw std::invalid_argument("block " + std::to_string(block) + " is none of those that were missing");
  if (static_cast<std::int64_t>(content.size()) != maps_->layout().end(block) - maps_->layout().begin(block))
    throw std::invalid_argument("block " + std::to_string(block) + " has another size");
  entries_[found->second].content = std::make_shared<const std::string>(std::move(content));
}

void BlockRanges::retry() {
  std::vector<std::int64_t> still;
  damaged_.clear();
  for (const std::int64_t block : missing_) {
    Entry& entry = entries_[missing_entries_.at(block)];
    if (entry.content) continue;
    auto [state, file] = maps_->find(block);
    entry.file = std::move(file);
    if (state != BlockMaps::State::there) still.push_back(block);
    if (state == BlockMaps::State::damaged) damaged_.push_back(block);
  }
  missing_ = std::move(still);
  if (missing_.empty()) resolve();
}

BlockRanges::Range BlockRanges::Entry::range(std::int64_t from, std::int64_t size) const {
  return {(content ? content->data() : file->data()) + from, static_cast<std::size_t>(size),
          content ? nullptr : file->mapped()};
}

void BlockRanges::resolve() {
  RangeCopy copy;
  ranges_.reserve(places_.size());
  auto next = next_entries_.begin();
  for (const Place& place : places_) {
    if (!place.goes_on) {
      ranges_.push_back(entries_[place.entry].range(place.from, place.size));
      continue;
    }
    std::string& joined = joined_.emplace_back(static_cast<std::size_t>(place.size), '\0');
    std::int64_t from = place.from, done = 0;
    for (const Entry* entry = &entries_[place.entry];; entry = &entries_[*next++], from = 0) {
      const std::int64_t rest = maps_->layout().end(entry->block) - maps_->layout().begin(entry->block) - from;
      const Range part = entry->range(from, std::min(rest, place.size - done));
      copy(part, part.data, part.size, joined.data() + done);
      done += static_cast<std::int64_t>(part.size);
      if (done == place.size) break;
    }
    ranges_.push_back({joined.data(), joined.size(), nullptr});
  }
}

void BlockRanges::join(char* out) const {
  RangeCopy copy;
  for (std::size_t i = 0; i < ranges_.size(); ++i) {
    prefetch(i);
    copy(ranges_[i], ranges_[i].data, ranges_[i].size, out);
    out += ranges_[i].size;
  }
  check();
}

void BlockRanges::prefetch(std::size_t i) const {
  constexpr std::size_t kAhead = 8, kLine = 64, kAtMost = 512;
  if (i + kAhead >= ranges_.size()) return;
  const Range& next = ranges_[i + kAhead];
  for (std::size_t at = 0; at < std::min(next.size, kAtMost); at += kLine) __builtin_prefetch(next.data + at);
}

void BlockRanges::check() const {
  for (const Entry& entry : entries_)
    if (entry.file && entry.file->mapped()->lost)
      fail(EIO, maps_->path(entry.block) + " was truncated while it was mapped, or its disk fails");
}

void RangeCopy::operator()(const BlockRanges::Range& range, const char* from, std::size_t size, void* out) {
  if (range.map) guard_.watch({&range.map, 1});
  std::memcpy(out, from, size);
  guard_.watch(others_);
}

}  // namespace pycooldown
