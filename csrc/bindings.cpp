// The compiled module, and the bindings of the losses. Only this file and *_bindings.cpp use Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "arrays.h"
#include "dispatch.h"
#include "integers.h"
#include "pycooldown/cross_entropy.h"

namespace py = pybind11;
using namespace py::literals;

namespace pycooldown {

void register_cache(py::module_& m);       // in cache_bindings.cpp
void register_random(py::module_& m);      // in random_bindings.cpp
void register_sampling(py::module_& m);    // in sampling_bindings.cpp
void register_tar_index(py::module_& m);   // in tar_index_bindings.cpp
void register_tar_reader(py::module_& m);  // in tar_bindings.cpp
void register_tokens(py::module_& m);      // in token_bindings.cpp

namespace {

// Returns the distance of rows of contiguous elements, in elements.
std::int64_t row_stride(const py::array& rows, const char* name) {
  if (rows.ndim() != 2 || (rows.shape(1) > 1 && rows.size() > 0 && rows.strides(1) != rows.itemsize())) {
    throw std::invalid_argument(std::string(name) + " must have two dimensions, the last of them contiguous");
  }
  return rows.strides(0) / rows.itemsize();
}

template <class T>
void check_length(const Input<T>& array, std::int64_t length, const char* name) {
  if (array.ndim() == 1 && array.size() == length) return;
  throw std::invalid_argument(std::string(name) + " must have one value for each of the " + std::to_string(length) +
                              " rows");
}

Format format_of(const py::array& logits) {
  if (logits.dtype().is(py::dtype::of<float>())) return Format::f32;
  if (logits.dtype().is(py::dtype::of<std::uint16_t>())) return Format::bf16;
  if (logits.dtype().kind() == 'f' && logits.itemsize() == 2) return Format::f16;
  throw std::invalid_argument("logits must be float32, float16, or uint16 for the bits of bfloat16");
}

py::tuple cross_entropy_of_arrays(const py::array& logits, std::optional<py::array> grad,
                                  const Input<std::int64_t>& target, const Input<float>& scale,
                                  const std::optional<Input<std::int64_t>>& domain_ids,
                                  Int64<"num_domains"> num_domains, bool want_stats, Int64<"ignore_index"> ignore_index,
                                  double label_smoothing, double z_loss, double softcap,
                                  Integer<"num_threads", int> num_threads, const std::optional<Input<float>>& whole_lse,
                                  Int64<"num_whole_classes"> num_whole_classes) {
  CrossEntropy job{};
  job.logits_stride = row_stride(logits, "logits");
  job.num_rows = logits.shape(0);
  job.num_classes = logits.shape(1);
  job.num_domains = num_domains;
  job.logits = logits.data();
  job.format = format_of(logits);
  if (grad) {
    job.grad_stride = row_stride(*grad, "grad");
    if (grad->shape(0) != job.num_rows || grad->shape(1) != job.num_classes || !grad->dtype().is(logits.dtype())) {
      throw std::invalid_argument("grad must have the shape and dtype of logits");
    }
    job.grad = grad->mutable_data();
  }
  check_length(target, job.num_rows, "target");
  check_length(scale, job.num_rows, "scale");
  job.target = target.data();
  job.scale = scale.data();
  if (domain_ids) {
    check_length(*domain_ids, job.num_rows, "domain_ids");
    job.domain_ids = domain_ids->data();
  }
  job.ignore_index = ignore_index;
  job.label_smoothing = label_smoothing;
  job.z_loss = z_loss;
  job.softcap = softcap;
  if (whole_lse) {
    check_length(*whole_lse, job.num_rows, "whole_lse");
    job.whole_lse = whole_lse->data();
    job.num_whole_classes = num_whole_classes;
  }
  py::array_t<float> loss(job.num_rows), lse(job.num_rows);
  job.loss = loss.mutable_data();
  job.lse = lse.mutable_data();
  const std::int64_t sums = want_stats ? num_domains.value : 0;
  py::array_t<double> loss_sum(sums);
  py::array_t<std::int64_t> token_count(sums), correct(sums);
  if (want_stats) {
    job.loss_sum = loss_sum.mutable_data();
    job.token_count = token_count.mutable_data();
    job.correct = correct.mutable_data();
  }
  {
    py::gil_scoped_release release;
    cross_entropy(job, num_threads);
  }
  return py::make_tuple(loss, lse, loss_sum, token_count, correct);
}

void register_losses(py::module_& m) {
  m.def("cross_entropy", &cross_entropy_of_arrays, "logits"_a, "grad"_a, "target"_a, "scale"_a, "domain_ids"_a,
        "num_domains"_a, py::kw_only(), "want_stats"_a, "ignore_index"_a, "label_smoothing"_a, "z_loss"_a, "softcap"_a,
        "num_threads"_a, "whole_lse"_a = py::none(), "num_whole_classes"_a = 0,
        "Write the gradient of rows of logits; return (loss, lse, loss_sum, token_count, correct).");
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of pycooldown; private, use the public modules.";
  m.def("isa", [] { return isa_name(active_isa()); }, "Return the instruction set in use: baseline, avx2 or avx512.");
  register_cache(m);
  register_random(m);
  register_sampling(m);
  register_tar_index(m);
  register_tar_reader(m);
  register_tokens(m);
  register_losses(m);
}

}  // namespace pycooldown
