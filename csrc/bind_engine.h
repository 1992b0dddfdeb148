#pragma once

#include <pybind11/pybind11.h>

namespace maskpipe {

// TemplateProgram, TemplateInput and Shown of the module; see engine.h and usual.h.
void bind_engine(pybind11::module_& m);

}  // namespace maskpipe
