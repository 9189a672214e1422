// Rows of tokens from files in memory that form one stream, in which a domain is a range.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <vector>

#include "pycooldown/map_guard.h"

namespace pycooldown {

enum class TokenType { u8, i8, u16, i16, u32, i32, i64 };  // little endian

std::size_t token_bytes(TokenType type);

// A file of tokens in memory, which must outlive its reader.
struct TokenFile {
  std::string path;
  std::string ends_path;  // where `ends` are mapped from, if they are
  std::span<const std::byte> bytes;
  TokenType type;
  std::uint64_t tokens;
  std::uint64_t vocabulary_size;                 // larger or equal ids are errors
  std::span<const std::uint64_t> block_offsets;  // where the tokens of each block begin, in bytes
  std::span<const std::uint64_t> block_ends;     // exclusive end of each block, in tokens from the file's start
  std::span<const std::uint64_t> ends;           // of the documents, in the same way; equal ends mean no tokens
};

// A mapped file, and its state at that time. A file that was deleted, or replaced by another one of the same name, is
// unchanged in the map.
struct MappedState : MappedBytes {
  MappedState(std::string path, std::span<const std::byte> mapped);
  // Throws std::system_error if the file was written to or truncated since.
  void check() const;

  std::string path;
  bool exists = false;
  std::uint64_t device = 0, inode = 0, size = 0;
  std::int64_t mtime_ns = 0;
};

// The rows to fill, of `length` tokens, each from its pieces: piece[k] to piece[k + 1] for row k.
struct TokenRows {
  std::int64_t length;
  std::span<const std::int64_t> pieces;  // rows + 1
  std::span<const std::int64_t> begins;  // of each piece, in the stream
  std::span<const std::int64_t> limits;  // where the domain of each piece ends, in the stream
  bool whole_documents;                  // a piece ends with its document; else it goes on to the end of the row
  bool across_documents;                 // labels: a document's first token is predicted from the one before
  std::int64_t pad_id;
  bool wide;  // ids and labels are int64; else int32
  void* ids;
  std::int32_t* positions;  // these four may be null
  std::int32_t* segments;
  void* labels;        // position t has its own token
  void* shift_labels;  // position t has the token after t
};

class TokenReader {
 public:
  // Throws std::invalid_argument if blocks do not lie in the file or do not cover its tokens.
  void add(TokenFile file);

  std::int64_t size() const { return starts_.back(); }

  // Throws std::out_of_range if rows leave the stream, std::invalid_argument if a file is damaged or an id does not
  // fit, and std::system_error if a file has changed since it was added, also in the middle of the call.
  void fill(const TokenRows& rows) const;

 private:
  struct Place;
  class Filler;
  Place locate(std::int64_t token) const;

  std::vector<TokenFile> files_;
  std::deque<MappedState> mapped_;          // the files, and those of their ends
  std::vector<MappedBytes*> maps_;          // the same, for the guard
  std::vector<std::size_t> first_maps_{0};  // where those of each file begin
  std::vector<std::int64_t> starts_{0};     // of each file in the stream
};

}  // namespace pycooldown
