// Random access to the samples of many shards, laid end to end, through a bounded number of memory maps.
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

 private:
  char* data_ = nullptr;
  std::size_t size_;
};

class TarReader {
 public:
  // At most `max_open` shards are mapped at a time.
  explicit TarReader(std::size_t max_open);

  void add(std::string path, std::shared_ptr<const TarIndex> index);

  std::uint64_t size() const { return starts_.back(); }
  const TarIndex& index(std::uint32_t shard) const { return *shards_[shard].index; }
  const std::string& path(std::uint32_t shard) const { return shards_[shard].path; }

  struct Place {
    std::uint32_t shard;
    std::uint64_t sample;  // within the shard
  };
  Place find(std::uint64_t i) const;

  // The bytes of a shard, valid until the next call: mapping one shard may unmap another (second chance, an LRU that
  // costs a bit per use).
  const char* open(std::uint32_t shard);

  // Asks the processor to bring in what reading a sample will touch: first its row, then (rows there) its bytes.
  void prefetch_row(Place place) const;
  void prefetch_bytes(Place place) const;

 private:
  struct Shard {
    std::string path;
    std::shared_ptr<const TarIndex> index;
    std::unique_ptr<Map> map;
    bool recent = false;
  };
  std::vector<Shard> shards_;
  std::vector<std::uint64_t> starts_{0};
  std::size_t max_open_;
  std::vector<std::uint32_t> open_;
  std::size_t hand_ = 0;
};

}  // namespace pycooldown
