#pragma once

#include <pybind11/pybind11.h>

namespace maskpipe {

// The functions of scan.h; marks are numpy arrays of bool.
void bind_scan(pybind11::module_& m);

}  // namespace maskpipe
