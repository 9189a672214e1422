#include "pycooldown/mapped_file.h"

#include <sys/mman.h>

#include <cerrno>

#include "file.h"

namespace pycooldown {

MappedFile::MappedFile(const std::string& path) {
  const File file(path);
  const File::Status status = file.status();
  if (!status.regular) file.fail(ESPIPE, " is no regular file");
  size_ = status.size;
  mtime_ns_ = status.mtime_ns;
  device_ = status.device;
  inode_ = status.inode;
  if (size_ == 0) return;
  void* mapped = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.descriptor(), 0);
  if (mapped == MAP_FAILED)
    file.fail(errno, errno == ENOMEM ? " cannot be mapped; see the limit vm.max_map_count" : "");
  data_ = static_cast<char*>(mapped);
}

MappedFile::~MappedFile() {
  if (data_) ::munmap(data_, size_);
}

bool MappedFile::has_changed(const std::string& path) const {
  struct stat raw;
  if (::stat(path.c_str(), &raw) != 0) return false;
  const File::Status now(raw);
  return now.device == device_ && now.inode == inode_ && (now.size != size_ || now.mtime_ns != mtime_ns_);
}

}  // namespace pycooldown
