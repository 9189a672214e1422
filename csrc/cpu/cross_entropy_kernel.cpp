// A first sweep over a row of logits computes its log-sum-exp. It keeps the exponentials, relative to a running
// reference, in a scratch row that stays in cache. A second sweep scales them into the gradient and writes it past the
// caches. The second sweep of a row alternates with the first sweep of the next row, every few elements, so that memory
// is read and written all the time, while arithmetic goes on.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cross_entropy_rows.h"
#include "cross_entropy_scratch.h"
#include "simd.h"

namespace pycooldown::PYCOOLDOWN_ISA {

namespace {

constexpr int kUnroll = 4;
constexpr std::int64_t kStep = kUnroll * kWidth;
constexpr std::int64_t kAhead = 8192;  // bytes to prefetch ahead of a sweep
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// A block keeps the reference of the block before it, unless its largest logit exceeds that by more than this: the
// relative error of exp(x - reference) grows with the distance.
constexpr float kMaxExcess = 2.0f;

struct BlockSums {
  float largest, exponentials, logits;
};

template <class T>
float largest(const T* x, std::int64_t n) {
  Vec m[kUnroll];
  std::fill(m, m + kUnroll, splat(-kInfinity));
  std::int64_t j = 0;
  for (; j + kStep <= n; j += kStep) {
    for (int k = 0; k < kUnroll; ++k) m[k] = max(m[k], load(x + j + k * kWidth));
  }
  for (; j + kWidth <= n; j += kWidth) m[0] = max(m[0], load(x + j));
  if (j < n) m[0] = max(m[0], load_first(x + j, n - j, -kInfinity));
  return reduce_max(max(max(m[0], m[1]), max(m[2], m[3])));
}

// A row whose exponentials are known and whose gradient must still be written. The gradient is
// exponential[j] * factor + shift, times 1 - (capped[j] / softcap)^2 if there is a cap.
template <class T>
struct Pending {
  T* grad = nullptr;
  const Row* row = nullptr;
  std::int64_t num_classes = 0, head = 0;
  double scale = 0, last_reference = 0, log_sum = 0;
  float shift = 0, softcap = 0;
  bool streamed = false;

  std::int64_t written = 0, block_end = 0;
  float reference = std::numeric_limits<float>::quiet_NaN(), factor = 0;  // those of the block that ends at block_end

  // Writes the next elements.
  PYCOOLDOWN_INLINE void step() {
    if (block_end - written < kStep) return finish_block();
    Vec g[kUnroll];
    for (int k = 0; k < kUnroll; ++k) g[k] = gradient(written + k * kWidth);
    for (int k = 0; k < kUnroll; k += 2) {
      T* to = grad + written + k * kWidth;
      if (streamed) {
        stream(to, g[k], g[k + 1]);
      } else {
        store(to, g[k]);
        store(to + kWidth, g[k + 1]);
      }
    }
    written += kStep;
  }

  void finish() {
    while (written < num_classes) step();
  }

 private:
  PYCOOLDOWN_INLINE Vec gradient(std::int64_t j) const {
    const Vec g = fma(load(row->exponential + j), splat(factor), splat(shift));
    if (softcap == 0) return g;
    const Vec u = load(row->capped + j) * splat(1.0f / softcap);
    return g * (splat(1.0f) - u * u);
  }

  // Writes up to the end of the block and opens the next one. In a row's first block, it then writes the elements
  // before the first full cache line.
  __attribute__((noinline)) void finish_block() {
    write_up_to(block_end);
    if (written == num_classes) return;
    const auto block = (written - head) / kBlock;
    if (const float r = row->reference[static_cast<std::size_t>(block)]; r != reference) {
      reference = r;
      factor = static_cast<float>(scale * std::exp((r - last_reference) - log_sum));
    }
    block_end = std::min(num_classes, head + (block + 1) * kBlock);
    if (written == 0) write_up_to(std::min(num_classes, head));
  }

  void write_up_to(std::int64_t end) {
    while (written < end) {
      const std::int64_t count = std::min<std::int64_t>(end - written, kWidth);
      store_first(grad + written, count, gradient(written));
      written += count;
    }
  }
};

// Sets out[j] = exp(x[j] - reference), and returns the sums over the block.
template <bool kKeep, bool kSumLogits, class S, class T>
BlockSums exponentials(const S* x, std::int64_t n, float reference, float* out, Pending<T>& pending) {
  const Vec r = splat(reference);
  Vec m[kUnroll], e[kUnroll] = {}, s[kUnroll] = {};
  std::fill(m, m + kUnroll, splat(-kInfinity));
  const auto one = [&](std::int64_t j, int k, Vec v) {
    const Vec power = exp<sizeof(S) == 2>(v - r);
    if constexpr (kKeep) store(out + j, power);
    m[k] = max(m[k], v);
    e[k] += power;
  };
  std::int64_t j = 0;
  for (; j + kStep <= n; j += kStep) {
    const char* ahead = reinterpret_cast<const char*>(x + j) + kAhead;
    for (int k = 0; k * 64 < kStep * static_cast<int>(sizeof(S)); ++k) __builtin_prefetch(ahead + k * 64, 0, 3);
    for (int k = 0; k < kUnroll; ++k) {
      const Vec v = load(x + j + k * kWidth);
      one(j + k * kWidth, k, v);
      if constexpr (kSumLogits) s[k] += v;
    }
    pending.step();
  }
  for (; j + kWidth <= n; j += kWidth) {
    const Vec v = load(x + j);
    one(j, 0, v);
    if constexpr (kSumLogits) s[0] += v;
  }
  if (j < n) {
    one(j, 0, load_first(x + j, n - j, -kInfinity));
    if constexpr (kSumLogits) s[0] += load_first(x + j, n - j, 0.0f);
  }
  return {reduce_max(max(max(m[0], m[1]), max(m[2], m[3]))), reduce_add((e[0] + e[1]) + (e[2] + e[3])),
          reduce_add((s[0] + s[1]) + (s[2] + s[3]))};
}

// The log-sum-exp is reference + log_sum. The two are kept apart, since a large reference would absorb the other.
struct RowSums {
  double reference, log_sum, logits;
  float largest;

  double lse() const { return reference + log_sum; }

  // Makes these the sums of more classes, whose log-sum-exp is `whole`.
  void rebase(double whole) {
    if (reference == -kInfinity) reference = 0;
    log_sum = whole - reference;
  }
};

// Sums a row block by block. The first block is longer by `head` elements, so that the others begin at cache lines of
// the gradient.
template <bool kKeep, bool kSumLogits, class S, class T>
RowSums sum_row(const S* x, std::int64_t num_classes, std::int64_t head, Row& row, Pending<T>& pending) {
  float* out = row.exponential;
  float reference = -kInfinity, row_largest = -kInfinity;
  double sum = 0, logits = 0;
  std::size_t index = 0;
  for (std::int64_t j = 0, end = 0; j < num_classes; j = end, ++index) {
    end = std::min(num_classes, head + static_cast<std::int64_t>(index + 1) * kBlock);
    float candidate = reference == -kInfinity ? largest(x + j, end - j) : reference;
    // If all logits of a block are -infinity, the exponentials are 0 relative to any number.
    const auto sweep = [&] {
      const float finite = candidate == -kInfinity ? 0.0f : candidate;
      return exponentials<kKeep, kSumLogits>(x + j, end - j, finite, out + j, pending);
    };
    BlockSums block = sweep();
    if (block.largest > candidate + kMaxExcess) {
      candidate = block.largest;
      block = sweep();
    }
    if (candidate != reference) {
      sum = reference == -kInfinity ? 0.0 : sum * std::exp(static_cast<double>(reference) - candidate);
      reference = candidate;
    }
    row.reference[index] = candidate;
    sum += block.exponentials;
    logits += block.logits;
    row_largest = std::max(row_largest, block.largest);
  }
  pending.finish();
  return {reference, std::log(sum), logits, row_largest};
}

template <class T>
const float* cap(const T* x, std::int64_t n, float softcap, float* out) {
  const Vec c = splat(softcap), inverse = splat(1.0f / softcap);
  std::int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) store(out + j, c * tanh(load(x + j) * inverse));
  if (j < n) store_first(out + j, n - j, c * tanh(load_first(x + j, n - j, 0.0f) * inverse));
  return out;
}

template <class T>
void rows(const CrossEntropy& job, std::int64_t begin, std::int64_t end, bool* correct) {
  thread_local Scratch scratch;
  scratch.reserve(job.num_classes, job.softcap != 0);
  Row* kept = &scratch.rows[0];
  Row* other = &scratch.rows[1];
  const double smoothing = job.label_smoothing;
  const auto num_classes = static_cast<double>(job.whole_lse ? job.num_whole_classes : job.num_classes);
  const auto softcap = static_cast<float>(job.softcap);
  std::vector<std::pair<T*, T>> at_target;  // written last, because streamed stores are not ordered with others
  Pending<T> pending;

  for (std::int64_t row = begin; row < end; ++row) {
    const T* x = static_cast<const T*>(job.logits) + row * job.logits_stride;
    T* grad = job.grad ? static_cast<T*>(job.grad) + row * job.grad_stride : nullptr;
    const std::int64_t target = job.target[row];
    const double scale = job.scale[row];
    correct[row] = false;
    job.loss[row] = job.lse[row] = 0;
    const bool ignored = target == job.ignore_index;
    const bool differentiated = grad && !ignored && scale != 0;
    if (ignored || (scale == 0 && !job.loss_sum)) {
      if (grad) std::fill_n(grad, job.num_classes, T{});
      continue;
    }

    const float* capped = softcap != 0 ? cap(x, job.num_classes, softcap, kept->capped) : nullptr;
    const bool here = target >= 0;
    const double x_target = !here ? std::nan("") : capped ? capped[target] : to_float(x[target]);
    const auto past = reinterpret_cast<std::uintptr_t>(grad) % 64;
    const auto head = static_cast<std::int64_t>(past ? (64 - past) / sizeof(T) : 0);
    const auto sum = [&](const auto* source) {
      if (!differentiated) return sum_row<false, true>(source, job.num_classes, head, *kept, pending);
      return smoothing != 0 ? sum_row<true, true>(source, job.num_classes, head, *kept, pending)
                            : sum_row<true, false>(source, job.num_classes, head, *kept, pending);
    };
    RowSums sums = capped ? sum(capped) : sum(x);
    if (job.whole_lse) sums.rebase(job.whole_lse[row]);
    const double nll = sums.log_sum + (sums.reference - x_target);
    const double uniform = sums.log_sum + (sums.reference - sums.logits / num_classes);
    const double loss = smoothing != 0 ? (1 - smoothing) * nll + smoothing * uniform : nll;
    job.loss[row] = static_cast<float>(loss);
    job.lse[row] = static_cast<float>(sums.lse());
    correct[row] = x_target >= static_cast<double>(sums.largest) && !std::isnan(loss);
    if (!differentiated) {
      if (grad) std::fill_n(grad, job.num_classes, T{});  // not earlier, because grad may be the logits
      continue;
    }

    const double z = 2 * job.z_loss * sums.lse();
    const double shift = smoothing / num_classes;
    pending = {.grad = grad,
               .row = kept,
               .num_classes = job.num_classes,
               .head = head,
               .scale = scale * (1 + z),
               .last_reference = sums.reference,
               .log_sum = sums.log_sum,
               .shift = static_cast<float>(-scale * shift),
               .softcap = softcap,
               .streamed = job.grad != job.logits};
    if (here) {
      // At the target, p - 1 is computed by expm1, which does not suffer from cancellation.
      double g = std::expm1(-nll) + smoothing - shift;
      if (z != 0) g += z * std::exp(-nll);
      if (capped) {  // in float64, because 1 - tanh^2 cancels
        const double t = std::tanh(to_float(x[target]) / job.softcap);
        g *= 1 - t * t;
      }
      at_target.emplace_back(grad + target, from_float<T>(static_cast<float>(scale * g)));
    }
    std::swap(kept, other);
  }
  pending.finish();
  stream_fence();
  for (const auto& [place, value] : at_target) *place = value;
}

}  // namespace

void cross_entropy_rows(const CrossEntropy& job, std::int64_t begin, std::int64_t end, bool* correct) {
  switch (job.format) {
    case Format::f32:
      return rows<float>(job, begin, end, correct);
    case Format::bf16:
      return rows<Bf16>(job, begin, end, correct);
    case Format::f16:
      return rows<F16>(job, begin, end, correct);
  }
}

}  // namespace pycooldown::PYCOOLDOWN_ISA
