#pragma once

#include <pybind11/pybind11.h>

namespace maskpipe {

// Documents, Alphabet, Draft and UsualRecords of the module; see usual_record.h. After bind_engine and bind_align.
void bind_records(pybind11::module_& m);

}  // namespace maskpipe
