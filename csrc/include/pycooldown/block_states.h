// Which blocks of a cache have files: memory that the fetcher shares with all processes that read.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace pycooldown {

// The file has the number of evictions so far (8 bytes), then a byte for each block: 0 if it has no file, otherwise its
// state, which changes with each new file. Then a second byte for each block: the state of the file that some process
// has checked, or 0. Readers write the second bytes, the fetcher all others.
class BlockStates {
 public:
  // Throws std::system_error if the file cannot be mapped, or is not of so many blocks.
  BlockStates(const std::string& path, std::size_t blocks);
  ~BlockStates();
  BlockStates(const BlockStates&) = delete;
  BlockStates& operator=(const BlockStates&) = delete;

  std::uint64_t evictions() const;
  std::uint8_t state(std::int64_t block) const { return byte(block).load(std::memory_order_acquire); }
  bool is_checked(std::int64_t block, std::uint8_t state) const {
    return checked(block).load(std::memory_order_relaxed) == state;
  }
  // A file in that state was read and found whole.
  void note_checked(std::int64_t block, std::uint8_t state) { checked(block).store(state, std::memory_order_relaxed); }

 private:
  std::atomic_ref<std::uint8_t> byte(std::int64_t at) const;
  std::atomic_ref<std::uint8_t> checked(std::int64_t block) const {
    return byte(static_cast<std::int64_t>(blocks_) + block);
  }

  std::size_t blocks_, size_;
  std::uint8_t* bytes_ = nullptr;
};

}  // namespace pycooldown
