#include "pycooldown/mapped_file.h"

#include <sys/mman.h>

#include <cerrno>

#include "file.h"

namespace pycooldown {

MappedFile::MappedFile(const std::string& path) {
  const File file(path);
  const File::Status status = file.status();
  if (status.folder) file.fail(EISDIR);
  if (!status.regular) file.fail(EINVAL, " is no regular file");
  mtime_ns_ = status.mtime_ns;
  device_ = status.device;
  inode_ = status.inode;
  if (status.size == 0) return;
  const void* mapped = ::mmap(nullptr, status.size, PROT_READ, MAP_SHARED, file.descriptor(), 0);
  if (mapped == MAP_FAILED)
    file.fail(errno, errno == ENOMEM ? " cannot be mapped; see the limit vm.max_map_count" : "");
  mapped_.bytes = {static_cast<const std::byte*>(mapped), status.size};
}

MappedFile::~MappedFile() {
  if (size() > 0) ::munmap(const_cast<std::byte*>(mapped_.bytes.data()), size());
}

bool MappedFile::has_changed(const std::string& path) const {
  struct stat raw;
  if (::stat(path.c_str(), &raw) != 0) return false;
  const File::Status now(raw);
  return now.device == device_ && now.inode == inode_ && (now.size != size() || now.mtime_ns != mtime_ns_);
}

}  // namespace pycooldown
