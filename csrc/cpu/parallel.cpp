#include "parallel.h"

#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace pycooldown {

namespace {

// The entry point of an OpenMP runtime that the process has already loaded, for example through torch. The runtimes of
// GCC, Intel and LLVM all export it. Sharing its threads avoids a second pool. Two pools would compete for processors,
// because OpenMP's threads spin for milliseconds after each operation of torch.
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

// Threads that are joined at the end, even if one of them cannot be started. std::jthread would do the same, but libc++
// hides it before version 20.
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
