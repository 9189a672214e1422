#include "pycooldown/tar_reader.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "file.h"

namespace pycooldown {

namespace {

// A mapping costs about as much as this many reads of an unmapped shard.
constexpr std::uint32_t kHot = 8;

constexpr const char* kChanged = " has changed since it was indexed; make a new TarDataset";
constexpr const char* kLost = " was truncated while it was mapped, or its disk fails; make a new TarDataset";

bool is_indexed_state(const File::Status& status, const TarIndex& index) {
  return status.regular && status.size == index.shard_size && status.mtime_ns == index.shard_mtime_ns;
}

File::Status require_unchanged(const File& file, const TarIndex& index) {
  const File::Status status = file.status();
  if (!is_indexed_state(status, index)) file.fail(ESTALE, kChanged);
  return status;
}

}  // namespace

Map::Map(const std::string& path, const TarIndex& index) {
  const File file(path);
  const File::Status status = require_unchanged(file, index);
  device_ = status.device;
  inode_ = status.inode;
  const std::size_t size = index.shard_size;
  const void* mapped = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.descriptor(), 0);
  if (mapped == MAP_FAILED) file.fail(errno);
  mapped_.bytes = {static_cast<const std::byte*>(mapped), size};
}

Map::~Map() { ::munmap(const_cast<std::byte*>(mapped_.bytes.data()), mapped_.bytes.size()); }

void Map::check(const std::string& path, const TarIndex& index) const {
  struct stat raw;
  if (::stat(path.c_str(), &raw) == 0) {
    const File::Status status(raw);
    const bool is_mapped_file = status.device == device_ && status.inode == inode_;
    if (is_mapped_file && !is_indexed_state(status, index))
      throw std::system_error(ESTALE, std::generic_category(), path + kChanged);
  }
  if (mapped_.lost) throw std::system_error(EIO, std::generic_category(), path + kLost);
}

TarReader::TarReader(std::size_t max_maps) : max_maps_(max_maps) {}

void TarReader::add(std::string path, std::shared_ptr<const TarIndex> index) {
  starts_.push_back(starts_.back() + index->size());
  shards_.push_back({std::move(path), std::move(index)});
}

TarReader::Place TarReader::find(std::uint64_t i) const {
  const auto next = std::upper_bound(starts_.begin(), starts_.end(), i);
  return {static_cast<std::uint32_t>(next - starts_.begin() - 1), i - next[-1]};
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
  const File file(shard.path);
  const std::size_t done = file.read(offset, buffer.data(), size);
  require_unchanged(file, *shard.index);  // after the read, so that a change during it is noticed too
  if (done != size) file.fail(EIO, " ends before its size");
  return buffer.data();
}

void TarReader::Batch::copy(const char* from, std::size_t size, void* out) {
  if (viewed_) {
    MappedBytes* const map = viewed_->mapped();
    guard_.watch({&map, 1});
    std::memcpy(out, from, size);
    guard_.watch({});
  } else {
    std::memcpy(out, from, size);
  }
}

void TarReader::Batch::finish() const {
  for (const std::uint32_t number : read_) {
    const Shard& shard = reader_.shards_[number];
    if (shard.map) shard.map->check(shard.path, *shard.index);  // else when it was unmapped
  }
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
  auto map = std::make_unique<Map>(shards_[number].path, *shards_[number].index);
  if (mapped_.size() < max_maps_) {
    mapped_.push_back(number);
  } else {
    while (shards_[mapped_[hand_]].recent) {
      shards_[mapped_[hand_]].recent = false;
      hand_ = (hand_ + 1) % mapped_.size();
    }
    unmap(shards_[mapped_[hand_]]);
    mapped_[hand_] = number;
    hand_ = (hand_ + 1) % mapped_.size();
  }
  shards_[number].map = std::move(map);
}

void TarReader::unmap(Shard& shard) {
  if (shard.unfinished > 0) shard.map->check(shard.path, *shard.index);  // which its batches can no longer do
  shard.map.reset();
}

void TarReader::prefetch_row(Place place) const {
  const TarIndex& shard = index(place.shard);
  __builtin_prefetch(&shard.samples[place.sample]);
}

void TarReader::prefetch_bytes(Place place) const {
  const Shard& shard = shards_[place.shard];
  const TarSample& row = shard.index->samples[place.sample];
  if (row.member == shard.index->members.size()) return;
  const TarMember& member = shard.index->members[row.member];
  __builtin_prefetch(shard.index->keys.data() + row.key);
  if (!shard.map) return;
  constexpr std::uint64_t kLine = 64, kAtMost = 512;
  for (std::uint64_t at = 0; at < std::min(member.size, kAtMost); at += kLine)
    __builtin_prefetch(shard.map->data() + member.offset() + at);
}

}  // namespace pycooldown
