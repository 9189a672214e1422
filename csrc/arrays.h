// NumPy arrays as arguments and results of the algorithms.
#pragma once

#include <pybind11/numpy.h>

#include <span>

namespace pycooldown {

namespace py = pybind11;

// An argument that is converted to a contiguous array of type T, as NumPy's astype would.
template <class T>
using Input = py::array_t<T, py::array::c_style | py::array::forcecast>;

template <class T>
std::span<const T> view(const Input<T>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

template <class T>
std::span<T> view(py::array_t<T>& array) {
  return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

template <class T>
py::array_t<T> to_array(std::span<const T> values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

}  // namespace pycooldown
