// Arguments and results of the Python module: numpy arrays as spans and back, integers, named tuples.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace maskpipe {

// The values of a one-dimensional, contiguous, aligned array of exactly this dtype; else TypeError or ValueError naming
// the argument. Valid as long as the array lives.
template <typename Value>
std::span<const Value> view(const pybind11::object& argument, const std::string& name) {
  const auto dtype = [] { return std::string(pybind11::str(pybind11::dtype::of<Value>())); };
  if (!pybind11::isinstance<pybind11::array>(argument)) {
    throw pybind11::type_error(name + " must be a numpy array of " + dtype() + ", got " +
                               Py_TYPE(argument.ptr())->tp_name);
  }
  const auto array = pybind11::reinterpret_borrow<pybind11::array>(argument);
  if (!pybind11::isinstance<pybind11::array_t<Value>>(array)) {
    throw pybind11::type_error(name + " must be a numpy array of " + dtype() + ", got dtype " +
                               std::string(pybind11::str(array.dtype())));
  }
  if (array.ndim() != 1) {
    throw pybind11::value_error(name + " must have one dimension, got " + std::to_string(array.ndim()));
  }
  const bool aligned = reinterpret_cast<std::uintptr_t>(array.data()) % alignof(Value) == 0;
  if (!(array.flags() & pybind11::array::c_style) || !aligned) {
    throw pybind11::value_error(name +
                                " must be contiguous and aligned in memory; pass numpy.ascontiguousarray of a copy");
  }
  return {static_cast<const Value*>(array.data()), static_cast<std::size_t>(array.size())};
}

template <typename Value>
std::vector<Value> owned(std::span<const Value> values) {
  return {values.begin(), values.end()};
}

// The same as view, for values that the core writes; nullptr for None.
template <typename Value>
Value* writable(const pybind11::object& argument, const std::string& name, std::size_t size) {
  if (argument.is_none()) return nullptr;
  const std::span<const Value> values = view<Value>(argument, name);
  if (!pybind11::reinterpret_borrow<pybind11::array>(argument).writeable())
    throw pybind11::value_error(name + " is read-only");
  if (values.size() != size) {
    throw pybind11::value_error(name + " must have " + std::to_string(size) + " values, got " +
                                std::to_string(values.size()));
  }
  return const_cast<Value*>(values.data());
}

inline std::int64_t integer(const pybind11::object& argument, const std::string& name) {
  const auto number = pybind11::reinterpret_steal<pybind11::object>(PyNumber_Index(argument.ptr()));
  if (!number) {
    PyErr_Clear();
    throw pybind11::type_error(name + " must be an integer, got " + Py_TYPE(argument.ptr())->tp_name);
  }
  int overflow = 0;
  const long long value = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  if (overflow != 0)
    throw pybind11::value_error(name + " does not fit 64 bits, got " + std::string(pybind11::str(number)));
  if (value == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
  return value;
}

inline std::int32_t integer32(const pybind11::object& argument, const std::string& name) {
  const std::int64_t value = integer(argument, name);
  if (value != static_cast<std::int32_t>(value)) {
    throw pybind11::value_error(name + " does not fit 32 bits, got " + std::to_string(value));
  }
  return static_cast<std::int32_t>(value);
}

// A numpy array that owns the vector: nothing is copied.
template <typename Value>
pybind11::array_t<Value> to_numpy(std::vector<Value>&& values) {
  auto owned = std::make_unique<std::vector<Value>>(std::move(values));
  const Value* data = owned->data();
  const auto size = static_cast<pybind11::ssize_t>(owned->size());
  pybind11::capsule owner(owned.get(), [](void* vector) { delete static_cast<std::vector<Value>*>(vector); });
  owned.release();
  return pybind11::array_t<Value>(size, data, owner);
}

template <typename Call>
auto without_gil(Call call) {
  pybind11::gil_scoped_release nogil;
  return call();
}

inline pybind11::object named_tuple(pybind11::module_& m, const char* name, const char* fields) {
  pybind11::object type = pybind11::module_::import("collections")
                              .attr("namedtuple")(name, fields, pybind11::arg("module") = "maskpipe._core");
  m.attr(name) = type;
  return type;
}

}  // namespace maskpipe
