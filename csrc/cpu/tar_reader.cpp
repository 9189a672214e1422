#include "pycooldown/tar_reader.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "file.h"

namespace pycooldown {

namespace {

// A mapping costs about as much as this many reads of an unmapped shard.
constexpr std::uint32_t kHot = 8;

[[noreturn]] void fail_changed(const std::string& path, const char* how) {
  throw std::system_error(ESTALE, std::generic_category(), path + " has changed since it was indexed" + how);
}

}  // namespace

TarReader::TarReader(std::size_t max_maps) : max_maps_(max_maps) {}

void TarReader::add(std::string path, std::shared_ptr<const TarIndex> index) {
  starts_.push_back(starts_.back() + index->num_samples());
  shards_.push_back({static_cast<std::uint32_t>(sources_.size()), 0});
  sources_.push_back({std::move(index), std::move(path), false});
}

void TarReader::add_all(std::shared_ptr<const TarIndex> index, std::string folder) {
  const std::uint64_t start = starts_.back();
  for (std::uint32_t number = 0; number < index->num_shards(); ++number) {
    starts_.push_back(start + index->first_sample(number + 1));
    shards_.push_back({static_cast<std::uint32_t>(sources_.size()), number});
  }
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

void TarReader::begin_call() {
  ++call_;
  for (const Source& source : sources_) {
    if (!source.is_folder) break;  // the others are in memory
    source.index->check_file();
  }
}

void TarReader::require_indexed(std::uint32_t number_of, std::uint64_t size, std::int64_t mtime_ns,
                                const ReadAt& read) {
  Shard& shard = shards_[number_of];
  const TarIndex& in = index(number_of);
  if (size != in.shard_size(shard.number) || mtime_ns != in.shard_mtime_ns(shard.number))
    fail_changed(path(number_of), "; index it again, and open the data set anew");
  if (!shard.known && !in.has_fingerprint(shard.number, read))
    fail_changed(path(number_of),
                 ", though it has the size and time that it had; delete its index, and open the data set anew");
  shard.known = true;
}

const char* TarReader::view(std::uint32_t number, std::uint64_t offset, std::size_t size) {
  Shard& shard = shards_[number];
  shard.recent = true;
  if (!shard.map && (mapped_.size() < max_maps_ || is_hot(shard))) map(number);
  if (shard.map) {
    if (shard.checked != call_ && shard.map->has_changed(path(number)))
      fail_changed(path(number), "; index it again, and open the data set anew");
    shard.checked = call_;
    return shard.map->data() + offset;
  }
  if (buffer_.size() < size) buffer_.resize(size);
  const std::string name = path(number);
  const File file(name);
  const File::Status status = file.status();
  if (!status.regular) file.fail(ESPIPE, " is no regular file");
  require_indexed(number, status.size, status.mtime_ns,
                  [&](std::uint64_t at, char* out, std::size_t count) { return file.read(at, out, count); });
  if (file.read(offset, buffer_.data(), size) != size) file.fail(EIO, " ends before its size");
  return buffer_.data();
}

// Whether a shard, about to be read, has been read kHot times of the last kHot * max_maps reads of unmapped shards: no
// more than max_maps can be.
bool TarReader::is_hot(Shard& shard) {
  if (max_maps_ == 0) return false;
  const std::uint64_t window = num_reads_++ / (kHot * max_maps_);
  if (shard.window != window) shard.reads = 0;
  shard.window = window;
  return ++shard.reads >= kHot;
}

void TarReader::map(std::uint32_t number) {
  auto map = std::make_unique<MappedFile>(path(number));
  require_indexed(number, map->size(), map->mtime_ns(), [&](std::uint64_t at, char* out, std::size_t count) {
    std::memcpy(out, map->data() + at, count);
    return count;
  });
  if (mapped_.size() < max_maps_) {
    mapped_.push_back(number);
  } else {
    while (shards_[mapped_[hand_]].recent) {
      shards_[mapped_[hand_]].recent = false;
      hand_ = (hand_ + 1) % mapped_.size();
    }
    shards_[mapped_[hand_]].map.reset();
    mapped_[hand_] = number;
    hand_ = (hand_ + 1) % mapped_.size();
  }
  shards_[number].map = std::move(map);
}

void TarReader::prefetch_bytes(Place place) const {
  const Shard& shard = shards_[place.shard];
  if (!shard.map) return;
  constexpr std::uint64_t kLine = 64, kAtMost = 512;
  const std::uint64_t begin = index(place.shard).first_offset(shard.number, place.sample);
  const std::uint64_t end = std::min<std::uint64_t>(begin + kAtMost, shard.map->size());
  for (std::uint64_t at = begin; at < end; at += kLine) __builtin_prefetch(shard.map->data() + at);
}

}  // namespace pycooldown
