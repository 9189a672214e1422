// The memory in which a thread keeps the values of two rows. Included by cross_entropy_kernel.cpp only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pycooldown::PYCOOLDOWN_ISA {

constexpr std::int64_t kBlock = 2048;  // elements that share a reference

// The values of a row that are kept until its gradient is written.
struct Row {
  float* exponential;
  float* capped;
  std::vector<float> reference;  // of each block
};

// Two rows, used in turn. The memory grows to the longest row seen so far and is reused by its thread.
struct Scratch {
  struct alignas(64) Line {
    float value[16];
  };
  std::vector<Line> lines;
  std::array<Row, 2> rows;

  void reserve(std::int64_t num_classes, bool with_capped) {
    // Processors delay a load after a store to an address with the same low 12 bits. So the same place of the two rows
    // is half a page apart, modulo the size of a page.
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
