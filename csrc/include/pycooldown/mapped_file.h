// A file in memory, read-only; it is closed again at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pycooldown {

class MappedFile {
 public:
  // Throws std::system_error where the file cannot be mapped.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const char* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::int64_t mtime_ns() const { return mtime_ns_; }

  // Whether the file was written to or truncated since. Reading a page of a map that the file no longer has kills the
  // process. A file that was deleted, or replaced by another one of its name, is still there as it was mapped.
  bool has_changed(const std::string& path) const;

 private:
  char* data_ = nullptr;
  std::size_t size_ = 0;
  std::int64_t mtime_ns_ = 0;
  std::uint64_t device_ = 0, inode_ = 0;
};

}  // namespace pycooldown
