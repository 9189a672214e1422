// Reads of mapped files that may lose pages while they are read.
#pragma once

#include <atomic>
#include <cstddef>
#include <span>

namespace pycooldown {

// A file that is mapped into memory, or a part of one.
struct MappedBytes {
  explicit MappedBytes(std::span<const std::byte> mapped = {}) : bytes(mapped) {}

  std::span<const std::byte> bytes;
  std::atomic<bool> lost = false;  // Pages are lost, and all threads read zeros in their place.
};

// Reading a page of a map that its file no longer has (the file was truncated, or its disk fails) raises the signal
// SIGBUS, which ends the process. While a guard watches a map, such a read by the guard's thread gets zeros instead,
// and the map is marked as lost. The reader must look at the mark before it uses what it has read.
//
// The handler of the signal puts pages of zeros in the place of the missing ones and returns, so the reading code goes
// on and nothing has to be unwound. A signal of any other cause goes to the handler that was there before.
class MapGuard {
 public:
  // Installs the handler where it is not the current one, which costs a system call to find out: others install theirs
  // later, as PyTorch does in its workers.
  MapGuard();
  ~MapGuard();
  MapGuard(const MapGuard&) = delete;
  MapGuard& operator=(const MapGuard&) = delete;

  // Watches these maps from now on, instead of those before. They must exist until others are watched.
  void watch(std::span<MappedBytes* const> maps);

  // For the handler: replaces the pages from `address` to the end of the watched map it lies in. Returns whether there
  // is such a map.
  bool replace_pages(const void* address) const;

 private:
  std::span<MappedBytes* const> watched_;
  MapGuard* outer_;  // The guard of this thread before: a destructor of Python's may read within a read.
};

}  // namespace pycooldown
