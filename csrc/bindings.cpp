// The only file that knows Python: each function registers one algorithm.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "dispatch.h"

namespace py = pybind11;

namespace pycooldown {

PYBIND11_MODULE(_core, m) {
  m.doc() = "The compiled core of pycooldown; private, use the public modules.";
  m.def("isa", [] { return isa_name(active_isa()); });
}

}  // namespace pycooldown
