// One sweep reads a row of logits, finds its log-sum-exp and keeps the exponentials, relative to a running reference,
// in a scratch row that stays in cache. A second sweep scales them into the gradient, written past the caches.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "cross_entropy_rows.h"
#include "simd.h"

namespace pycooldown::PYCOOLDOWN_ISA {

namespace {

constexpr std::int64_t kBlock = 2048;  // elements that share a reference; a block of the scratch fits the L1 cache
constexpr int kUnroll = 4;
constexpr std::int64_t kStep = kUnroll * kWidth;
constexpr float kLog2e = 1.44269504f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The exponentials of a later block stay relative to the reference of an earlier one while its largest logit exceeds
// that by at most this: the relative error of exp(x - reference) grows with the distance.
constexpr float kMaxExcess = 2.0f;

struct alignas(64) Line {
  float value[16];
};

// Grows to the longest row seen, then is reused by the thread.
struct Scratch {
  std::vector<Line> exponential, capped;
  std::vector<float> reference;

  void reserve(std::int64_t num_classes, bool with_capped) {
    const auto lines = static_cast<std::size_t>(num_classes / 16 + 2);
    if (exponential.size() < lines) exponential.resize(lines);
    if (with_capped && capped.size() < lines) capped.resize(lines);
    reference.resize(static_cast<std::size_t>((num_classes + kBlock - 1) / kBlock));
  }
};

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

// out[j] = exp(x[j] - reference), and sums over the block
template <bool kKeep, bool kSumLogits, class T>
BlockSums exponentials(const T* x, std::int64_t n, float reference, float* out) {
  const Vec r = splat(reference), log2e = splat(kLog2e);
  Vec m[kUnroll], e[kUnroll] = {}, s[kUnroll] = {};
  std::fill(m, m + kUnroll, splat(-kInfinity));
  const auto one = [&](std::int64_t j, int k, Vec v) {
    const Vec power = exp2((v - r) * log2e);
    if constexpr (kKeep) store(out + j, power);
    m[k] = max(m[k], v);
    e[k] += power;
  };
  std::int64_t j = 0;
  for (; j + kStep <= n; j += kStep) {
    for (int k = 0; k < kUnroll; ++k) {
      const Vec v = load(x + j + k * kWidth);
      one(j + k * kWidth, k, v);
      if constexpr (kSumLogits) s[k] += v;
    }
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

// The log-sum-exp is reference + log_sum, kept apart: a large reference would absorb the other.
struct RowSums {
  double reference, log_sum, logits;
  float largest;

  double lse() const { return reference + log_sum; }
};

// Calls after_block(j) after reading the block that begins at element j.
template <bool kKeep, bool kSumLogits, class T, class AfterBlock>
RowSums sum_row(const T* x, std::int64_t num_classes, Scratch& scratch, const AfterBlock& after_block) {
  float* out = scratch.exponential.data()->value;
  float reference = -kInfinity, row_largest = -kInfinity;
  double sum = 0, logits = 0;
  for (std::int64_t j = 0; j < num_classes; j += kBlock) {
    const std::int64_t n = std::min(kBlock, num_classes - j);
    float candidate = reference == -kInfinity ? largest(x + j, n) : reference;
    // A block of -infinity alone has exponentials 0 relative to any number.
    const auto sweep = [&] {
      return exponentials<kKeep, kSumLogits>(x + j, n, candidate == -kInfinity ? 0.0f : candidate, out + j);
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
    scratch.reference[static_cast<std::size_t>(j / kBlock)] = candidate;
    sum += block.exponentials;
    logits += block.logits;
    row_largest = std::max(row_largest, block.largest);
    after_block(j);
  }
  return {reference, reference == -kInfinity ? std::nan("") : std::log(sum), logits, row_largest};
}

template <class T>
PYCOOLDOWN_INLINE void prefetch(const T* p, std::int64_t n) {
  for (std::int64_t j = 0; j < n; j += 64 / static_cast<std::int64_t>(sizeof(T))) __builtin_prefetch(p + j, 0, 3);
}

// grad[j] = exponential[j] * factor + shift, times 1 - (capped[j] / softcap)^2 if there is a cap
template <bool kStream, bool kCap, class T>
void scale_block(T* grad, std::int64_t n, const float* exponential, float factor, float shift, const float* capped,
                 float softcap, const T* next) {
  const Vec f = splat(factor), s = splat(shift), c = splat(kCap ? 1.0f / softcap : 0.0f);
  const auto value = [&](Vec power, std::int64_t j) {
    Vec g = fma(power, f, s);
    if constexpr (kCap) {
      const Vec u = load(capped + j) * c;
      g = g * (splat(1.0f) - u * u);
    }
    return g;
  };
  std::int64_t j = 0;
  if constexpr (kStream) {  // up to a line boundary
    const auto past = reinterpret_cast<std::uintptr_t>(grad) % 64;
    const std::int64_t head = past ? std::min<std::int64_t>(n, (64 - past) / sizeof(T)) : 0;
    while (j < head) {
      const std::int64_t count = std::min<std::int64_t>(head - j, kWidth);
      store_first(grad + j, count, value(load(exponential + j), j));
      j += count;
    }
  }
  for (; j + kStep <= n; j += kStep) {
    prefetch(next + j, kStep);
    Vec g[kUnroll];
    for (int k = 0; k < kUnroll; ++k) g[k] = value(load(exponential + j + k * kWidth), j + k * kWidth);
    for (int k = 0; k < kUnroll; k += 2) {
      if constexpr (kStream) {
        stream(grad + j + k * kWidth, g[k], g[k + 1]);
      } else {
        store(grad + j + k * kWidth, g[k]);
        store(grad + j + (k + 1) * kWidth, g[k + 1]);
      }
    }
  }
  for (; j < n; j += kWidth)
    store_first(grad + j, std::min<std::int64_t>(n - j, kWidth), value(load(exponential + j), j));
}

template <class T>
const float* cap(const T* x, std::int64_t n, float softcap, float* out) {
  const Vec c = splat(softcap), inverse = splat(1.0f / softcap);
  std::int64_t j = 0;
  for (; j + kWidth <= n; j += kWidth) store(out + j, c * tanh(load(x + j) * inverse));
  if (j < n) store_first(out + j, n - j, c * tanh(load_first(x + j, n - j, 0.0f) * inverse));
  return out;
}

// A row whose exponentials are known and whose gradient is still to be written.
template <class T>
struct Pending {
  T* grad = nullptr;  // nullptr: none
  const Scratch* scratch = nullptr;
  std::int64_t num_classes = 0;
  double scale = 0, last_reference = 0, log_sum = 0;
  float shift = 0, softcap = 0;
  bool streamed = false;
  float reference = std::numeric_limits<float>::quiet_NaN(), factor = 0;  // of the block last written

  // Writes the block that begins at element j, and prefetches as much from `next`.
  void write_block(std::int64_t j, const T* next) {
    const float block_reference = scratch->reference[static_cast<std::size_t>(j / kBlock)];
    if (block_reference != reference) {
      reference = block_reference;
      factor = static_cast<float>(scale * std::exp((reference - last_reference) - log_sum));
    }
    const auto write = softcap != 0 ? (streamed ? scale_block<true, true, T> : scale_block<false, true, T>)
                                    : (streamed ? scale_block<true, false, T> : scale_block<false, false, T>);
    write(grad + j, std::min(kBlock, num_classes - j), scratch->exponential.data()->value + j, factor, shift,
          softcap != 0 ? scratch->capped.data()->value + j : nullptr, softcap, next);
  }
};

template <class T>
void rows(const CrossEntropy& job, std::int64_t begin, std::int64_t end, bool* correct) {
  thread_local std::array<Scratch, 2> scratches;
  for (Scratch& scratch : scratches) scratch.reserve(job.num_classes, job.softcap != 0);
  Scratch* scratch = &scratches[0];
  Scratch* other = &scratches[1];
  const double smoothing = job.label_smoothing, num_classes = static_cast<double>(job.num_classes);
  const auto softcap = static_cast<float>(job.softcap);
  std::vector<std::pair<T*, T>> at_target;  // written last, as streamed stores are not ordered with others
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

    const float* capped = softcap != 0 ? cap(x, job.num_classes, softcap, scratch->capped.data()->value) : nullptr;
    const double x_target = capped ? capped[target] : to_float(x[target]);
    // The gradient of the row before is written between the blocks of this one: memory is read and written at once.
    const auto after_block = [&](std::int64_t j) {
      if (pending.grad) pending.write_block(j, x + std::min(j + kBlock, job.num_classes));
    };
    const auto sum = [&](const auto* source) {
      if (!differentiated) return sum_row<false, true>(source, job.num_classes, *scratch, after_block);
      return smoothing != 0 ? sum_row<true, true>(source, job.num_classes, *scratch, after_block)
                            : sum_row<true, false>(source, job.num_classes, *scratch, after_block);
    };
    const RowSums sums = capped ? sum(capped) : sum(x);
    pending.grad = nullptr;
    const double nll = sums.log_sum + (sums.reference - x_target);
    const double uniform = sums.log_sum + (sums.reference - sums.logits / num_classes);
    const double loss = smoothing != 0 ? (1 - smoothing) * nll + smoothing * uniform : nll;
    job.loss[row] = static_cast<float>(loss);
    job.lse[row] = static_cast<float>(sums.lse());
    correct[row] = x_target >= static_cast<double>(sums.largest) && !std::isnan(loss);
    if (!differentiated) {
      if (grad) std::fill_n(grad, job.num_classes, T{});  // now: these may be the logits
      continue;
    }

    const double z = 2 * job.z_loss * sums.lse();
    const double shift = smoothing / num_classes;
    pending = {.grad = grad,
               .scratch = scratch,
               .num_classes = job.num_classes,
               .scale = scale * (1 + z),
               .last_reference = sums.reference,
               .log_sum = sums.log_sum,
               .shift = static_cast<float>(-scale * shift),
               .softcap = softcap,
               .streamed = job.grad != job.logits};
    // At the target p - 1 as expm1, which does not cancel.
    double g = std::expm1(-nll) + smoothing - shift;
    if (z != 0) g += z * std::exp(-nll);
    if (capped) {  // in float64, as 1 - tanh^2 cancels
      const double t = std::tanh(to_float(x[target]) / job.softcap);
      g *= 1 - t * t;
    }
    at_target.emplace_back(grad + target, from_float<T>(static_cast<float>(scale * g)));
    std::swap(scratch, other);
  }
  for (std::int64_t j = 0; pending.grad && j < job.num_classes; j += kBlock) pending.write_block(j, pending.grad + j);
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
