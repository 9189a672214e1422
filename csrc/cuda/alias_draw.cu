#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "alias_draw.h"
#include "pycooldown/device_draw.h"

namespace pycooldown {

namespace {

constexpr unsigned kThreads = 256;
constexpr std::uint64_t kMaxGrid = 1 << 16;

__global__ void __launch_bounds__(kThreads)
    draw_kernel(AliasTableView table, std::uint64_t seed, std::uint64_t offset, std::uint64_t n, std::int32_t* out) {
  const std::uint64_t num_threads = num_draw_threads(offset, n), stride = std::uint64_t{gridDim.x} * kThreads;
  for (std::uint64_t thread = std::uint64_t{blockIdx.x} * kThreads + threadIdx.x; thread < num_threads;
       thread += stride) {
    draw_as_thread(table, seed, offset, n, thread, out);
  }
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // so that the next call does not report it again
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~CurrentDevice() { (void)cudaSetDevice(before_); }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
};

void check_memory(const void* pointer, int device, const char* what) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, pointer), "cudaPointerGetAttributes");
  const bool usable = attributes.type == cudaMemoryTypeManaged ||
                      (attributes.type == cudaMemoryTypeDevice && attributes.device == device);
  if (!usable) {
    throw std::invalid_argument(std::string("the ") + what + " of out is not in the memory of device " +
                                std::to_string(device) + "; expected n int32 values there");
  }
}

}  // namespace

DeviceAliasTable::DeviceAliasTable(const AliasTable& table) : view_(table.view()) {
  const std::size_t bytes = (std::size_t{1} << (32 - view_.shift)) * sizeof(std::uint32_t);
  check(cudaGetDevice(&device_), "cudaGetDevice");
  check(cudaMalloc(reinterpret_cast<void**>(&rows_), bytes), "cudaMalloc of an alias table");
  if (const cudaError_t error = cudaMemcpy(rows_, view_.rows, bytes, cudaMemcpyHostToDevice); error != cudaSuccess) {
    (void)cudaFree(rows_);
    check(error, "cudaMemcpy of an alias table");
  }
  view_.rows = rows_;
}

DeviceAliasTable::~DeviceAliasTable() { (void)cudaFree(rows_); }

void DeviceAliasTable::draw(std::int32_t* out, std::uint64_t n, std::uint64_t seed, std::uint64_t offset,
                            void* stream) const {
  if (n == 0) return;
  if (reinterpret_cast<std::uintptr_t>(out) % alignof(std::int32_t) != 0) {
    throw std::invalid_argument("out is not aligned to 4 bytes; expected the address of int32 values");
  }
  const CurrentDevice current(device_);
  check_memory(out, device_, "start");
  check_memory(out + (n - 1), device_, "end");
  const std::uint64_t grid = std::min(kMaxGrid, (num_draw_threads(offset, n) + kThreads - 1) / kThreads);
  draw_kernel<<<static_cast<unsigned>(grid), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(view_, seed, offset, n,
                                                                                               out);
  check(cudaGetLastError(), "launching draws");
}

}  // namespace pycooldown
