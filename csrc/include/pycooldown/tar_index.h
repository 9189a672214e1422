// Positions of the samples of tar shards: the index of one shard, or of all shards of a data set in one file.
//
// Members form samples as in webdataset: the key is the path up to the first dot of its last component, the rest is the
// extension, and consecutive members with the same key are one sample.
//
// An index is used in the form of its file, which may be mapped into memory and shared by all processes. Opening it
// reads its data about shards and nothing about samples, which are checked one by one when they are looked up.
//
// A mapped file may lose its pages at any time. So all methods of a mapped index are called under a MapGuard that
// watches it, by `guarded` or by TarReader::Batch.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pycooldown/mapped_file.h"

namespace pycooldown {

// Members follow each other in the order of their offsets.
struct TarMember {
  std::uint64_t offset;     // of the data, in bytes from the start of the shard; a multiple of 512
  std::uint64_t size;       // bytes
  std::uint32_t extension;  // index into the shard's extensions
};

struct TarSample {
  std::string_view key;
  std::vector<TarMember> members;
};

// One sample that cannot be read, or a break after which nothing of the shard can.
struct TarFault {
  std::uint64_t offset;  // of the header at fault, in bytes
  std::string what;
};

// Copies up to `size` bytes from `offset` and returns how many there were.
using ReadAt = std::function<std::size_t(std::uint64_t offset, char* out, std::size_t size)>;

namespace index_file {
struct Header;
struct ShardRow;
}  // namespace index_file

class TarIndex {
 public:
  // Read an index's data about its shards. Return nullptr if the bytes are no index of this version. Throw
  // std::invalid_argument if such an index is damaged, std::system_error if the file cannot be mapped.
  static std::shared_ptr<TarIndex> parse(std::string bytes);
  static std::shared_ptr<TarIndex> map(const std::string& path);

  std::string_view bytes() const { return bytes_; }

  std::uint32_t num_shards() const;
  std::uint64_t num_samples() const;
  std::uint64_t first_sample(std::uint32_t shard) const;  // number of samples in the shards before it
  std::uint64_t num_samples(std::uint32_t shard) const { return first_sample(shard + 1) - first_sample(shard); }

  std::uint64_t shard_size(std::uint32_t shard) const;     // bytes
  std::int64_t shard_mtime_ns(std::uint32_t shard) const;  // nanoseconds since the epoch; 0 of objects
  std::string_view path(std::uint32_t shard) const;        // empty where the index lies beside its shard
  std::string_view version(std::uint32_t shard) const;     // of objects; else empty
  std::uint32_t table(std::uint32_t shard) const;          // shards of one table have the same extensions
  const std::vector<std::string>& extensions(std::uint32_t table) const { return tables_[table].extensions; }
  std::uint32_t num_tables() const { return static_cast<std::uint32_t>(tables_.size()); }

  std::uint32_t num_domains() const;
  std::string_view domain(std::uint32_t domain) const;
  std::uint32_t first_shard(std::uint32_t domain) const;  // its shards go on to those of the next domain

  std::uint32_t num_faults() const;
  std::pair<std::uint32_t, TarFault> fault(std::uint32_t number) const;  // with its shard

  // Looks up sample i of a shard. Throws std::invalid_argument if the index is damaged there.
  void get(std::uint32_t shard, std::uint64_t i, TarSample& out) const;

  // Looks up every sample of a shard.
  void verify(std::uint32_t shard) const;

  // Throws std::system_error if the mapped file of the index was written to, or has lost pages.
  void check_file() const;
  // The same for lost pages only, without a system call. Data read since the last call are correct if this returns.
  void require_pages() const;

  MappedBytes* mapped() const { return file_ ? file_->mapped() : nullptr; }

  // Returns the result of `read`, which reads this index. Throws std::system_error if pages were lost.
  template <class Read>
  auto guarded(const Read& read) const {
    MapGuard guard;
    MappedBytes* const map = mapped();
    if (map) guard.watch({&map, 1});
    const auto result = read();
    require_pages();
    return result;
  }

  // A checksum of some headers, spread over the shard, and the beginnings of the data after them. Nearly every shard
  // that was rewritten with the same size and time has another one. 0 for a shard without samples.
  std::uint64_t fingerprint(std::uint32_t shard, const ReadAt& read) const;
  // Whether a shard has the fingerprint that was recorded, if one was.
  bool has_fingerprint(std::uint32_t shard, const ReadAt& read) const;

  // Prefetch the memory for looking up a sample: first its place, then (with the place loaded) its record. With the
  // record loaded, `first_offset` tells where its data begin.
  void prefetch_place(std::uint32_t shard, std::uint64_t i) const;
  void prefetch_record(std::uint32_t shard, std::uint64_t i) const;
  std::uint64_t first_offset(std::uint32_t shard, std::uint64_t i) const;

 private:
  friend class TarIndexWriter;
  struct Layout {
    std::uint32_t extension, gap;  // of a member; blocks between its data and the end of those of the member before
  };
  struct Table {
    std::vector<std::string> extensions;
    std::vector<std::vector<Layout>> layouts;
  };
  TarIndex() = default;
  bool open();
  void open_directory();
  void require(bool condition) const;
  const index_file::Header& header() const;
  index_file::ShardRow row(std::uint32_t shard) const;
  template <class Row>
  Row entry(std::uint64_t rows_at, std::uint32_t number) const;
  std::string_view text(std::uint64_t position, std::uint64_t size) const;
  std::string_view table_text(std::uint32_t table) const;
  std::string_view section(const index_file::ShardRow& row) const;
  std::string_view record(std::uint32_t shard, const index_file::ShardRow& row, std::uint64_t i) const;
  Table parse_table(std::string_view text) const;

  std::string_view bytes_, texts_;
  std::string owned_;
  std::unique_ptr<MappedFile> file_;
  std::string path_;  // of the mapped file
  std::vector<Table> tables_;
};

// Reads ustar, GNU and pax headers. Never throws because of the bytes: parts that cannot be read become faults. A time
// of nullopt means an object, which has a version instead, and so no fingerprint.
std::shared_ptr<TarIndex> scan_tar(const ReadAt& read, std::uint64_t shard_size,
                                   std::optional<std::int64_t> shard_mtime_ns);

// Scans a file. Throws std::system_error if it cannot be opened or read, or if it changes during the scan.
std::shared_ptr<TarIndex> scan_tar_file(const std::string& path);

// Reads the index of one shard, in this or the former version, and checks all of it. Returns nullptr if the bytes are
// no index, or that of a shard of another size or time. Throws std::invalid_argument if such an index is damaged.
std::shared_ptr<TarIndex> index_of_shard(std::string bytes, std::uint64_t shard_size, std::int64_t shard_mtime_ns);

// Number of samples in the index of a shard, from its first bytes (80 are enough), so that a reader that skips a shard
// need not load its index. nullopt if they are of no such index, or of one with faults.
std::optional<std::uint64_t> samples_in_index(std::string_view start, std::uint64_t shard_size,
                                              std::int64_t shard_mtime_ns);

}  // namespace pycooldown
