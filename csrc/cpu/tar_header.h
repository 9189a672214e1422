// Tar headers: the fixed block (ustar, GNU, V7) and the extended headers that may precede it (GNU long names, pax).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include "pycooldown/tar_index.h"

namespace pycooldown {

constexpr std::uint64_t kBlock = 512;
constexpr std::uint64_t kMaxExtendedHeader = 1 << 20;  // a long name or pax header beyond 1 MiB is damage
constexpr std::uint64_t kMaxShard = kBlock << 32;      // members count blocks in 32 bits: 2 TiB

struct Broken : TarFault {};  // thrown if the scan cannot continue

[[noreturn]] inline void fail(std::uint64_t offset, const std::string& what) { throw Broken{{offset, what}}; }

inline std::uint64_t padded(std::uint64_t size) { return (size + kBlock - 1) / kBlock * kBlock; }

inline std::string_view text(const char* field, std::size_t size) { return {field, strnlen(field, size)}; }

// Returns a member's name for messages. Control characters, which terminals interpret, become \\x and two digits.
inline std::string quoted(std::string_view name) {
  constexpr const char* kHex = "0123456789abcdef";
  std::string out = "'";
  for (char c : name) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte != 0x7f)
      out += c;
    else
      out.append("\\x").append({kHex[byte >> 4], kHex[byte & 15]});
  }
  return out + "'";
}

// Returns the number in a field: octal text, or base-256 after a first byte 0x80 (0xff for negative numbers). Returns
// nullopt if the field is neither.
inline std::optional<std::int64_t> number(const char* field, std::size_t size) {
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

// A header block, with the checks of Python's tarfile: if one field is damaged, the others are not trusted.
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
  // Links, devices, directories and FIFOs have no data, regardless of their size field; unknown types do.
  bool has_data() const { return regular() || !(type == '\0' || (type >= '1' && type <= '6')); }

  std::string name() const {
    const std::string_view prefix = sparse() ? std::string_view() : text(raw + 345, 155);
    return (prefix.empty() ? std::string() : std::string(prefix) + "/").append(text(raw, 100));
  }
};

// The values that extended headers set for the next member. The first header counts, as in tarfile.
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

}  // namespace pycooldown
