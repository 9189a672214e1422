// A file mapped into memory, read-only; the file itself is closed again at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "pycooldown/map_guard.h"

namespace pycooldown {

class MappedFile {
 public:
  // Throws std::system_error if the file cannot be mapped.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const char* data() const { return reinterpret_cast<const char*>(mapped_.bytes.data()); }
  std::size_t size() const { return mapped_.bytes.size(); }
  MappedBytes* mapped() { return &mapped_; }  // for a MapGuard
  std::int64_t mtime_ns() const { return mtime_ns_; }

  // Whether the file was written to or truncated since. A file that was deleted, or replaced by another one of the same
  // name, is unchanged in the map.
  bool has_changed(const std::string& path) const;

 private:
  MappedBytes mapped_;
  std::int64_t mtime_ns_ = 0;
  std::uint64_t device_ = 0, inode_ = 0;
};

}  // namespace pycooldown
