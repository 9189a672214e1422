// Python text objects, for hot paths that use CPython directly.
#pragma once

#include <pybind11/pybind11.h>

#include <string_view>

namespace pycooldown {

namespace py = pybind11;

inline py::object steal(PyObject* object) {
  if (!object) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(object);
}

// Names in a tar are bytes; bytes that are not UTF-8 become surrogates, as in tarfile.
inline py::object decode(std::string_view text) {
  return steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape"));
}

}  // namespace pycooldown
