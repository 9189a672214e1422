// Where the samples of a tar shard lie: member offsets, found by one pass over the headers.
//
// Members group into samples as webdataset groups them: the key is the path up to the first dot of its last component,
// the rest is the extension, and consecutive members of one key are one sample.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pycooldown {

// Members follow each other in the order of their offsets.
struct TarMember {
  std::uint32_t block;      // the data start at byte 512 * block
  std::uint32_t extension;  // index into TarIndex::extensions
  std::uint64_t size;       // bytes

  std::uint64_t offset() const { return std::uint64_t{512} * block; }
};

struct TarSample {
  std::uint64_t member;  // its members are [member, next sample's member)
  std::uint64_t key;     // its key is keys[key, next sample's key)
};

// One sample that cannot be read, or a break after which nothing of the shard can.
struct TarFault {
  std::uint64_t offset;  // of the header at fault, in bytes
  std::string what;
};

struct TarIndex {
  std::uint64_t shard_size = 0;                     // bytes
  std::int64_t shard_mtime_ns = 0;                  // nanoseconds since the epoch
  std::vector<TarSample> samples{TarSample{0, 0}};  // one row more than there are samples
  std::vector<TarMember> members;
  std::string keys;
  std::vector<std::string> extensions;  // lower case, in order of first appearance
  std::vector<TarFault> faults;

  std::size_t size() const { return samples.size() - 1; }
  std::string_view key(std::size_t i) const {
    return std::string_view(keys).substr(samples[i].key, samples[i + 1].key - samples[i].key);
  }
};

// Copies up to `size` bytes from `offset` and returns how many there were.
using ReadAt = std::function<std::size_t(std::uint64_t offset, char* out, std::size_t size)>;

// Reads ustar, GNU and pax headers. Never throws for what the bytes say: what cannot be read becomes a fault.
TarIndex scan_tar(const ReadAt& read, std::uint64_t shard_size);

// Scans a file. Throws std::system_error where it cannot be opened or read, or where it changes meanwhile.
TarIndex scan_tar_file(const std::string& path);

// The bytes of an index file, and back. Reading gives nullopt where the bytes are no index of this version or belong to
// a shard of another size or time, and throws std::invalid_argument where such an index is damaged.
std::string index_to_bytes(const TarIndex& index);
std::optional<TarIndex> index_from_bytes(std::string_view bytes, std::uint64_t shard_size, std::int64_t shard_mtime_ns);

// How many samples an index file lists, from its first bytes (64 are enough), so that a reader that only passes over a
// shard need not load its index. nullopt where they are of no such index, or of one with faults.
std::optional<std::uint64_t> samples_in_index(std::string_view start, std::uint64_t shard_size,
                                              std::int64_t shard_mtime_ns);

}  // namespace pycooldown
