#pragma once

#include <pybind11/pybind11.h>

#include "policy.h"

namespace maskpipe {

// (rule, turns or None, accept_rewritten)
Policy to_policy(const pybind11::object& policy);

// The functions of order.h, Pool, Reader and Stream, and what is known of a batch that was delivered.
void bind_loader(pybind11::module_& m);

}  // namespace maskpipe
