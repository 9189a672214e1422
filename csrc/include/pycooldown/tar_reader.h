// Random access to the samples of many shards, laid end to end. A bounded number of shards, those that are read most,
// are mapped into memory; the others are opened for each read.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pycooldown/map_guard.h"
#include "pycooldown/tar_index.h"

namespace pycooldown {

// One shard in memory, read-only; its file is closed again at once.
class Map {
 public:
  // Throws std::system_error if the file cannot be opened or has changed since it was indexed.
  Map(const std::string& path, const TarIndex& index);
  ~Map();
  Map(const Map&) = delete;
  Map& operator=(const Map&) = delete;

  const char* data() const { return reinterpret_cast<const char*>(mapped_.bytes.data()); }
  MappedBytes* mapped() { return &mapped_; }

  // Throws std::system_error if the mapped file was written to or truncated. A file that was deleted, or replaced by
  // another one of its name, is still there as it was mapped.
  void check(const std::string& path, const TarIndex& index) const;

 private:
  MappedBytes mapped_;
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

  // Asks the processor to bring in what reading a sample will touch: first its row, then (rows there) its bytes.
  void prefetch_row(Place place) const;
  void prefetch_bytes(Place place) const;

  // The reads of one batch. Threads may take turns between the reads of their batches, as those of Python do.
  //
  // A shard that was truncated or written to is an error, even if that happens in the middle of a read: lost pages of a
  // map are replaced by zeros (see MapGuard), and `finish` looks at the status of every mapped shard that was read,
  // which costs a system call a shard and batch, and needs no open file.
  class Batch {
   public:
    explicit Batch(TarReader& reader) : reader_(reader), number_(++reader.num_batches_) {}
    ~Batch();
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    // Points at bytes of a shard until the next call of any batch. Mapping one shard may unmap another (second chance,
    // an LRU that costs a bit per use).
    const char* view(std::uint32_t shard, std::uint64_t offset, std::size_t size);

    // Copies some of the bytes that the last `view` points at.
    void copy(const char* from, std::size_t size, void* out);

    // Throws std::system_error if a shard has changed since it was indexed. Nothing that was read may be used before.
    void finish() const;

   private:
    TarReader& reader_;
    const std::uint64_t number_;
    MapGuard guard_;
    Map* viewed_ = nullptr;            // where the last view points, unless that is the buffer
    std::vector<std::uint32_t> read_;  // mapped shards
  };

 private:
  struct Shard {
    std::string path;
    std::shared_ptr<const TarIndex> index;
    std::unique_ptr<Map> map = nullptr;
    bool recent = false;
    std::uint32_t reads = 0;  // while unmapped, in a window of num_reads_
    std::uint64_t window = 0;
    std::uint64_t last_batch = 0;  // the last one that read the map
    std::uint32_t unfinished = 0;  // how many times it stands in batches that live
  };
  bool is_hot(Shard& shard);
  void map(std::uint32_t shard);
  void unmap(Shard& shard);

  std::vector<Shard> shards_;
  std::vector<std::uint64_t> starts_{0};
  std::size_t max_maps_;
  std::vector<std::uint32_t> mapped_;
  std::size_t hand_ = 0;
  std::uint64_t num_reads_ = 0;  // of unmapped shards
  std::uint64_t num_batches_ = 0;
  std::vector<char> buffer_;
};

}  // namespace pycooldown
