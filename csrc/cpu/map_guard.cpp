#include "pycooldown/map_guard.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <mutex>
#include <system_error>

namespace pycooldown {

namespace {

std::mutex install_mutex;
std::uintptr_t page_size;
// The guard of each thread. Reading a key is safe in a handler; a thread_local of a loaded library may allocate.
pthread_key_t guard_key;
struct sigaction previous;              // Written only while our handler is not installed.
std::atomic<bool> is_passed_on{false};  // A signal went to the previous handler since ours was installed.

// Passes the signal to the previous handler. A read that failed is repeated on return and raises the signal again. If
// the signal returns to us, the previous handler has ours as its predecessor, and the process ends.
void pass_on(const siginfo_t& info) {
  struct sigaction next = previous;
  if (is_passed_on.exchange(true)) {
    next = {};
    next.sa_handler = SIG_DFL;
  }
  ::sigaction(SIGBUS, &next, nullptr);
  if (info.si_code <= 0) ::raise(SIGBUS);  // Sent by a process, so nothing else raises it again.
}

void on_bus_error(int, siginfo_t* info, void*) {
  const int saved_errno = errno;
  const auto* guard = static_cast<const MapGuard*>(pthread_getspecific(guard_key));
  if (!guard || info->si_code != BUS_ADRERR || !guard->replace_pages(info->si_addr)) pass_on(*info);
  errno = saved_errno;
}

void require_success(int error, const char* what) {
  if (error != 0) throw std::system_error(error, std::generic_category(), what);
}

void prepare_once() {
  static const bool prepared = [] {
    page_size = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    require_success(pthread_key_create(&guard_key, nullptr), "no key for data of threads is left");
    // A child forked while another thread installs the handler must not find the mutex locked.
    const auto lock = [] { install_mutex.lock(); };
    const auto unlock = [] { install_mutex.unlock(); };
    require_success(pthread_atfork(lock, unlock, unlock), "pthread_atfork");
    return true;
  }();
  (void)prepared;
}

bool is_installed(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == &on_bus_error;
}

void install_handler() {
  struct sigaction current;
  if (::sigaction(SIGBUS, nullptr, &current) != 0 || is_installed(current)) return;
  const std::lock_guard lock(install_mutex);
  if (::sigaction(SIGBUS, nullptr, &current) != 0 || is_installed(current)) return;
  previous = current;
  is_passed_on = false;
  struct sigaction ours = {};
  ours.sa_sigaction = &on_bus_error;
  sigemptyset(&ours.sa_mask);
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  ::sigaction(SIGBUS, &ours, nullptr);
}

}  // namespace

MapGuard::MapGuard() {
  prepare_once();
  outer_ = static_cast<MapGuard*>(pthread_getspecific(guard_key));
  require_success(pthread_setspecific(guard_key, this), "a guard of mapped files");
  install_handler();
}

MapGuard::~MapGuard() { pthread_setspecific(guard_key, outer_); }

void MapGuard::watch(std::span<MappedBytes* const> maps) {
  // The handler runs between two instructions of this thread, so only the compiler must keep their order.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  watched_ = maps;
  std::atomic_signal_fence(std::memory_order_seq_cst);
}

bool MapGuard::replace_pages(const void* address) const {
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  for (MappedBytes* map : watched_) {
    const auto begin = reinterpret_cast<std::uintptr_t>(map->bytes.data()), end = begin + map->bytes.size();
    if (at < begin || at >= end) continue;
    map->lost = true;  // Set before the zeros appear, which other threads read without a signal.
    const std::uintptr_t first = at / page_size * page_size;
    return ::mmap(reinterpret_cast<void*>(first), end - first, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                  0) != MAP_FAILED;
  }
  return false;
}

}  // namespace pycooldown
