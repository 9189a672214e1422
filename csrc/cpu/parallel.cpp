#include "parallel.h"

#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace pycooldown {

namespace {

// The entry point of an OpenMP runtime that the process has loaded already, as torch does: GCC's, Intel's and LLVM's
// export it alike. Sharing its threads avoids a second pool, whose threads would compete for the processors with the
// first's, which spin for milliseconds after each operation of torch.
using OmpParallel = void (*)(void (*)(void*), void*, unsigned num_threads, unsigned flags);

OmpParallel loaded_openmp() {
#if defined(__unix__) || defined(__APPLE__)
  // A forked child has the runtime's memory, but not its threads.
  static std::atomic<bool> forked{false};
  static const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
  if (registered != 0 || forked) return nullptr;
  return reinterpret_cast<OmpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
#else
  return nullptr;
#endif
}

// Joined at the end, also if one cannot be started: std::jthread, which libc++ hides before version 20.
struct JoiningThreads : std::vector<std::thread> {
  ~JoiningThreads() {
    for (std::thread& thread : *this) thread.join();
  }
};

}  // namespace

void run_on_threads(int num_threads, void (*work)(void*), void* context) {
  if (const OmpParallel omp_parallel = loaded_openmp()) {
    omp_parallel(work, context, static_cast<unsigned>(num_threads), 0);
    return;
  }
  JoiningThreads threads;
  for (int i = 1; i < num_threads; ++i) threads.emplace_back([=] { work(context); });
  work(context);
}

}  // namespace pycooldown
