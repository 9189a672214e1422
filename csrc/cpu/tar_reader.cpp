#include "pycooldown/tar_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "file.h"

namespace pycooldown {

namespace {

// A mapping costs about as much as this many reads of an unmapped shard.
constexpr std::uint32_t kHot = 8;

constexpr const char* kChanged = " has changed since it was indexed; make a new TarDataset, of a new index";
constexpr const char* kRewritten =
    " has changed since it was indexed, though it has the size and time that it had; delete its index, and make a new "
    "TarDataset";
constexpr const char* kLost = " was truncated while it was mapped, or its disk fails; make a new TarDataset";

[[noreturn]] void fail(int error, const std::string& path, const char* what) {
  throw std::system_error(error, std::generic_category(), path + what);
}

}  // namespace

TarReader::TarReader(std::size_t max_maps) : max_maps_(max_maps) {}

void TarReader::add(std::string path, std::shared_ptr<const TarIndex> index) {
  starts_.push_back(starts_.back() + index->num_samples());
  shards_.push_back({static_cast<std::uint32_t>(sources_.size()), 0});
  if (MappedBytes* const map = index->mapped()) index_maps_.push_back(map);
  sources_.push_back({std::move(index), std::move(path), false});
}

void TarReader::add_all(std::shared_ptr<const TarIndex> index, std::string folder) {
  const std::uint64_t start = starts_.back();
  for (std::uint32_t number = 0; number < index->num_shards(); ++number) {
    starts_.push_back(start + index->first_sample(number + 1));
    shards_.push_back({static_cast<std::uint32_t>(sources_.size()), number});
  }
  if (MappedBytes* const map = index->mapped()) index_maps_.push_back(map);
  sources_.push_back({std::move(index), std::move(folder), true});
}

std::string TarReader::path(std::uint32_t shard) const {
  const Source& source = sources_[shards_[shard].source];
  if (!source.is_folder) return source.path;
  const std::string_view path = source.index->path(number(shard));
  const bool is_relative = !path.starts_with('/') && path.find("://") == std::string_view::npos;
  return (is_relative ? source.path : std::string()) + std::string(path);
}

TarReader::Place TarReader::find(std::uint64_t i) const {
  const auto next = std::upper_bound(starts_.begin(), starts_.end(), i);
  return {static_cast<std::uint32_t>(next - starts_.begin() - 1), i - next[-1]};
}

TarReader::Batch::Batch(TarReader& reader) : reader_(reader), number_(++reader.num_batches_) {
  for (const Source& source : reader.sources_) {
    if (!source.is_folder) break;  // other indexes are in memory
    source.index->check_file();
  }
  guard_.watch(reader_.index_maps_);
}

TarReader::Batch::~Batch() {
  for (const std::uint32_t shard : read_) --reader_.shards_[shard].unfinished;
}

const char* TarReader::Batch::view(std::uint32_t number, std::uint64_t offset, std::size_t size) {
  Shard& shard = reader_.shards_[number];
  shard.recent = true;
  if (!shard.map && (reader_.mapped_.size() < reader_.max_maps_ || reader_.is_hot(shard))) reader_.map(number);
  viewed_ = shard.map.get();
  if (viewed_) {
    if (shard.last_batch != number_) {
      read_.push_back(number);
      ++shard.unfinished;
      shard.last_batch = number_;
    }
    return viewed_->data() + offset;
  }
  std::vector<char>& buffer = reader_.buffer_;
  if (buffer.size() < size) buffer.resize(size);
  const std::string path = reader_.path(number);
  const File file(path);
  const std::size_t done = file.read(offset, buffer.data(), size);
  reader_.require_indexed(number, file);  // after the read, to detect a change during it too
  if (done != size) file.fail(EIO, " ends before its size");
  return buffer.data();
}

void TarReader::Batch::copy(const char* from, std::size_t size, void* out) {
  if (viewed_) {
    MappedBytes* const map = viewed_->mapped();
    guard_.watch({&map, 1});
    std::memcpy(out, from, size);
    guard_.watch(reader_.index_maps_);
  } else {
    std::memcpy(out, from, size);
  }
}

void TarReader::Batch::finish() const {
  for (const std::uint32_t shard : read_)
    if (reader_.shards_[shard].map) reader_.require_mapped(shard);  // otherwise checked when it was unmapped
  for (const Source& source : reader_.sources_) {
    if (!source.is_folder) break;
    source.index->require_pages();
  }
}

void TarReader::require_mapped(std::uint32_t number) const {
  MappedFile& map = *shards_[number].map;
  if (map.has_changed(path(number))) fail(ESTALE, path(number), kChanged);
  if (map.mapped()->lost) fail(EIO, path(number), kLost);
}

void TarReader::require_indexed(std::uint32_t number, const File& file) {
  Shard& shard = shards_[number];
  const TarIndex& in = index(number);
  const auto is_indexed = [&](const File::Status& status) {
    return status.regular && status.size == in.shard_size(shard.number) &&
           status.mtime_ns == in.shard_mtime_ns(shard.number);
  };
  if (!is_indexed(file.status())) fail(ESTALE, path(number), kChanged);
  if (shard.known) return;
  const ReadAt read = [&](std::uint64_t at, char* out, std::size_t count) { return file.read(at, out, count); };
  if (!in.has_fingerprint(shard.number, read)) fail(ESTALE, path(number), kRewritten);
  shard.known = true;
}

// Whether a shard, about to be read, was read kHot times among the last kHot * max_maps reads of unmapped shards. At
// most max_maps shards can be.
bool TarReader::is_hot(Shard& shard) {
  if (max_maps_ == 0) return false;
  const std::uint64_t window = num_reads_++ / (kHot * max_maps_);
  if (shard.window != window) shard.reads = 0;
  shard.window = window;
  return ++shard.reads >= kHot;
}

void TarReader::map(std::uint32_t number) {
  const std::string path_of = path(number);
  require_indexed(number, File(path_of));  // not from the map, whose pages may be lost
  auto map = std::make_unique<MappedFile>(path_of);
  if (map->size() != index(number).shard_size(this->number(number))) fail(ESTALE, path_of, kChanged);
  if (mapped_.size() < max_maps_) {
    mapped_.push_back(number);
  } else {
    while (shards_[mapped_[hand_]].recent) {
      shards_[mapped_[hand_]].recent = false;
      hand_ = (hand_ + 1) % mapped_.size();
    }
    unmap(mapped_[hand_]);
    mapped_[hand_] = number;
    hand_ = (hand_ + 1) % mapped_.size();
  }
  shards_[number].map = std::move(map);
}

void TarReader::unmap(std::uint32_t number) {
  if (shards_[number].unfinished > 0) require_mapped(number);  // its batches can no longer check it
  shards_[number].map.reset();
}

void TarReader::prefetch_bytes(std::uint32_t number, std::uint64_t offset) const {
  const Shard& shard = shards_[number];
  if (!shard.map) return;
  constexpr std::uint64_t kLine = 64, kAtMost = 512;
  const std::uint64_t end = std::min<std::uint64_t>(offset + kAtMost, shard.map->size());
  for (std::uint64_t at = offset; at < end; at += kLine) __builtin_prefetch(shard.map->data() + at);
}

}  // namespace pycooldown
