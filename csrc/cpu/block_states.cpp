#include "pycooldown/block_states.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace pycooldown {

namespace {

[[noreturn]] void fail(int error, const std::string& what) {
  throw std::system_error(error, std::generic_category(), what);
}

}  // namespace

BlockStates::BlockStates(const std::string& path, std::size_t blocks) : blocks_(blocks), size_(kCounters + 2 * blocks) {
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) fail(errno, path);
  struct stat status;
  const bool is_known = ::fstat(descriptor, &status) == 0;
  void* mapped = MAP_FAILED;
  if (is_known && static_cast<std::size_t>(status.st_size) == size_)
    mapped = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  const int error = errno;
  ::close(descriptor);
  if (is_known && static_cast<std::size_t>(status.st_size) != size_) fail(EIO, path + " is not of these blocks");
  if (mapped == MAP_FAILED) fail(error, path + " cannot be mapped");
  bytes_ = static_cast<std::uint8_t*>(mapped);
}

BlockStates::~BlockStates() { ::munmap(bytes_, size_); }

}  // namespace pycooldown
