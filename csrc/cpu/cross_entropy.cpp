// Cross-entropy of all rows. Threads share the rows and run the kernel of cross_entropy_kernel.cpp on them. The sums by
// domain are computed in a fixed order.
#include "pycooldown/cross_entropy.h"

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <string>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cross_entropy_rows.h"
#include "dispatch.h"
#include "parallel.h"

namespace pycooldown {

namespace {

void check(const char* name, const std::int64_t* values, std::int64_t bound, std::int64_t row, const char* what) {
  if (values[row] >= 0 && values[row] < bound) return;
  throw std::out_of_range(std::string(name) + " " + std::to_string(values[row]) + " at row " + std::to_string(row) +
                          " is not in [0, " + std::to_string(bound) + "), the number of " + what);
}

// A gradient is large, and mostly memory that was never written. With pages of 2 MiB instead of 4 KiB, the first writes
// cause 512 times fewer page faults.
void prefer_huge_pages([[maybe_unused]] void* begin, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__)
  constexpr std::uintptr_t kHugePage = 2 << 20;
  const auto address = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t first = (address + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t last = (address + bytes) / kHugePage * kHugePage;
  if (first < last)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // a hint: failure is harmless
#endif
}

}  // namespace

void cross_entropy(const CrossEntropy& job, int num_threads) {
  for (std::int64_t row = 0; row < job.num_rows; ++row) {
    const bool elsewhere = job.whole_lse && job.target[row] == -1;
    if (job.target[row] != job.ignore_index && !elsewhere) {
      check("target", job.target, job.num_classes, row, "classes");
    }
    if (job.domain_ids) check("domain_ids", job.domain_ids, job.num_domains, row, "domains");
  }

  if (job.grad && job.grad != job.logits && job.grad_stride == job.num_classes) {
    const std::int64_t element = job.format == Format::f32 ? 4 : 2;
    prefer_huge_pages(job.grad, static_cast<std::size_t>(job.num_rows * job.num_classes * element));
  }

  // A chunk is large enough to amortize its start and small enough to balance the load.
  const std::int64_t rows_for_balance = job.num_rows / (4 * std::int64_t{std::max(num_threads, 1)});
  const std::int64_t rows_per_chunk = std::clamp<std::int64_t>((1 << 21) / std::max<std::int64_t>(job.num_classes, 1),
                                                               1, std::max<std::int64_t>(rows_for_balance, 1));
  const std::int64_t num_chunks = (job.num_rows + rows_per_chunk - 1) / rows_per_chunk;
  const auto correct = std::make_unique<bool[]>(static_cast<std::size_t>(job.num_rows));
  const auto rows = PYCOOLDOWN_DISPATCH(cross_entropy_rows);
  parallel_for(num_chunks, num_threads, [&](std::int64_t chunk) {
    const std::int64_t begin = chunk * rows_per_chunk;
    rows(job, begin, std::min(begin + rows_per_chunk, job.num_rows), correct.get());
  });

  if (!job.loss_sum) return;
  std::fill_n(job.loss_sum, job.num_domains, 0.0);
  std::fill_n(job.token_count, job.num_domains, std::int64_t{0});
  std::fill_n(job.correct, job.num_domains, std::int64_t{0});
  for (std::int64_t row = 0; row < job.num_rows;
       ++row) {  // in the order of the rows, so that the sums are the same on any number of threads
    if (job.target[row] == job.ignore_index) continue;
    const std::int64_t domain = job.domain_ids ? job.domain_ids[row] : 0;
    job.loss_sum[domain] += job.loss[row];
    job.token_count[domain] += 1;
    job.correct[domain] += correct[static_cast<std::size_t>(row)];
  }
}

}  // namespace pycooldown
