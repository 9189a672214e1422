// Where a thread keeps what it knows of two rows. Included by cross_entropy_kernel.cpp only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pycooldown::PYCOOLDOWN_ISA {

constexpr std::int64_t kBlock = 2048;  // elements that share a reference

// What is kept of a row until its gradient is written.
struct Row {
  float* exponential;
  float* capped;
  std::vector<float> reference;  // of each block
};

// Two rows that take turns. It grows to the longest row seen, then is reused by the thread.
struct Scratch {
  struct alignas(64) Line {
    float value[16];
  };
  std::vector<Line> lines;
  std::array<Row, 2> rows;

  void reserve(std::int64_t num_classes, bool with_capped) {
    // The same place of the two rows lies half a page apart modulo pages: processors hold a load back after a store to
    // an address with the same low 12 bits.
    const auto page = 4096 / sizeof(Line), pages = static_cast<std::size_t>(num_classes) / 1024 + 1;
    const auto pitch = pages * page + page / (with_capped ? 4 : 2);
    const auto needed = pitch * (with_capped ? 4 : 2);
    if (lines.size() < needed) lines.resize(needed);
    float* next = lines.data()->value;
    for (Row& row : rows) {
      row.exponential = next;
      next += pitch * 16;
      row.capped = nullptr;
      if (with_capped) {
        row.capped = next;
        next += pitch * 16;
      }
      row.reference.resize(static_cast<std::size_t>(num_classes / kBlock + 1));
    }
  }
};

}  // namespace pycooldown::PYCOOLDOWN_ISA
