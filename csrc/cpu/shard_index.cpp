// Reads the index file beside one shard: in this version (see tar_index_file.h), or in the format up to version 0.2 of
// the package, which is only read: a fixed header, rows, then texts, each after its length.
#include <cstring>
#include <stdexcept>

#include "pycooldown/tar_index.h"
#include "pycooldown/tar_index_writer.h"
#include "tar_index_file.h"

namespace pycooldown {

namespace {

constexpr char kFormerMagic[8] = {'p', 'y', 'c', 'd', 'i', 'd', 'x', '2'};

struct FormerHeader {
  char magic[8];
  std::uint64_t shard_size;
  std::int64_t shard_mtime_ns;
  std::uint64_t num_rows, num_members, num_extensions, num_faults;
  std::uint64_t checksum;  // of all bytes after the header
};

struct FormerSample {
  std::uint64_t member, key;  // where its members and its key begin; they end where the next sample's begin
};

struct FormerMember {
  std::uint32_t block, extension;
  std::uint64_t size;
};

void require(bool condition) {
  if (!condition) throw std::invalid_argument("the index is damaged");
}

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  template <class T>
  std::vector<T> rows(std::uint64_t count) {
    require(count <= bytes_.size() / sizeof(T));
    std::vector<T> out(count);
    if (count > 0) std::memcpy(out.data(), bytes_.data(), count * sizeof(T));
    bytes_.remove_prefix(count * sizeof(T));
    return out;
  }

  std::string_view text() {
    const std::uint64_t size = rows<std::uint64_t>(1)[0];
    require(size <= bytes_.size());
    const std::string_view out = bytes_.substr(0, size);
    bytes_.remove_prefix(size);
    return out;
  }

  bool done() const { return bytes_.empty(); }

 private:
  std::string_view bytes_;
};

std::shared_ptr<TarIndex> read_former(std::string_view bytes, const FormerHeader& header) {
  Reader reader(bytes.substr(sizeof header));
  require(header.checksum == checksum(bytes.substr(sizeof header)) && header.num_rows > 0);
  const auto samples = reader.rows<FormerSample>(header.num_rows);
  const auto members = reader.rows<FormerMember>(header.num_members);
  const std::string_view keys = reader.text();
  TarShardBuilder builder(header.shard_size, header.shard_mtime_ns);
  require(header.num_extensions <= bytes.size() && header.num_faults <= bytes.size());
  for (std::uint64_t i = 0; i < header.num_extensions; ++i) builder.add_extension(reader.text());
  for (std::uint64_t i = 0; i < header.num_faults; ++i) {
    const std::uint64_t offset = reader.rows<std::uint64_t>(1)[0];
    builder.add_fault({offset, std::string(reader.text())});
  }
  require(reader.done() && samples[0].member == 0 && samples[0].key == 0);
  std::uint64_t end = 0;  // members follow each other, each from the start of a block
  std::vector<TarMember> of_sample;
  for (std::uint64_t i = 0; i + 1 < header.num_rows; ++i) {
    const FormerSample &row = samples[i], &next = samples[i + 1];
    require(row.member <= next.member && next.member <= members.size());
    require(row.key <= next.key && next.key <= keys.size());
    of_sample.clear();
    for (std::uint64_t m = row.member; m < next.member; ++m) {
      const std::uint64_t offset = index_file::kBlock * members[m].block, size = members[m].size;
      require(members[m].extension < header.num_extensions);
      require(end <= offset && offset <= header.shard_size && size <= header.shard_size - offset);
      end = offset + size;
      of_sample.push_back({offset, size, members[m].extension});
    }
    builder.add_sample(keys.substr(row.key, next.key - row.key), of_sample);
  }
  require(samples.back().member == members.size() && samples.back().key == keys.size());
  return builder.finish(nullptr);
}

}  // namespace

std::shared_ptr<TarIndex> index_of_shard(std::string bytes, std::uint64_t shard_size, std::int64_t shard_mtime_ns) {
  const auto is_of_shard = [&](std::uint64_t size, std::int64_t mtime_ns) {
    return size == shard_size && mtime_ns == shard_mtime_ns;
  };
  if (bytes.starts_with(std::string_view(kFormerMagic, sizeof kFormerMagic))) {
    require(bytes.size() >= sizeof(FormerHeader));
    const auto header = index_file::load<FormerHeader>(bytes.data());
    return is_of_shard(header.shard_size, header.shard_mtime_ns) ? read_former(bytes, header) : nullptr;
  }
  if (!bytes.starts_with(std::string_view(index_file::kMagic, sizeof index_file::kMagic))) return nullptr;
  require(bytes.size() >= sizeof(index_file::Header));
  const auto header = index_file::load<index_file::Header>(bytes.data());
  if (!is_of_shard(header.shard_size, header.shard_mtime_ns)) return nullptr;
  auto index = TarIndex::parse(std::move(bytes));
  require(index->num_shards() == 1);
  index->verify(0);
  return index;
}

std::optional<std::uint64_t> samples_in_index(std::string_view start, std::uint64_t shard_size,
                                              std::int64_t shard_mtime_ns) {
  using namespace index_file;
  const auto found = [&](const auto& header, std::uint64_t samples) -> std::optional<std::uint64_t> {
    const bool is_of_shard = header.shard_size == shard_size && header.shard_mtime_ns == shard_mtime_ns;
    return is_of_shard && header.num_faults == 0 ? std::optional(samples) : std::nullopt;
  };
  if (start.starts_with(std::string_view(kFormerMagic, sizeof kFormerMagic)) && start.size() >= sizeof(FormerHeader)) {
    const auto header = load<FormerHeader>(start.data());
    return header.num_rows > 0 ? found(header, header.num_rows - 1) : std::nullopt;
  }
  if (!start.starts_with(std::string_view(kMagic, sizeof kMagic)) || start.size() < sizeof(Header)) return std::nullopt;
  const auto header = load<Header>(start.data());
  const bool is_whole = header.checksum == checksum(start.substr(0, sizeof(Header) - 8));
  return is_whole && header.num_shards == 1 ? found(header, header.num_samples) : std::nullopt;
}

}  // namespace pycooldown
