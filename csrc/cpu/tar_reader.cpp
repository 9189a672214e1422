#include "pycooldown/tar_reader.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

namespace pycooldown {

Map::Map(const std::string& path, const TarIndex& index) : size_(index.shard_size) {
  const auto fail = [&](int error, const std::string& what) {
    throw std::system_error(error, std::generic_category(), what);
  };
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail(errno, path);
  struct stat status;
  void* mapped = MAP_FAILED;
  int error = 0;
  if (::fstat(descriptor, &status) != 0) {
    error = errno;
  } else if (static_cast<std::uint64_t>(status.st_size) != index.shard_size ||
             status.st_mtim.tv_sec * std::int64_t{1'000'000'000} + status.st_mtim.tv_nsec != index.shard_mtime_ns) {
    ::close(descriptor);
    fail(ESTALE, path + " has changed since it was indexed; make a new TarDataset");
  } else if ((mapped = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, descriptor, 0)) == MAP_FAILED) {
    error = errno;
  }
  ::close(descriptor);
  if (mapped == MAP_FAILED) fail(error, path);
  data_ = static_cast<char*>(mapped);
}

Map::~Map() { ::munmap(data_, size_); }

TarReader::TarReader(std::size_t max_open) : max_open_(max_open) {}

void TarReader::add(std::string path, std::shared_ptr<const TarIndex> index) {
  starts_.push_back(starts_.back() + index->size());
  shards_.push_back({std::move(path), std::move(index), nullptr});
}

TarReader::Place TarReader::find(std::uint64_t i) const {
  const auto next = std::upper_bound(starts_.begin(), starts_.end(), i);
  return {static_cast<std::uint32_t>(next - starts_.begin() - 1), i - next[-1]};
}

const char* TarReader::open(std::uint32_t shard) {
  Shard& wanted = shards_[shard];
  wanted.recent = true;
  if (wanted.map) return wanted.map->data();
  auto map = std::make_unique<Map>(wanted.path, *wanted.index);
  if (open_.size() < max_open_) {
    open_.push_back(shard);
  } else {
    while (shards_[open_[hand_]].recent) {
      shards_[open_[hand_]].recent = false;
      hand_ = (hand_ + 1) % open_.size();
    }
    shards_[open_[hand_]].map.reset();
    open_[hand_] = shard;
    hand_ = (hand_ + 1) % open_.size();
  }
  wanted.map = std::move(map);
  return wanted.map->data();
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
