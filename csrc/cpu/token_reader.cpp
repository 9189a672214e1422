#include "pycooldown/token_reader.h"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "dispatch.h"
#include "file.h"
#include "token_copy_kernel.h"

namespace pycooldown {

namespace {

static_assert(std::endian::native == std::endian::little, "the files' tokens are read as they are");

constexpr std::int64_t kIgnored = -100;

bool is_signed(TokenType type) {
  return type == TokenType::i8 || type == TokenType::i16 || type == TokenType::i32 || type == TokenType::i64;
}

// Number of ids in the non-negative half of a signed type, or in an unsigned one (2^64 - 1 for the largest).
std::uint64_t num_ids(TokenType type) {
  const std::size_t bits = 8 * token_bytes(type) - (is_signed(type) ? 1 : 0);
  return std::uint64_t{1} << bits;
}

[[noreturn]] void refuse_id(const TokenFile& file, std::uint64_t bits) {
  std::string id = std::to_string(bits);
  if (is_signed(file.type) && bits >= num_ids(file.type))  // a negative id, whose bits the kernel returns
    id = std::to_string(static_cast<std::int64_t>(bits - (token_bytes(file.type) < 8 ? 2 * num_ids(file.type) : 0)));
  throw std::invalid_argument(file.path + " has token id " + id + "; expected ids in [0, " +
                              std::to_string(file.vocabulary_size) + ")");
}

// The end of a document that must hold a token. Ends are read from a file that may be damaged.
std::uint64_t end_of(const TokenFile& file, std::size_t document, std::uint64_t token) {
  if (document >= file.ends.size() || file.ends[document] <= token || file.ends[document] > file.tokens ||
      (document && file.ends[document - 1] > token))
    throw std::invalid_argument(file.path + " is damaged: the ends of its documents do not ascend at document " +
                                std::to_string(document));
  return file.ends[document];
}

}  // namespace

std::size_t token_bytes(TokenType type) {
  switch (type) {
    case TokenType::u8:
    case TokenType::i8:
      return 1;
    case TokenType::u16:
    case TokenType::i16:
      return 2;
    case TokenType::u32:
    case TokenType::i32:
      return 4;
    case TokenType::i64:
      break;
  }
  return 8;
}

MappedState::MappedState(std::string name, std::span<const std::byte> mapped)
    : MappedBytes(mapped), path(std::move(name)) {
  struct stat status;
  if (::stat(path.c_str(), &status) != 0) return;
  exists = true;
  device = status.st_dev, inode = status.st_ino, size = static_cast<std::uint64_t>(status.st_size);
  mtime_ns = modified_ns(status);
}

void MappedState::check() const {
  const MappedState now(path, {});
  const bool is_mapped_file = exists && now.exists && now.device == device && now.inode == inode;
  if (is_mapped_file && (now.size != size || now.mtime_ns != mtime_ns))
    throw std::system_error(ESTALE, std::generic_category(), path + " has changed since it was mapped");
  if (lost)
    throw std::system_error(EIO, std::generic_category(),
                            path + " was truncated while it was mapped, or its disk fails");
}

// A position in the stream: a file, and tokens from its start.
struct TokenReader::Place {
  const TokenFile* file;
  std::uint64_t token;
};

// Fills the rows of one call.
class TokenReader::Filler {
 public:
  Filler(const TokenReader& reader, const TokenRows& rows)
      : reader_(reader),
        rows_(rows),
        width_(rows.wide ? sizeof(std::int64_t) : sizeof(std::int32_t)),
        is_read_(reader.files_.size()) {
    guard_.watch(reader.maps_);
  }

  // Throws std::system_error if a file that was read has changed since it was mapped. The check follows the read, to
  // detect a change during the read too.
  void check() const {
    for (const std::size_t file : read_)
      for (std::size_t map = reader_.first_maps_[file]; map < reader_.first_maps_[file + 1]; ++map)
        reader_.mapped_[map].check();
  }

  void fill(std::int64_t row) {
    first_ = row * rows_.length, at_ = 0, segment_ = 0;
    for (std::int64_t piece = rows_.pieces[row]; piece < rows_.pieces[row + 1]; ++piece)
      add(rows_.begins[piece], rows_.limits[piece]);
    const std::int64_t rest = rows_.length - at_;
    set(rows_.ids, at_, rest, rows_.pad_id);
    set(rows_.labels, at_, rest, kIgnored);
    set(rows_.shift_labels, at_, rest, kIgnored);
    if (rows_.positions) std::fill_n(rows_.positions + first_ + at_, rest, 0);
    if (rows_.segments) std::fill_n(rows_.segments + first_ + at_, rest, 0);
  }

 private:
  void add(std::int64_t begin, std::int64_t limit) {
    if (begin < 0 || begin >= limit || limit > reader_.size())
      throw std::out_of_range("a row begins outside the stream of tokens");
    const Place place = locate(begin);
    const std::span ends = place.file->ends;
    const auto document = static_cast<std::size_t>(std::ranges::upper_bound(ends, place.token) - ends.begin());
    std::int64_t count = std::min(rows_.length - at_, limit - begin);
    if (rows_.whole_documents)
      count = std::min(count, static_cast<std::int64_t>(end_of(*place.file, document, place.token) - place.token));
    if (count <= 0) throw std::out_of_range("a row has more pieces than places");
    copy(begin, count, element(rows_.ids, at_));
    if (rows_.labels) label(count);
    if (rows_.shift_labels) label_shifted(begin, limit, count);
    mark_documents(place, document, at_ + count);
  }

  // Labels of a piece as if it were one document: each token's own label, or that of the token after it.
  void label(std::int64_t count) {
    std::memcpy(element(rows_.labels, at_), element(rows_.ids, at_), count * width_);
    set(rows_.labels, at_, 1, kIgnored);
  }
  void label_shifted(std::int64_t begin, std::int64_t limit, std::int64_t count) {
    const std::int64_t last = at_ + count - 1;
    std::memcpy(element(rows_.shift_labels, at_), element(rows_.ids, at_ + 1), (count - 1) * width_);
    if (begin + count < limit)
      copy(begin + count, 1, element(rows_.shift_labels, last));
    else
      set(rows_.shift_labels, last, 1, kIgnored);
  }

  // Positions, segments and the labels at boundaries, for the parts of documents up to place `stop` of the row.
  void mark_documents(Place place, std::size_t document, std::int64_t stop) {
    while (at_ < stop) {
      if (place.token == place.file->tokens) {
        place = noted({place.file + 1, 0}), document = 0;
        continue;
      }
      const std::span ends = place.file->ends;
      while (document < ends.size() && ends[document] == place.token) ++document;  // skips documents without tokens
      const std::uint64_t end = end_of(*place.file, document, place.token);
      const std::int64_t count = std::min(stop - at_, static_cast<std::int64_t>(end - place.token));
      ++segment_;
      if (rows_.positions) kernels_.count_up(rows_.positions + first_ + at_, count);
      if (rows_.segments) std::fill_n(rows_.segments + first_ + at_, count, segment_);
      place.token += count, at_ += count;
      if (rows_.across_documents) continue;
      set(rows_.labels, at_ - count, 1, kIgnored);
      if (place.token == end) set(rows_.shift_labels, at_ - 1, 1, kIgnored);
    }
  }

  void copy(std::int64_t begin, std::int64_t count, std::byte* out) {
    while (count > 0) {
      Place at = locate(begin);
      const TokenFile& file = *at.file;
      std::int64_t left = std::min(count, static_cast<std::int64_t>(file.tokens - at.token));
      begin += left, count -= left;
      auto block =
          static_cast<std::size_t>(std::ranges::upper_bound(file.block_ends, at.token) - file.block_ends.begin());
      for (std::int64_t n; left > 0; left -= n, ++block) {
        const std::uint64_t start = block ? file.block_ends[block - 1] : 0;
        n = std::min(left, static_cast<std::int64_t>(file.block_ends[block] - at.token));
        const std::byte* in =
            file.bytes.data() + file.block_offsets[block] + (at.token - start) * token_bytes(file.type);
        const std::uint64_t largest = kernels_.copy_tokens(file.type, in, n, rows_.wide, out);
        if (largest >= file.vocabulary_size) refuse_id(file, largest);
        out += n * width_, at.token += n;
      }
    }
  }

  Place locate(std::int64_t token) { return noted(reader_.locate(token)); }

  // Records that the file of a place is read.
  Place noted(Place place) {
    const auto number = static_cast<std::size_t>(place.file - reader_.files_.data());
    if (!is_read_[number]) read_.push_back(number);
    is_read_[number] = true;
    return place;
  }

  std::byte* element(void* array, std::int64_t i) const {
    return static_cast<std::byte*>(array) + (first_ + i) * width_;
  }

  void set(void* array, std::int64_t i, std::int64_t count, std::int64_t value) const {
    if (!array) return;
    if (rows_.wide)
      std::fill_n(static_cast<std::int64_t*>(array) + first_ + i, count, value);
    else
      std::fill_n(static_cast<std::int32_t*>(array) + first_ + i, count, static_cast<std::int32_t>(value));
  }

  struct Kernels {
    decltype(&baseline::copy_tokens) copy_tokens = PYCOOLDOWN_DISPATCH(copy_tokens);
    decltype(&baseline::count_up) count_up = PYCOOLDOWN_DISPATCH(count_up);
  };

  const TokenReader& reader_;
  const TokenRows& rows_;
  const std::int64_t width_;  // bytes of an id
  const Kernels kernels_;
  MapGuard guard_;
  std::vector<bool> is_read_;        // by file
  std::vector<std::size_t> read_;    // files
  std::int64_t first_ = 0, at_ = 0;  // the row's first element, and how much of the row is filled
  std::int32_t segment_ = 0;
};

TokenReader::Place TokenReader::locate(std::int64_t token) const {
  const auto next = std::ranges::upper_bound(starts_, token);  // skips files without tokens
  return {&files_[static_cast<std::size_t>(next - starts_.begin() - 1)], static_cast<std::uint64_t>(token - next[-1])};
}

void TokenReader::add(TokenFile file) {
  const std::size_t width = token_bytes(file.type);
  bool whole = file.block_offsets.size() == file.block_ends.size();
  std::uint64_t start = 0;
  for (std::size_t b = 0; whole && b < file.block_ends.size(); ++b) {
    const std::uint64_t offset = file.block_offsets[b], end = file.block_ends[b];
    whole = end > start && offset <= file.bytes.size() && end - start <= (file.bytes.size() - offset) / width;
    start = end;
  }
  if (!whole || start != file.tokens)
    throw std::invalid_argument(file.path + ": the blocks of tokens do not lie in the file, or are not its tokens");
  file.vocabulary_size = std::min(file.vocabulary_size, is_signed(file.type) ? num_ids(file.type) : ~std::uint64_t{0});
  starts_.push_back(starts_.back() + static_cast<std::int64_t>(file.tokens));
  mapped_.emplace_back(file.path, file.bytes);
  if (!file.ends_path.empty()) mapped_.emplace_back(file.ends_path, std::as_bytes(file.ends));
  for (std::size_t map = maps_.size(); map < mapped_.size(); ++map) maps_.push_back(&mapped_[map]);
  first_maps_.push_back(maps_.size());
  files_.push_back(std::move(file));
}

void TokenReader::fill(const TokenRows& rows) const {
  Filler filler(*this, rows);
  try {
    for (std::int64_t row = 0; row + 1 < static_cast<std::int64_t>(rows.pieces.size()); ++row) filler.fill(row);
  } catch (const std::invalid_argument&) {
    filler.check();  // a changed file is the more useful error
    throw;
  }
  filler.check();
}

}  // namespace pycooldown
