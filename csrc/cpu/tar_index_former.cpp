// Index files: a fixed header, the rows of TarIndex as they lie in memory, then the texts, each after its length.
#include <bit>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "file.h"
#include "pycooldown/tar_index.h"

namespace pycooldown {

namespace {

static_assert(std::endian::native == std::endian::little, "index files hold little-endian rows");
constexpr char kMagic[8] = {'p', 'y', 'c', 'd', 'i', 'd', 'x', '2'};  // the last character is the version

struct FileHeader {
  char magic[8];
  std::uint64_t shard_size;
  std::int64_t shard_mtime_ns;
  std::uint64_t num_rows, num_members, num_extensions, num_faults;
  std::uint64_t checksum;  // of all bytes after the header
};

// FNV-1a over 8-byte words: it only has to notice damage.
std::uint64_t checksum(std::string_view bytes) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (std::size_t at = 0; at < bytes.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min<std::size_t>(8, bytes.size() - at));
    hash = (hash ^ word) * 0x100000001b3u;
    hash ^= hash >> 32;
  }
  return hash;
}

template <class T>
void put(std::string& out, const T* values, std::size_t count) {
  static_assert(std::is_trivially_copyable_v<T>);
  out.append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

void put_text(std::string& out, std::string_view text) {
  const std::uint64_t size = text.size();
  put(out, &size, 1);
  out.append(text);
}

void require(bool condition) {
  if (!condition) throw std::invalid_argument("the index is damaged");
}

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  template <class T>
  void get(T* out, std::size_t count) {
    require(count <= bytes_.size() / sizeof(T));
    if (count > 0) std::memcpy(out, bytes_.data(), count * sizeof(T));
    bytes_.remove_prefix(count * sizeof(T));
  }

  template <class T>
  std::vector<T> rows(std::uint64_t count) {
    require(count <= bytes_.size() / sizeof(T));
    std::vector<T> out(count);
    get(out.data(), count);
    return out;
  }

  std::string get_text() {
    std::uint64_t size;
    get(&size, 1);
    require(size <= bytes_.size());
    std::string out(bytes_.substr(0, size));
    bytes_.remove_prefix(size);
    return out;
  }

  bool done() const { return bytes_.empty(); }

 private:
  std::string_view bytes_;
};

// A file made by somebody else may carry a right checksum, so what is read out of bounds is checked by itself.
void require_in_bounds(const TarIndex& index) {
  require(!index.samples.empty() && index.samples[0].member == 0 && index.samples[0].key == 0);
  for (std::size_t i = 0; i < index.size(); ++i) {
    const TarSample &row = index.samples[i], &next = index.samples[i + 1];
    require(row.member <= next.member && row.key <= next.key);
  }
  require(index.samples.back().member == index.members.size() && index.samples.back().key == index.keys.size());
  std::uint64_t end = 0;  // members lie one behind the other
  for (const TarMember& member : index.members) {
    require(member.extension < index.extensions.size());
    require(end <= member.offset() && member.offset() <= index.shard_size);
    require(member.size <= index.shard_size - member.offset());
    end = member.offset() + member.size;
  }
}

}  // namespace

std::string index_to_bytes(const TarIndex& index) {
  std::string body;
  put(body, index.samples.data(), index.samples.size());
  put(body, index.members.data(), index.members.size());
  put_text(body, index.keys);
  for (const std::string& extension : index.extensions) put_text(body, extension);
  for (const TarFault& fault : index.faults) {
    put(body, &fault.offset, 1);
    put_text(body, fault.what);
  }
  FileHeader header{{},
                    index.shard_size,
                    index.shard_mtime_ns,
                    index.samples.size(),
                    index.members.size(),
                    index.extensions.size(),
                    index.faults.size(),
                    checksum(body)};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  std::string out;
  put(out, &header, 1);
  return out + body;
}

std::optional<std::uint64_t> samples_in_index(std::string_view start, std::uint64_t shard_size,
                                              std::int64_t shard_mtime_ns) {
  if (!start.starts_with(std::string_view(kMagic, sizeof kMagic)) || start.size() < sizeof(FileHeader))
    return std::nullopt;
  FileHeader header;
  std::memcpy(&header, start.data(), sizeof header);
  const bool is_of_shard = header.shard_size == shard_size && header.shard_mtime_ns == shard_mtime_ns;
  if (!is_of_shard || header.num_faults > 0 || header.num_rows == 0) return std::nullopt;
  return header.num_rows - 1;
}

std::optional<TarIndex> index_from_bytes(std::string_view bytes, std::uint64_t shard_size,
                                         std::int64_t shard_mtime_ns) {
  if (!bytes.starts_with(std::string_view(kMagic, sizeof kMagic))) return std::nullopt;
  Reader reader(bytes);
  FileHeader header;
  reader.get(&header, 1);
  if (header.shard_size != shard_size || header.shard_mtime_ns != shard_mtime_ns) return std::nullopt;
  require(header.checksum == checksum(bytes.substr(sizeof header)));
  TarIndex index;
  index.shard_size = shard_size;
  index.shard_mtime_ns = shard_mtime_ns;
  index.samples = reader.rows<TarSample>(header.num_rows);
  index.members = reader.rows<TarMember>(header.num_members);
  index.keys = reader.get_text();
  for (std::uint64_t i = 0; i < header.num_extensions; ++i) index.extensions.push_back(reader.get_text());
  for (std::uint64_t i = 0; i < header.num_faults; ++i) {
    TarFault fault;
    reader.get(&fault.offset, 1);
    fault.what = reader.get_text();
    index.faults.push_back(std::move(fault));
  }
  require(reader.done());
  require_in_bounds(index);
  return index;
}

TarIndex scan_tar_file(const std::string& path) {
  const File file(path);
  const File::Status before = file.status();
  if (!before.regular) file.fail(ESPIPE, " is no regular file");
  const ReadAt read = [&](std::uint64_t offset, char* out, std::size_t size) { return file.read(offset, out, size); };
  TarIndex index = scan_tar(read, before.size);
  index.shard_mtime_ns = before.mtime_ns;
  if (file.status() != before) file.fail(EBUSY, " changed while it was being indexed");
  return index;
}

}  // namespace pycooldown
