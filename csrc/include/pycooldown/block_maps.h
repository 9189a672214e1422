// Reads blocks of a cache of object stores from their files, which are mapped into memory and then checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pycooldown/block_states.h"
#include "pycooldown/map_guard.h"
#include "pycooldown/mapped_file.h"

namespace pycooldown {

// The seal after the content of a block in its file: a magic number, its size and a checksum.
constexpr std::size_t kSealBytes = 24;
std::string seal_block(std::string_view content);

// The layout of blocks. Objects lie end to end: object o has bytes [bases[o], bases[o + 1]).
struct BlockLayout {
  // `bases` has shape (objects + 1,); `bounds`, of shape (blocks, 2) and ascending, says where each block begins and
  // ends; `stems` are those of the objects' files. Throws std::invalid_argument if they do not fit each other.
  BlockLayout(std::vector<std::int64_t> bases, std::vector<std::int64_t> bounds, std::vector<std::string> stems);

  std::vector<std::int64_t> bases, bounds;
  std::vector<std::string> stems;

  std::size_t num_blocks() const { return bounds.size() / 2; }
  std::int64_t begin(std::int64_t block) const { return bounds[2 * static_cast<std::size_t>(block)]; }
  std::int64_t end(std::int64_t block) const { return bounds[2 * static_cast<std::size_t>(block) + 1]; }
  // The block of a byte: the last one that begins at or before it.
  std::int64_t find(std::int64_t byte) const;
  std::string file_name(std::int64_t block) const;

 private:
  // The block of every 2^shift_-th byte, with which a search begins: a table of a fraction of the blocks.
  std::vector<std::int64_t> guide_;
  int shift_ = 0;
};

// The blocks that a process has mapped.
class BlockMaps {
 public:
  // `folder` ends with a slash, `states` is the file of BlockStates. At most `max_maps` blocks stay mapped, beside
  // those of ranges that are in use.
  BlockMaps(std::string folder, BlockLayout layout, const std::string& states, std::size_t max_maps);

  const BlockLayout& layout() const { return layout_; }
  std::string path(std::int64_t block) const { return folder_ + layout_.file_name(block); }
  std::size_t num_mapped() const { return held_.size(); }

  enum class State { there, absent, damaged };
  struct Found {
    State state;
    std::shared_ptr<MappedFile> file;
  };
  // Maps a block, unless it is mapped. The file is checked by the first process of the node that maps it.
  Found find(std::int64_t block);

  // Begins a read of many blocks: unmaps what was evicted, so that the disk has its room again, and what is read least
  // if there is too much.
  void begin_read();
  // The number that `note_entry` gave a block in this read, or nothing.
  std::optional<std::uint32_t> entry(std::int64_t block) const {
    const std::uint32_t place = places_[static_cast<std::size_t>(block)];
    if (place == kNowhere || held_[place].entry_read != reads_) return {};
    return held_[place].entry;
  }
  // Notes a number for a block that `find` has found in this read.
  void note_entry(std::int64_t block, std::uint32_t entry);

 private:
  struct Held {
    std::int64_t block;
    std::uint8_t state;
    std::uint32_t entry = 0;
    std::uint64_t last_read, entry_read = 0;  // numbers of reads
    std::shared_ptr<MappedFile> file;
  };
  static constexpr std::uint32_t kNowhere = ~std::uint32_t{0};

  Found map(std::int64_t block, std::uint8_t state);
  void drop(std::size_t place);

  std::string folder_;
  BlockLayout layout_;
  BlockStates states_;
  std::size_t max_maps_;
  std::vector<Held> held_;
  std::vector<std::uint32_t> places_;  // by block, in held_
  std::uint64_t evictions_ = 0, reads_ = 0;
};

// The bytes of some ranges, in mapped blocks or from given contents. They stay readable as long as this object lives.
class BlockRanges {
 public:
  // Ranges of objects, as pycooldown.data.byte_ranges.Spans has them. Throws std::invalid_argument if one is not within
  // blocks.
  BlockRanges(std::shared_ptr<BlockMaps> maps, std::span<const std::int64_t> objects,
              std::span<const std::int64_t> starts, std::span<const std::int64_t> ends);

  // Blocks without a valid file; those in `damaged` have an invalid one. Nothing can be read before all are available.
  const std::vector<std::int64_t>& missing() const { return missing_; }
  const std::vector<std::int64_t>& damaged() const { return damaged_; }
  void give(std::int64_t block, std::string content);
  // Maps missing blocks that have files now.
  void retry();

  struct Range {
    const char* data;
    std::size_t size;
    MappedBytes* map;  // for a guard; null if the bytes are in memory
  };
  std::size_t size() const { return ranges_.size(); }
  const Range& operator[](std::size_t i) const { return ranges_[i]; }
  // Prefetches the memory of a range that is read soon after range i.
  void prefetch(std::size_t i) const;
  // Copies all ranges, end to end.
  void join(char* out) const;
  // Throws std::system_error if pages of a map were lost. Do not use bytes that were read before this check.
  void check() const;

 private:
  struct Entry {
    std::int64_t block;
    std::shared_ptr<MappedFile> file;  // or:
    std::shared_ptr<const std::string> content;
    Range range(std::int64_t from, std::int64_t size) const;
  };
  struct Place {
    std::uint32_t entry;      // of the block that a range begins in
    bool goes_on;             // continues in the next blocks
    std::int64_t from, size;  // within the first block; of the range
  };
  // The number of a block's entry, which is made if there is none.
  std::uint32_t enter(std::int64_t block);
  void resolve();

  std::shared_ptr<BlockMaps> maps_;
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> next_entries_;                          // of the blocks in which ranges go on, in order
  std::unordered_map<std::int64_t, std::uint32_t> missing_entries_;  // of blocks that were missing at first
  std::vector<Place> places_;
  std::vector<std::int64_t> missing_, damaged_;
  std::vector<Range> ranges_;
  std::list<std::string> joined_;  // ranges that are in several blocks
};

// Copies bytes of ranges while watching for lost pages; between copies, it watches those of `others`.
class RangeCopy {
 public:
  explicit RangeCopy(std::span<MappedBytes* const> others = {}) : others_(others) { guard_.watch(others_); }
  void operator()(const BlockRanges::Range& range, const char* from, std::size_t size, void* out);

 private:
  MapGuard guard_;
  std::span<MappedBytes* const> others_;
};

}  // namespace pycooldown
