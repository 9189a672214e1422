// Cross-entropy of rows of logits, with its gradient and sums by domain, in one read and one write of the logits.
#pragma once

#include <cstdint>

namespace pycooldown {

enum class Format { f32, bf16, f16 };

// For each row with x = logits, or softcap * tanh(logits / softcap), and t = target != ignore_index:
//   lse  = log sum_j exp x_j
//   loss = lse - (1 - label_smoothing) x_t - label_smoothing mean_j x_j
//   grad = scale * d(loss + z_loss lse^2) / d logits
// Ignored rows give 0 everywhere, and so do rows of scale 0 unless sums are wanted.
//
// If whole_lse is given, the logits are a slice of num_whole_classes classes, and whole_lse is the lse of all of them.
// Then grad is the slice's part of the gradient, target -1 is a class outside of the slice, and loss and lse are
// undefined.
struct CrossEntropy {
  std::int64_t num_rows, num_classes, num_domains;
  const void* logits;                       // of the format, num_classes contiguous elements a row
  void* grad;                               // of the format; nullptr for none; may be the logits
  std::int64_t logits_stride, grad_stride;  // elements from row to row
  Format format;
  const std::int64_t* target;
  const float* scale;
  const std::int64_t* domain_ids;  // nullptr: every row is of domain 0
  std::int64_t ignore_index;
  double label_smoothing, z_loss, softcap;  // 0: without
  const float* whole_lse;                   // nullptr: the logits are those of all classes
  std::int64_t num_whole_classes;
  float* loss;
  float* lse;
  // By domain, unscaled, over the rows that are not ignored; all three or none.
  double* loss_sum;
  std::int64_t* token_count;
  std::int64_t* correct;  // rows whose x_t is the largest, ties included
};

// Runs a job on up to num_threads threads; the result does not depend on their number. Throws std::out_of_range for a
// target or domain out of range, before anything is written.
void cross_entropy(const CrossEntropy& job, int num_threads);

}  // namespace pycooldown
