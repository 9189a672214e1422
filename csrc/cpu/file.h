// A file that is open for reading.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <system_error>

namespace pycooldown {

// Nanoseconds since the epoch at which a file was last written.
inline std::int64_t modified_ns(const struct stat& status) {
#if defined(__APPLE__)
  const timespec& time = status.st_mtimespec;
#else
  const timespec& time = status.st_mtim;
#endif
  return time.tv_sec * std::int64_t{1'000'000'000} + time.tv_nsec;
}

class File {
 public:
  // Throws std::system_error, as all functions below do. Opening does not wait for a writer if this is a pipe.
  explicit File(const std::string& path)
      : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (descriptor_ < 0) fail(errno);
  }
  ~File() { ::close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  int descriptor() const { return descriptor_; }

  struct Status {
    bool regular, folder;
    std::uint64_t size;           // bytes
    std::int64_t mtime_ns;        // nanoseconds since the epoch
    std::uint64_t device, inode;  // identify the file

    explicit Status(const struct stat& status)
        : regular(S_ISREG(status.st_mode)),
          folder(S_ISDIR(status.st_mode)),
          size(static_cast<std::uint64_t>(status.st_size)),
          mtime_ns(modified_ns(status)),
          device(static_cast<std::uint64_t>(status.st_dev)),
          inode(status.st_ino) {}

    bool operator==(const Status&) const = default;
  };
  Status status() const {
    struct stat status;
    if (::fstat(descriptor_, &status) != 0) fail(errno);
    return Status(status);
  }

  // Copies up to `size` bytes from `offset` and returns how many there were.
  std::size_t read(std::uint64_t offset, char* out, std::size_t size) const {
    std::size_t done = 0;
    while (done < size) {
      const ssize_t got = ::pread(descriptor_, out + done, size - done, static_cast<off_t>(offset + done));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail(errno);
      if (got == 0) break;
      done += static_cast<std::size_t>(got);
    }
    return done;
  }

  [[noreturn]] void fail(int error, const std::string& what = "") const {
    throw std::system_error(error, std::generic_category(), path_ + what);
  }

 private:
  const std::string& path_;  // outlives the file, which is a local variable
  int descriptor_;
};

}  // namespace pycooldown
