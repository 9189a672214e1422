// Random access to the samples of many shards, one after another. A bounded number of shards, the most read ones, are
// mapped into memory; the others are opened for each read. Objects in stores are only looked up here.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pycooldown/map_guard.h"
#include "pycooldown/mapped_file.h"
#include "pycooldown/tar_index.h"

namespace pycooldown {

class File;

class TarReader {
 public:
  // At most `max_maps` shards are mapped at a time; with 0, all are read without mapping them.
  explicit TarReader(std::size_t max_maps);

  // Adds a shard whose index lies beside it.
  void add(std::string path, std::shared_ptr<const TarIndex> index);
  // Adds all shards of an index, whose paths are relative to `folder` (which ends with a slash).
  void add_all(std::shared_ptr<const TarIndex> index, std::string folder);

  std::uint32_t num_shards() const { return static_cast<std::uint32_t>(shards_.size()); }
  std::uint64_t size() const { return starts_.back(); }
  const TarIndex& index(std::uint32_t shard) const { return *sources_[shards_[shard].source].index; }
  std::uint32_t source(std::uint32_t shard) const { return shards_[shard].source; }
  std::uint32_t number(std::uint32_t shard) const { return shards_[shard].number; }  // within its index
  std::string path(std::uint32_t shard) const;
  const std::vector<MappedBytes*>& index_maps() const { return index_maps_; }  // for a MapGuard

  struct Place {
    std::uint32_t shard;
    std::uint64_t sample;  // within the shard
  };
  Place find(std::uint64_t i) const;

  void get(Place place, TarSample& out) const { index(place.shard).get(number(place.shard), place.sample, out); }

  // The reads of one batch. Threads, like those of Python, may take turns between the reads of their batches.
  //
  // A shard that was truncated or written to is an error, also in the middle of a read: lost pages of a map are
  // replaced by zeros (see MapGuard), and `finish` checks the status of every mapped shard that was read. This costs a
  // system call per shard and batch, and needs no open file. The file of an index, which is renamed into place, is
  // checked before the reads; `finish` then detects lost pages.
  class Batch {
   public:
    // Throws std::system_error if the file of an index has changed.
    explicit Batch(TarReader& reader);
    ~Batch();
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

    // Points at bytes of a shard until the next call of any batch. Mapping one shard may unmap another (second chance,
    // an LRU that costs a bit per use).
    const char* view(std::uint32_t shard, std::uint64_t offset, std::size_t size);

    // Copies some of the bytes that the last `view` points at.
    void copy(const char* from, std::size_t size, void* out);

    // Throws std::system_error if a shard has changed since it was indexed, or an index has lost pages. Do not use data
    // that were read before this check.
    void finish() const;

   private:
    TarReader& reader_;
    const std::uint64_t number_;
    MapGuard guard_;
    MappedFile* viewed_ = nullptr;     // target of the last view, unless it is the buffer
    std::vector<std::uint32_t> read_;  // mapped shards
  };

  // Prefetch the memory that reading a sample will touch: its place in the index, then its record, then its bytes.
  void prefetch_place(Place place) const { index(place.shard).prefetch_place(number(place.shard), place.sample); }
  void prefetch_record(Place place) const { index(place.shard).prefetch_record(number(place.shard), place.sample); }
  std::uint64_t first_offset(Place place) const {
    return index(place.shard).first_offset(number(place.shard), place.sample);
  }
  void prefetch_bytes(std::uint32_t shard, std::uint64_t offset) const;

 private:
  struct Source {
    std::shared_ptr<const TarIndex> index;
    std::string path;  // of the only shard; or the folder of all of them, with a slash
    bool is_folder;
  };
  struct Shard {
    std::uint32_t source, number;
    std::unique_ptr<MappedFile> map = nullptr;
    std::uint64_t window = 0;
    std::uint64_t last_batch = 0;  // the last one that read the map
    std::uint32_t unfinished = 0;  // number of living batches that read it
    std::uint32_t reads = 0;       // while unmapped, in a window of num_reads_
    bool recent = false;
    bool known = false;  // its fingerprint is the recorded one
  };
  bool is_hot(Shard& shard);
  void map(std::uint32_t shard);
  void unmap(std::uint32_t shard);
  void require_mapped(std::uint32_t shard) const;
  void require_indexed(std::uint32_t shard, const File& file);

  std::vector<Source> sources_;
  std::vector<Shard> shards_;
  std::vector<std::uint64_t> starts_{0};
  std::vector<MappedBytes*> index_maps_;  // of the indexes that are mapped
  std::size_t max_maps_;
  std::vector<std::uint32_t> mapped_;
  std::size_t hand_ = 0;
  std::uint64_t num_reads_ = 0;  // of unmapped shards
  std::uint64_t num_batches_ = 0;
  std::vector<char> buffer_;
};

}  // namespace pycooldown
