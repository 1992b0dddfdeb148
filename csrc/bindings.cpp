// The only pybind11 file: check shapes, release the GIL, call, wrap. Meaning lives in the headers.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

namespace py = pybind11;

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "Loops over tokens and documents. See the headers in csrc/ for what each function promises.";
}
