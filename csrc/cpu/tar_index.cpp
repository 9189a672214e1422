#include "pycooldown/tar_index.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <unordered_map>

namespace pycooldown {

namespace {

constexpr std::uint64_t kBlock = 512;
constexpr std::uint64_t kWindow = 64 * 1024;
constexpr std::uint64_t kMaxExtendedHeader = 1 << 20;  // a long name or pax header beyond 1 MiB is damage
constexpr std::uint64_t kMaxShard = kBlock << 32;      // members count blocks in 32 bits: 2 TiB

struct Broken : TarFault {};  // thrown where the scan cannot go on

[[noreturn]] void fail(std::uint64_t offset, const std::string& what) { throw Broken{{offset, what}}; }

std::uint64_t padded(std::uint64_t size) { return (size + kBlock - 1) / kBlock * kBlock; }

// Reads headers through a window, so that small members cost one read per window and large ones are skipped.
class Source {
 public:
  Source(const ReadAt& read, std::uint64_t size) : read_(read), size_(size), window_(kWindow, '\0') {}

  std::uint64_t size() const { return size_; }

  const char* block(std::uint64_t offset) {
    if (offset < begin_ || offset + kBlock > end_) {
      begin_ = offset;
      end_ = offset + read_(offset, window_.data(), std::min(kWindow, size_ - offset));
      if (end_ < offset + kBlock) fail(offset, "the file ends inside a block");
    }
    return window_.data() + (offset - begin_);
  }

  std::string bytes(std::uint64_t offset, std::uint64_t size) {
    if (size > kMaxExtendedHeader) fail(offset - kBlock, "an extended header of " + std::to_string(size) + " bytes");
    if (size > size_ - offset) fail(offset - kBlock, "the file ends inside an extended header");
    std::string out(size, '\0');
    if (read_(offset, out.data(), size) != size) fail(offset, "the file ends inside an extended header");
    return out;
  }

 private:
  const ReadAt& read_;
  std::uint64_t size_;
  std::string window_;
  std::uint64_t begin_ = 0, end_ = 0;
};

std::string_view text(const char* field, std::size_t size) { return {field, strnlen(field, size)}; }

// A number field: octal text, or base-256 with the first byte 0x80 (0xff: negative). nullopt where it is neither.
std::optional<std::int64_t> number(const char* field, std::size_t size) {
  const auto first = static_cast<unsigned char>(field[0]);
  if (first == 0x80 || first == 0xff) {
    std::int64_t value = first == 0x80 ? 0 : -1;
    for (std::size_t i = 1; i < size; ++i) {
      if (value >= std::int64_t{1} << 54 || value < -(std::int64_t{1} << 54)) return std::nullopt;
      value = value * 256 + static_cast<unsigned char>(field[i]);
    }
    return value;
  }
  constexpr std::string_view kSpace = " \t\n\v\f\r";
  std::string_view digits = text(field, size);
  digits.remove_prefix(std::min(digits.find_first_not_of(kSpace), digits.size()));
  digits = digits.substr(0, digits.find_last_not_of(kSpace) + 1);
  std::int64_t value = 0;
  for (char c : digits) {
    if (c < '0' || c > '7') return std::nullopt;
    value = value * 8 + (c - '0');
  }
  return value;
}

// A header block, checked as Python's tarfile checks it: where one field is damaged, the others are not trusted.
struct Header {
  const char* raw;
  std::uint64_t size;
  char type;

  Header(const char* block, std::uint64_t offset) : raw(block), size(0), type(block[156]) {
    std::int64_t plain = 8 * ' ', as_signed = 8 * ' ';  // the checksum field itself counts as spaces
    for (std::size_t i = 0; i < kBlock; ++i) {
      const bool counted = i < 148 || i >= 156;
      plain += counted ? static_cast<unsigned char>(block[i]) : 0;
      as_signed += counted ? static_cast<signed char>(block[i]) : 0;
    }
    const auto checksum = number(block + 148, 8);
    if (!checksum || (*checksum != plain && *checksum != as_signed)) fail(offset, "a header with a wrong checksum");
    struct Field {
      const char* name;
      std::size_t at, width;
    };
    for (const Field& field :
         {Field{"mode", 100, 8}, Field{"uid", 108, 8}, Field{"gid", 116, 8}, Field{"size", 124, 12},
          Field{"mtime", 136, 12}, Field{"devmajor", 329, 8}, Field{"devminor", 337, 8}}) {
      const auto value = number(block + field.at, field.width);
      if (!value) fail(offset, std::string("a header whose ") + field.name + " is no number");
      if (field.at != 124) continue;
      if (*value < 0) fail(offset, "a header with a negative size");
      size = static_cast<std::uint64_t>(*value);
    }
  }

  bool sparse() const { return type == 'S'; }
  // V7 archives mark a directory by a trailing slash.
  bool regular() const {
    return type == '0' || type == '7' || sparse() || (type == '\0' && !text(raw, 100).ends_with('/'));
  }
  // Links, devices, directories and FIFOs have no data whatever their size field says; unknown types do.
  bool has_data() const { return regular() || !(type == '\0' || (type >= '1' && type <= '6')); }

  std::string name() const {
    const std::string_view prefix = sparse() ? std::string_view() : text(raw + 345, 155);
    return (prefix.empty() ? std::string() : std::string(prefix) + "/").append(text(raw, 100));
  }
};

// What extended headers say of the member that follows them. The earliest header wins, as in tarfile.
struct Extended {
  std::optional<std::string> name;
  std::optional<std::uint64_t> size;
  bool sparse = false;

  void add_pax(std::string_view records, std::uint64_t offset) {
    Extended parsed;
    while (!records.empty() && records[0] != '\0') {
      std::size_t length = 0, at = 0;
      for (; at < records.size() && records[at] >= '0' && records[at] <= '9' && length < kMaxExtendedHeader; ++at)
        length = length * 10 + static_cast<std::size_t>(records[at] - '0');
      const std::size_t equals = records.find('=', at);
      if (at == 0 || length > records.size() || equals >= length || records[at] != ' ' || records[length - 1] != '\n')
        fail(offset, "a malformed pax header");
      parsed.add_record(records.substr(at + 1, equals - at - 1), records.substr(equals + 1, length - equals - 2),
                        offset);
      records.remove_prefix(length);
    }
    if (!name) name = parsed.name;
    if (!size) size = parsed.size;
    sparse |= parsed.sparse;
  }

  void add_record(std::string_view keyword, std::string_view value, std::uint64_t offset) {
    if (keyword.starts_with("GNU.sparse.")) sparse = true;
    if (keyword == "path" || keyword == "GNU.sparse.name") name = value.substr(0, value.find_last_not_of('/') + 1);
    if (keyword != "size") return;
    std::uint64_t parsed = 0;
    for (char c : value) {
      if (c < '0' || c > '9' || parsed > kMaxShard) fail(offset, "a pax header whose size is no number");
      parsed = parsed * 10 + static_cast<std::uint64_t>(c - '0');
    }
    size = parsed;
  }
};

// Builds samples out of members, by webdataset's rules (webdataset.tariterators, base_plus_ext and group_by_keys).
class Grouper {
 public:
  explicit Grouper(TarIndex& index) : index_(index) {}

  // `what`, where given, says why the member cannot be read; its sample is dropped and counted as a fault.
  void add(std::string_view path, std::uint64_t header, std::uint64_t data, std::uint64_t size,
           const char* what = nullptr) {
    if (is_metadata(path)) return;
    const std::size_t dot = key_length(path);
    if (dot == 0) return;
    const std::string_view key = path.substr(0, dot);
    if (!open_ || key != std::string_view(index_.keys).substr(index_.samples.back().key)) {
      close();
      index_.keys.append(key);
      open_ = true;
      ++ordinal_;
    }
    const auto label = [&] { return std::string(1, '\'').append(path).append("' "); };
    if (what) return drop(header, label() + what);
    const std::uint32_t extension = extension_id(path.substr(dot + 1));
    const std::string& spelled = index_.extensions[extension];
    if (spelled == "__key__" || spelled == "__url__" || spelled == "__domain__")
      return drop(header, label() + "has the extension " + spelled + ", which is reserved");
    if (last_sample_[extension] == ordinal_)
      return drop(header, label() + "repeats the extension '" + spelled + "' of its sample");
    last_sample_[extension] = ordinal_;
    index_.members.push_back({static_cast<std::uint32_t>(data / kBlock), extension, size});
  }

  // Gives up the open sample, which counts as one fault however many of its members are at fault.
  void drop(std::uint64_t header, const std::string& what) {
    if (!dropped_) index_.faults.push_back({header, what});
    dropped_ = true;
  }

  // Gives up the rest of the shard, and the open sample with it, since members of it may be missing.
  void stop(const TarFault& fault) {
    if (dropped_) close();
    drop(fault.offset, fault.what + "; the shard cannot be read beyond it");
    close();
  }

  void close() {
    if (dropped_) {
      index_.keys.resize(index_.samples.back().key);
      index_.members.resize(index_.samples.back().member);
    } else if (open_) {
      index_.samples.push_back({index_.members.size(), index_.keys.size()});
    }
    open_ = dropped_ = false;
  }

 private:
  // __meta__ files and everything below a directory of such a name.
  static bool is_metadata(std::string_view path) {
    const std::string_view first = path.substr(0, path.find('/'));
    return first.starts_with("__") && first.ends_with("__") && (first.size() >= 4 || first.size() == path.size());
  }

  // Length of the key that the pattern ^((?:.*/|)[^.]+)[.]([^/]*)$ finds; 0 where it does not match.
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
    const auto [entry, is_new] = ids_.try_emplace(spelling_, static_cast<std::uint32_t>(index_.extensions.size()));
    if (is_new) {
      index_.extensions.push_back(spelling_);
      last_sample_.push_back(0);
    }
    return entry->second;
  }

  TarIndex& index_;
  bool open_ = false, dropped_ = false;
  std::uint64_t ordinal_ = 0;  // of the open sample, the dropped ones counted
  std::string spelling_;
  std::unordered_map<std::string, std::uint32_t> ids_;
  std::vector<std::uint64_t> last_sample_;  // by extension: the ordinal of the last sample that had it
};

const char* compression(std::string_view start) {
  if (start.starts_with("\x1f\x8b")) return "gzip";
  if (start.starts_with("BZh")) return "bzip2";
  if (start.starts_with("\xfd"
                        "7zXZ"))
    return "xz";
  if (start.starts_with("\x28\xb5\x2f\xfd")) return "zstd";
  return nullptr;
}

void scan(Source& source, Grouper& grouper) {
  if (source.size() == 0) fail(0, "the file is empty");
  if (source.size() > kMaxShard) fail(0, "the file is larger than 2 TiB; split it");
  Extended extended;
  bool expects_member = false;
  for (std::uint64_t at = 0, data; at < source.size();) {
    const char* block = source.block(at);
    if (const char* format = at == 0 ? compression({block, 8}) : nullptr)
      fail(0, std::string("the file is compressed (") + format +
                  "): decompress it, or stream it with pycooldown.data.mix");
    if (std::all_of(block, block + kBlock, [](char c) { return c == '\0'; })) {
      if (expects_member) fail(at, "an extended header without a member");
      return;
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
      fail(at, "'" + name + "' is cut off: " + std::to_string(size) + " bytes expected, " +
                   std::to_string(source.size() - data) + " left in the file");
    }
    if (regular) grouper.add(name, at, data, size, sparse ? "is a sparse file; store it whole" : nullptr);
    at = data + (has_data ? padded(size) : 0);
    extended = Extended();
    expects_member = false;
  }
  if (expects_member) fail(source.size(), "an extended header without a member");
}

}  // namespace

TarIndex scan_tar(const ReadAt& read, std::uint64_t shard_size) {
  TarIndex index;
  index.shard_size = shard_size;
  Source source(read, shard_size);
  Grouper grouper(index);
  try {
    scan(source, grouper);
  } catch (const Broken& fault) {
    grouper.stop(fault);
  }
  grouper.close();
  return index;
}
}  // namespace pycooldown
