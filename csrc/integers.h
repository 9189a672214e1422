// Integer arguments of bound functions.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <concepts>
#include <limits>
#include <string>

namespace pycooldown {

template <std::size_t size>
struct ArgumentName {
  char text[size];
  consteval ArgumentName(const char (&name)[size]) { std::copy_n(name, size, text); }
};

// An integer within the range of T. Other types are a TypeError and values out of range a ValueError. Both name the
// argument, while pybind11 only says that the arguments do not fit the function.
template <ArgumentName name, std::integral T>
struct Integer {
  T value;
  operator T() const { return value; }  // NOLINT(google-explicit-constructor)
};

template <ArgumentName name>
using UInt64 = Integer<name, std::uint64_t>;
template <ArgumentName name>
using Int64 = Integer<name, std::int64_t>;

template <class T>
std::string range_of() {
  using Limits = std::numeric_limits<T>;
  const std::string bound = "2^" + std::to_string(Limits::digits);
  return Limits::is_signed ? "[-" + bound + ", " + bound + ")" : "[0, " + bound + ")";
}

}  // namespace pycooldown

namespace pybind11::detail {

template <pycooldown::ArgumentName argument, class T>
struct type_caster<pycooldown::Integer<argument, T>> {
  using Argument = pycooldown::Integer<argument, T>;
  PYBIND11_TYPE_CASTER(Argument, const_name("int"));

  bool load(handle source, bool) {
    if (!PyIndex_Check(source.ptr())) {
      const std::string type = str(type::handle_of(source).attr("__name__"));
      throw type_error(std::string(argument.text) + " is of type " + type + "; expected an integer");
    }
    const auto integer = reinterpret_steal<object>(PyNumber_Index(source.ptr()));
    if (!integer) throw error_already_set();
    type_caster<T> number;
    if (!number.load(integer, false)) {
      const auto bits = integer.attr("bit_length")().cast<std::size_t>();
      // Python refuses to write very long integers as text.
      const auto shown = bits > 128 ? "an integer of " + std::to_string(bits) + " bits" : std::string(str(integer));
      throw value_error(std::string(argument.text) + " = " + shown + "; expected an integer in " +
                        pycooldown::range_of<T>());
    }
    value = {cast_op<T>(number)};
    return true;
  }
};

}  // namespace pybind11::detail
