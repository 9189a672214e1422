// Writes index files.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pycooldown/tar_index.h"

namespace pycooldown {

// Combines parts of indexes, shard after shard. The file begins with `kHeaderSize` bytes for the header. Append the
// bytes that `add` returns for each shard, then the directory, which `finish` returns first. Last, write the header,
// which `finish` returns second, at the start.
class TarIndexWriter {
 public:
  static constexpr std::size_t kHeaderSize = 80;

  // Begins a domain, to which the next shards belong.
  void begin_domain(std::string_view name);
  // Adds a shard of another index, with `path` and `version` for the new index. The returned bytes are the shard's
  // section and live as long as `source`.
  std::string_view add(const TarIndex& source, std::uint32_t shard, std::string_view path, std::string_view version);
  std::pair<std::string, std::string> finish();

 private:
  friend class TarShardBuilder;
  struct Part {  // the directory's data about a shard
    std::uint64_t size;
    std::int64_t mtime_ns;
    std::uint64_t fingerprint, num_samples, section_checksum;
    std::uint32_t place_bytes;
  };
  void add_row(const Part& part, std::string_view section, std::string_view table, std::string_view path,
               std::string_view version);
  void add_fault(const TarFault& fault);
  std::uint64_t add_text(std::string_view text);

  std::uint32_t num_shards_ = 0, num_domains_ = 0, num_faults_ = 0;
  std::uint64_t num_samples_ = 0, position_ = kHeaderSize, first_size_ = 0;
  std::int64_t first_mtime_ns_ = 0;
  std::string shards_, domains_, table_rows_, faults_, texts_;  // rows as they lie in the file
  std::unordered_map<std::string, std::uint32_t> tables_;
};

// Packs the samples of one shard, as they are found.
class TarShardBuilder {
 public:
  TarShardBuilder(std::uint64_t shard_size, std::int64_t shard_mtime_ns)
      : shard_size_(shard_size), shard_mtime_ns_(shard_mtime_ns) {}

  // Extensions are numbered in the order in which they are added.
  void add_extension(std::string_view spelled) { extensions_.emplace_back(spelled); }
  void add_sample(std::string_view key, const std::vector<TarMember>& members);
  void add_fault(TarFault fault) { faults_.push_back(std::move(fault)); }

  // The index of this shard alone. `read`, if given, reads the shard for its fingerprint.
  std::shared_ptr<TarIndex> finish(const ReadAt* read) const;

 private:
  std::string to_bytes(std::uint64_t fingerprint) const;

  std::uint64_t shard_size_;
  std::int64_t shard_mtime_ns_;
  std::vector<std::string> extensions_;
  std::vector<TarFault> faults_;
  std::vector<std::uint64_t> places_;
  std::string records_, layouts_;
  std::unordered_map<std::string, std::uint32_t> layout_ids_;
};

}  // namespace pycooldown
