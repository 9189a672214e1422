// The file of an index:
//
//   Header
//   a section for each shard: places, i.e. where the record of each sample begins (and, as one more, where the last
//     one ends), of 4 or 8 bytes; then the records
//   the directory: ShardRow, DomainRow, TableRow and FaultRow, with counts from the header; then the texts
//
// A record has the first member's block (4 bytes), its layout, the size of each member, the key, and a checksum of 2
// bytes. A layout lists the extensions of a sample and the number of blocks between its members. Nearly all samples of
// a data set share a few layouts. Shards share a table of layouts and extensions. Layouts and sizes are varints.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "checksum.h"

namespace pycooldown::index_file {

static_assert(std::endian::native == std::endian::little, "index files hold little-endian numbers");

constexpr char kMagic[8] = {'p', 'y', 'c', 'd', 'i', 'd', 'x', '3'};  // the last character is the version
constexpr std::uint64_t kBlock = 512;

struct Header {
  char magic[8];
  std::uint64_t shard_size;  // of the first shard, so that the head identifies an index beside its shard
  std::int64_t shard_mtime_ns;
  std::uint64_t num_samples;
  std::uint32_t num_shards, num_domains, num_tables, num_faults;
  std::uint64_t directory;  // where it begins
  std::uint64_t directory_size;
  std::uint64_t directory_checksum;
  std::uint64_t checksum;  // checksum of this header up to this field
};
static_assert(sizeof(Header) == 80);

struct ShardRow {
  std::uint64_t size;  // bytes
  std::int64_t mtime_ns;
  std::uint64_t fingerprint;  // 0: none
  std::uint64_t first_sample;
  std::uint64_t section, section_size;
  std::uint64_t section_checksum;
  std::uint64_t path;  // in the texts; the version follows it
  std::uint32_t path_size, version_size;
  std::uint32_t table;
  std::uint32_t place_bytes;  // 4 or 8
};
static_assert(sizeof(ShardRow) == 80);

struct DomainRow {
  std::uint64_t name;
  std::uint32_t name_size, first_shard;
};

struct TableRow {
  std::uint64_t text, size;
};

struct FaultRow {
  std::uint64_t offset, what;
  std::uint32_t what_size, shard;
};

inline std::uint16_t record_checksum(std::string_view record, std::uint64_t i) {
  const std::uint64_t hash = checksum(record, (i + 1) * 0x9e3779b97f4a7c15u + record.size());
  return static_cast<std::uint16_t>(hash ^ hash >> 16);
}

template <class T>
void put(std::string& out, const T& value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

inline void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  out += static_cast<char>(value);
}

template <class T>
T load(const char* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// Reads from bytes of any content: `bad` is set if they end too early.
struct Cursor {
  std::string_view rest;
  bool bad = false;

  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 64 && !rest.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(rest[0]);
      rest.remove_prefix(1);
      value |= std::uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return value;
    }
    bad = true;
    return 0;
  }
  std::string_view take(std::uint64_t size) {
    bad |= size > rest.size();
    const std::string_view out = rest.substr(0, bad ? 0 : size);
    rest.remove_prefix(out.size());
    return out;
  }
};

}  // namespace pycooldown::index_file
