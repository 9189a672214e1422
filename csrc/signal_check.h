// Long loops of the core can be interrupted.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace pycooldown {

namespace py = pybind11;

// Lets a long loop that does not hold the GIL be interrupted: runs Python's signal handlers now and then, and throws
// what they raise.
class SignalCheck {
 public:
  // To be called at each turn, with the work done since the last call in about nanoseconds.
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
