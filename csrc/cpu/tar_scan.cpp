#include <algorithm>
#include <cerrno>
#include <cstring>
#include <unordered_map>

#include "file.h"
#include "pycooldown/tar_index.h"
#include "pycooldown/tar_index_writer.h"
#include "tar_header.h"

namespace pycooldown {

namespace {

constexpr std::uint64_t kWindow = 64 * 1024;

// Reads headers through a window, so that small members cost one read per window and large ones are skipped.
class Source {
 public:
  Source(const ReadAt& read, std::uint64_t size) : read_(read), size_(size), window_(kWindow, '\0') {}

  std::uint64_t size() const { return size_; }

  const char* block(std::uint64_t offset) {
    if (offset < begin_ || offset + kBlock > end_) fill(offset);
    if (end_ < offset + kBlock) fail(offset, "the file ends inside a block");
    return window_.data() + (offset - begin_);
  }

  // The window's bytes from `offset` on: at least one byte, and a block if the file has as much.
  std::string_view peek(std::uint64_t offset) {
    if (offset < begin_ || offset >= end_) fill(offset);
    if (end_ <= offset) fail(offset, "the file ends before its size");
    return std::string_view(window_).substr(offset - begin_, end_ - offset);
  }

  std::string bytes(std::uint64_t offset, std::uint64_t size) {
    if (size > kMaxExtendedHeader) fail(offset - kBlock, "an extended header of " + std::to_string(size) + " bytes");
    if (size > size_ - offset) fail(offset - kBlock, "the file ends inside an extended header");
    std::string out(size, '\0');
    if (read_(offset, out.data(), size) != size) fail(offset, "the file ends inside an extended header");
    return out;
  }

 private:
  void fill(std::uint64_t offset) {
    begin_ = offset;
    end_ = offset + read_(offset, window_.data(), std::min(kWindow, size_ - offset));
  }

  const ReadAt& read_;
  std::uint64_t size_;
  std::string window_;
  std::uint64_t begin_ = 0, end_ = 0;
};

// Groups members into samples by webdataset's rules (webdataset.tariterators, base_plus_ext and group_by_keys).
class Grouper {
 public:
  explicit Grouper(TarShardBuilder& builder) : builder_(builder) {}

  // `what`, if given, states why the member cannot be read. Its sample is dropped and counted as a fault.
  void add(std::string_view path, std::uint64_t header, std::uint64_t data, std::uint64_t size,
           const char* what = nullptr) {
    if (is_metadata(path)) return;
    const std::size_t dot = key_length(path);
    if (dot == 0) return;
    const std::string_view key = path.substr(0, dot);
    if (!open_ || key != key_) {
      close();
      key_ = key;
      open_ = true;
      ++ordinal_;
    }
    const auto label = [&] { return quoted(path) + " "; };
    if (what) return drop(header, label() + what);
    const std::uint32_t extension = extension_id(path.substr(dot + 1));
    if (spelling_ == "__key__" || spelling_ == "__url__" || spelling_ == "__domain__")
      return drop(header, label() + "has the extension " + spelling_ + ", which is reserved");
    if (last_sample_[extension] == ordinal_)
      return drop(header, label() + "repeats the extension " + quoted(spelling_) + " of its sample");
    last_sample_[extension] = ordinal_;
    members_.push_back({data, size, extension});
  }

  // Drops the open sample, which counts as one fault for any number of faulty members.
  void drop(std::uint64_t header, const std::string& what) {
    if (!dropped_) builder_.add_fault({header, what});
    dropped_ = true;
  }

  // Drops the rest of the shard, and the open sample with it, because members of it may be missing.
  void stop(const TarFault& fault) {
    if (dropped_) close();
    drop(fault.offset, fault.what + "; the shard cannot be read beyond it");
    close();
  }

  void close() {
    if (open_ && !dropped_) builder_.add_sample(key_, members_);
    members_.clear();
    open_ = dropped_ = false;
  }

 private:
  // __meta__ files, and everything below a directory of that name.
  static bool is_metadata(std::string_view path) {
    const std::string_view first = path.substr(0, path.find('/'));
    return first.starts_with("__") && first.ends_with("__") && (first.size() >= 4 || first.size() == path.size());
  }

  // Length of the key that the pattern ^((?:.*/|)[^.]+)[.]([^/]*)$ finds; 0 if it does not match.
  static std::size_t key_length(std::string_view path) {
    const std::size_t dot = path.find('.', path.rfind('/') + 1);
    if (dot == std::string_view::npos || dot == 0) return 0;
    // The directory part may end at any slash before the dot and before the first line end, which `.` does not match.
    const std::size_t limit = std::min(dot - 1, path.find('\n'));
    const std::size_t slash = limit == 0 ? std::string_view::npos : path.rfind('/', limit - 1);
    const std::size_t start = slash == std::string_view::npos ? 0 : slash + 1;
    return path.find('.', start) == dot ? dot : 0;
  }

  std::uint32_t extension_id(std::string_view suffix) {
    spelling_.assign(suffix);
    for (char& c : spelling_)
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    const auto [entry, is_new] = ids_.try_emplace(spelling_, static_cast<std::uint32_t>(ids_.size()));
    if (is_new) {
      builder_.add_extension(spelling_);
      last_sample_.push_back(0);
    }
    return entry->second;
  }

  TarShardBuilder& builder_;
  bool open_ = false, dropped_ = false;
  std::string key_;  // key of the open sample
  std::vector<TarMember> members_;
  std::uint64_t ordinal_ = 0;  // number of the open sample, counting dropped ones
  std::string spelling_;
  std::unordered_map<std::string, std::uint32_t> ids_;
  std::vector<std::uint64_t> last_sample_;  // by extension: the ordinal of the last sample that had it
};

// Returns the format of a file that is not a tar, with a remedy; empty if its first bytes are of no known format.
std::string foreign_format(std::string_view start) {
  struct Format {
    std::string_view magic;
    const char* name;
    bool compressed;
  };
  constexpr Format kFormats[] = {
      {"\x1f\x8b", "gzip", true},
      {"BZh", "bzip2", true},
      {{"\xfd\x37zXZ", 5}, "xz", true},
      {"\x28\xb5\x2f\xfd", "zstd", true},
      {"\x04\x22\x4d\x18", "lz4", true},
      {"PAR1", "a Parquet file", false},
      {"PK\x03\x04", "a zip archive", false},
      {"ARROW1", "an Arrow file", false},
      {"\x89HDF", "an HDF5 file", false},
      {"\x93NUMPY", "a NumPy array", false},
  };
  for (const Format& format : kFormats) {
    if (!start.starts_with(format.magic)) continue;
    if (format.compressed)
      return std::string("the file is compressed (") + format.name +
             "): decompress it, or stream it with pycooldown.data.mix";
    return std::string("the file is ") + format.name + ", not a tar: write its samples into tar shards";
  }
  // A member's name may begin with a brace as well, but is followed by zeros.
  if (start.starts_with('{') && start.find('\0') == std::string_view::npos)
    return "the file looks like JSON, not like a tar: write its samples into tar shards";
  return "";
}

bool all_zero(std::string_view bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](char c) { return c == '\0'; });
}

// An archive ends with zero blocks, and tar fills its last record with more of them. Anything else after them is data
// that no reader would see, such as the second of two tars that were joined by `cat`.
void require_end(Source& source, std::uint64_t at) {
  while (at < source.size()) {
    const std::string_view rest = source.peek(at);
    if (!all_zero(rest)) {
      const auto first = static_cast<std::uint64_t>(
          std::find_if(rest.begin(), rest.end(), [](char c) { return c != '\0'; }) - rest.begin());
      fail((at + first) / kBlock * kBlock,
           "data follow the zero blocks that end the tar, as where tars were joined by cat: list them as shards of "
           "their own, or join them with tar --concatenate");
    }
    at += rest.size();
  }
}

void scan(Source& source, Grouper& grouper) {
  if (source.size() == 0) fail(0, "the file is empty");
  if (source.size() > kMaxShard) fail(0, "the file is larger than 2 TiB; split it");
  Extended extended;
  bool expects_member = false;
  if (const std::string format = foreign_format(source.peek(0).substr(0, kBlock)); !format.empty()) fail(0, format);
  for (std::uint64_t at = 0, data; at < source.size();) {
    const char* block = source.block(at);
    if (all_zero({block, kBlock})) {
      if (expects_member) fail(at, "an extended header without a member");
      grouper.close();  // the sample is complete, whatever follows
      return require_end(source, at);
    }
    const Header header(block, at);
    data = at + kBlock;
    if (std::strchr("LKxXg", header.type) && header.type != '\0') {
      const std::string bytes = source.bytes(data, header.size);
      if (header.type == 'L' && !extended.name) extended.name = text(bytes.data(), bytes.size());
      if (header.type == 'x' || header.type == 'X') extended.add_pax(bytes, at);
      if (header.type == 'g') {
        Extended global;
        global.add_pax(bytes, at);
        if (global.name || global.size || global.sparse) fail(at, "a global pax header that names or sizes members");
      }
      expects_member |= header.type != 'g';
      at = data + padded(header.size);
      continue;
    }
    const std::string name = extended.name.value_or(header.name());
    const std::uint64_t size = extended.size.value_or(header.size);
    const bool regular = header.regular(), has_data = header.has_data(), sparse = header.sparse() || extended.sparse;
    for (bool more = header.sparse() && block[482]; more; data += kBlock) more = source.block(data)[504];
    if (has_data && padded(size) > source.size() - data) {
      fail(at, quoted(name) + " is cut off: " + std::to_string(size) + " bytes expected, " +
                   std::to_string(source.size() - data) + " left in the file");
    }
    if (regular) grouper.add(name, at, data, size, sparse ? "is a sparse file; store it whole" : nullptr);
    at = data + (has_data ? padded(size) : 0);
    extended = Extended();
    expects_member = false;
  }
  if (expects_member) fail(source.size(), "an extended header without a member");
  fail(source.size(), "the file ends without the zero blocks that end a tar: it was cut off, or never closed");
}

}  // namespace

std::shared_ptr<TarIndex> scan_tar(const ReadAt& read, std::uint64_t shard_size,
                                   std::optional<std::int64_t> shard_mtime_ns) {
  TarShardBuilder builder(shard_size, shard_mtime_ns.value_or(0));
  Source source(read, shard_size);
  Grouper grouper(builder);
  try {
    scan(source, grouper);
  } catch (const Broken& fault) {
    grouper.stop(fault);
  }
  grouper.close();
  return builder.finish(shard_mtime_ns ? &read : nullptr);
}

std::shared_ptr<TarIndex> scan_tar_file(const std::string& path) {
  const File file(path);
  const File::Status before = file.status();
  if (before.folder) file.fail(EISDIR, ": expected a tar file");
  if (!before.regular) file.fail(EINVAL, " is no regular file; expected a tar file");
  const ReadAt read = [&](std::uint64_t offset, char* out, std::size_t size) { return file.read(offset, out, size); };
  auto index = scan_tar(read, before.size, before.mtime_ns);
  if (file.status() != before) file.fail(EBUSY, " changed while it was being indexed");
  return index;
}

}  // namespace pycooldown
