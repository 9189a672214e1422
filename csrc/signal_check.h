// Makes long loops of the core interruptible.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace pycooldown {

namespace py = pybind11;

// Makes a long loop that does not hold the GIL interruptible: runs Python's signal handlers from time to time, and
// throws their exceptions.
class SignalCheck {
 public:
  // Call this in each iteration, with the approximate work since the last call in nanoseconds.
  void operator()(std::uint64_t work) {
    done_ += work;
    if (done_ < 20'000'000) return;
    done_ = 0;
    py::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }

 private:
  std::uint64_t done_ = 0;
};

}  // namespace pycooldown
