// A parallel loop over independent chunks. Which thread runs a chunk never changes its result.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>

namespace pycooldown {

// Calls work(context) on num_threads threads, the caller among them, and returns when all are done.
void run_on_threads(int num_threads, void (*work)(void*), void* context);

// Calls body(chunk) for chunk = 0 ... num_chunks-1 on up to num_threads threads (0: one per hardware thread), the
// caller among them. Rethrows the first exception after all threads have stopped.
template <class Body>
void parallel_for(std::int64_t num_chunks, int num_threads, const Body& body) {
  if (num_threads <= 0) num_threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  num_threads = static_cast<int>(std::min<std::int64_t>(num_threads, num_chunks));
  if (num_threads <= 1) {
    for (std::int64_t chunk = 0; chunk < num_chunks; ++chunk) body(chunk);
    return;
  }
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  auto work = [&] {
    try {
      for (std::int64_t chunk; (chunk = next.fetch_add(1)) < num_chunks;) body(chunk);
    } catch (...) {
      std::lock_guard lock(error_mutex);
      if (!error) error = std::current_exception();
      next = num_chunks;
    }
  };
  run_on_threads(num_threads, [](void* context) { (*static_cast<decltype(work)*>(context))(); }, &work);
  if (error) std::rethrow_exception(error);
}

}  // namespace pycooldown
