// Which blocks of a cache have files: memory that the fetcher shares with all processes that read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pycooldown {

// The file has the number of evictions so far and the steps that ranks need not report (8 bytes each), then a byte for
// each block: 0 if it has no file, otherwise its state, which changes with each new file. Then a second byte for each
// block: the state of the file that some process has checked, or 0. Readers write the second bytes, the fetcher all
// others.
class BlockStates {
 public:
  // Throws std::system_error if the file cannot be mapped, or is not of so many blocks.
  BlockStates(const std::string& path, std::size_t blocks);
  ~BlockStates();
  BlockStates(const BlockStates&) = delete;
  BlockStates& operator=(const BlockStates&) = delete;

  // By the compilers' built-in functions, since not every library has std::atomic_ref yet.
  std::uint64_t evictions() const {
    return __atomic_load_n(reinterpret_cast<std::uint64_t*>(bytes_), __ATOMIC_ACQUIRE);
  }
  std::uint8_t state(std::int64_t block) const { return __atomic_load_n(state_of(block), __ATOMIC_ACQUIRE); }
  bool is_checked(std::int64_t block, std::uint8_t state) const {
    return __atomic_load_n(state_of(block) + blocks_, __ATOMIC_RELAXED) == state;
  }
  // A file in that state was read and found whole.
  void note_checked(std::int64_t block, std::uint8_t state) {
    __atomic_store_n(state_of(block) + blocks_, state, __ATOMIC_RELAXED);
  }

 private:
  std::uint8_t* state_of(std::int64_t block) const { return bytes_ + kCounters + static_cast<std::size_t>(block); }

  static constexpr std::size_t kCounters = 2 * sizeof(std::uint64_t);

  std::size_t blocks_, size_;
  std::uint8_t* bytes_ = nullptr;
};

}  // namespace pycooldown
