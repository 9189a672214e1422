// Random access to the samples of many shards, laid end to end. A bounded number of shards, those that are read most,
// are mapped into memory; the others are opened for each read. Objects in stores are only looked up here.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pycooldown/mapped_file.h"
#include "pycooldown/tar_index.h"

namespace pycooldown {

class TarReader {
 public:
  // At most `max_maps` shards are mapped at a time; with 0, all are read without mapping them.
  explicit TarReader(std::size_t max_maps);

  // Adds the shard of an index that lies beside it.
  void add(std::string path, std::shared_ptr<const TarIndex> index);
  // Adds all shards of an index, whose paths are relative to `folder` (which ends with a slash).
  void add_all(std::shared_ptr<const TarIndex> index, std::string folder);

  std::uint32_t num_shards() const { return static_cast<std::uint32_t>(shards_.size()); }
  std::uint64_t size() const { return starts_.back(); }
  const TarIndex& index(std::uint32_t shard) const { return *sources_[shards_[shard].source].index; }
  std::uint32_t source(std::uint32_t shard) const { return shards_[shard].source; }
  std::uint32_t number(std::uint32_t shard) const { return shards_[shard].number; }  // within its index
  std::string path(std::uint32_t shard) const;

  struct Place {
    std::uint32_t shard;
    std::uint64_t sample;  // within the shard
  };
  Place find(std::uint64_t i) const;

  void get(Place place, TarSample& out) const { index(place.shard).get(number(place.shard), place.sample, out); }

  // Begins a call of `view` and others for one batch. Reading a page of a map that the file no longer has kills the
  // process (SIGBUS), so each call looks at the status of the files it reads first. That costs a system call a shard
  // and batch, needs no open file, and leaves the time between the look and the copy. Handlers of that signal would
  // close it, but a handler is one for the process, and jumping out of it is undefined among threads that hold locks;
  // PyTorch's workers set their own besides. Without maps (`max_maps` = 0) nothing is left open: a file that is short
  // is an error of read(). The file of an index is written aside and renamed, so only strangers write into it.
  void begin_call();

  // Bytes of a shard, valid until the next call. Mapping one shard may unmap another (second chance, an LRU that costs
  // a bit per use).
  const char* view(std::uint32_t shard, std::uint64_t offset, std::size_t size);

  // Ask the processor to bring in what reading a sample will touch: its place in the index, then its record, then its
  // bytes.
  void prefetch_place(Place place) const { index(place.shard).prefetch_place(number(place.shard), place.sample); }
  void prefetch_record(Place place) const { index(place.shard).prefetch_record(number(place.shard), place.sample); }
  void prefetch_bytes(Place place) const;

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
    std::uint64_t checked = 0;  // the last call that found the mapped file unchanged
    std::uint32_t reads = 0;    // while unmapped, in a window of num_reads_
    bool recent = false;
    bool known = false;  // its fingerprint is the recorded one
  };
  bool is_hot(Shard& shard);
  void map(std::uint32_t shard);
  void require_indexed(std::uint32_t shard, std::uint64_t size, std::int64_t mtime_ns, const ReadAt& read);

  std::vector<Source> sources_;
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
