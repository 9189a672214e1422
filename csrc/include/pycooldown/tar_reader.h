// Random access to the samples of many shards, laid end to end. A bounded number of shards, those that are read most,
// are mapped into memory; the others are opened for each read.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pycooldown/tar_index.h"

namespace pycooldown {

// One shard in memory, read-only; its file is closed again at once.
class Map {
 public:
  // Throws std::system_error where the file cannot be opened or is no longer what was indexed.
  Map(const std::string& path, const TarIndex& index);
  ~Map();
  Map(const Map&) = delete;
  Map& operator=(const Map&) = delete;

  const char* data() const { return data_; }

  // Throws std::system_error where the mapped file was written to or truncated. A file that was deleted, or replaced by
  // another one of its name, is still there as it was mapped.
  void check(const std::string& path, const TarIndex& index) const;

 private:
  char* data_ = nullptr;
  std::size_t size_;
  std::uint64_t device_, inode_;
};

class TarReader {
 public:
  // At most `max_maps` shards are mapped at a time; with 0, all are read without mapping them.
  explicit TarReader(std::size_t max_maps);

  void add(std::string path, std::shared_ptr<const TarIndex> index);

  std::uint64_t size() const { return starts_.back(); }
  const TarIndex& index(std::uint32_t shard) const { return *shards_[shard].index; }
  const std::string& path(std::uint32_t shard) const { return shards_[shard].path; }

  struct Place {
    std::uint32_t shard;
    std::uint64_t sample;  // within the shard
  };
  Place find(std::uint64_t i) const;

  // Begins a call of `view` and others for one batch. Reading a page of a map that the file no longer has kills the
  // process (SIGBUS), so each call looks at the status of the shards it reads first. That costs a system call a shard
  // and batch, needs no open file, and leaves the time between the look and the copy. Handlers of that signal would
  // close it, but a handler is one for the process, and jumping out of it is undefined among threads that hold locks;
  // PyTorch's workers set their own besides. Without maps (`max_maps` = 0) nothing is left open: a file that is short
  // is an error of read().
  void begin_call() { ++call_; }

  // Bytes of a shard, valid until the next call. Mapping one shard may unmap another (second chance, an LRU that costs
  // a bit per use).
  const char* view(std::uint32_t shard, std::uint64_t offset, std::size_t size);

  // Asks the processor to bring in what reading a sample will touch: first its row, then (rows there) its bytes.
  void prefetch_row(Place place) const;
  void prefetch_bytes(Place place) const;

 private:
  struct Shard {
    std::string path;
    std::shared_ptr<const TarIndex> index;
    std::unique_ptr<Map> map = nullptr;
    bool recent = false;
    std::uint32_t reads = 0;  // while unmapped, in a window of num_reads_
    std::uint64_t window = 0;
    std::uint64_t checked = 0;  // the last call that found the mapped file unchanged
  };
  bool is_hot(Shard& shard);
  void map(std::uint32_t shard);

  std::vector<Shard> shards_;
  std::vector<std::uint64_t> starts_{0};
  std::size_t max_maps_;
  std::vector<std::uint32_t> mapped_;
  std::size_t hand_ = 0;
  std::uint64_t num_reads_ = 0;  // of unmapped shards
  std::uint64_t call_ = 0;
  std::vector<char> buffer_;
};

}  // namespace pycooldown
