// Draws written to device memory. Needs the CUDA runtime, whose errors become std::runtime_error.
#pragma once

#include <cstdint>

#include "pycooldown/alias_table.h"

namespace pycooldown {

// A copy of a table in the memory of the device that is current at construction.
class DeviceAliasTable {
 public:
  explicit DeviceAliasTable(const AliasTable& table);
  ~DeviceAliasTable();
  DeviceAliasTable(const DeviceAliasTable&) = delete;
  DeviceAliasTable& operator=(const DeviceAliasTable&) = delete;

  int device() const { return device_; }

  // out[i] = draw number offset + i of this seed, for i < n: the same bits as on the CPU. Queued on `stream`, a
  // cudaStream_t of the table's device. Throws std::invalid_argument if `out` is not memory of that device.
  void draw(std::int32_t* out, std::uint64_t n, std::uint64_t seed, std::uint64_t offset, void* stream) const;

 private:
  int device_;
  std::uint32_t* rows_;
  AliasTableView view_;
};

}  // namespace pycooldown
