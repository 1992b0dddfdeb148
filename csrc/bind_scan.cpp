#include "bind_scan.h"

#include "arguments.h"
#include "scan.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace maskpipe {
namespace {

static_assert(sizeof(bool) == 1);

Marks marks(const py::object& argument, const char* name) {
  const std::span<const bool> values = view<bool>(argument, name);
  return {reinterpret_cast<const std::uint8_t*>(values.data()), values.size()};
}

py::array to_marks(std::vector<std::uint8_t>&& values) {
  return to_numpy(std::move(values)).attr("view")(py::dtype::of<bool>());
}

}  // namespace

void bind_scan(py::module_& m) {
  const auto places = [](const py::object& argument, const char* name) { return view<std::int64_t>(argument, name); };
  m.def(
      "count_marked",
      [=](const py::object& marked, const py::object& starts, const py::object& ends) {
        const auto a = marks(marked, "marked");
        const auto b = places(starts, "starts"), c = places(ends, "ends");
        return to_numpy(without_gil([&] { return count_marked(a, b, c); }));
      },
      "marked"_a, "starts"_a, "ends"_a);
  m.def(
      "count_values",
      [=](const py::object& values, const py::object& marked) {
        const auto a = view<std::uint8_t>(values, "values");
        const auto b = marks(marked, "marked");
        const auto counts = without_gil([&] { return count_values(a, b); });
        return to_numpy(std::vector<std::int64_t>(counts.begin(), counts.end()));
      },
      "values"_a, "marked"_a);
  m.def(
      "listed",
      [=](const py::object& ids, const py::object& table) {
        const auto a = view<std::int32_t>(ids, "ids");
        const auto b = marks(table, "table");
        return to_marks(without_gil([&] { return listed(a, b); }));
      },
      "ids"_a, "table"_a);
  m.def(
      "marked_at_ends",
      [=](const py::object& marked, const py::object& offsets) {
        const auto a = marks(marked, "marked");
        const auto b = places(offsets, "offsets");
        return to_marks(without_gil([&] { return marked_at_ends(a, b); }));
      },
      "marked"_a, "offsets"_a);
  m.def(
      "first_marked",
      [=](const py::object& marked, const py::object& offsets) {
        const auto a = marks(marked, "marked");
        const auto b = places(offsets, "offsets");
        return to_marks(without_gil([&] { return first_marked(a, b); }));
      },
      "marked"_a, "offsets"_a);
  m.def(
      "behind_last_marked",
      [=](const py::object& marked, const py::object& starts, const py::object& ends) {
        const auto a = marks(marked, "marked");
        const auto b = places(starts, "starts"), c = places(ends, "ends");
        return to_numpy(without_gil([&] { return behind_last_marked(a, b, c); }));
      },
      "marked"_a, "starts"_a, "ends"_a);
  m.def(
      "mark_ranges",
      [=](const py::object& size, const py::object& starts, const py::object& ends) {
        const std::int64_t a = integer(size, "size");
        const auto b = places(starts, "starts"), c = places(ends, "ends");
        return to_marks(without_gil([&] { return mark_ranges(a, b, c); }));
      },
      "size"_a, "starts"_a, "ends"_a);
  const py::object starts_type = named_tuple(m, "DocumentStarts", "starts wrong");
  const auto bind_starts = [&](const char* name, const char* column, auto function) {
    m.def(
        name,
        [=](const py::object& values, const py::object& real, const py::object& alone, const py::object& offsets) {
          const auto a = places(values, column);
          const auto b = marks(real, "real"), c = marks(alone, "alone");
          const auto d = places(offsets, "offsets");
          Starts out = without_gil([&] { return function(a, b, c, d); });
          return starts_type(to_marks(std::move(out.starts)), to_numpy(std::move(out.wrong)));
        },
        py::arg(column), "real"_a, "alone"_a, "offsets"_a);
  };
  bind_starts("starts_of_positions", "positions", starts_of_positions);
  bind_starts("starts_of_numbers", "numbers", starts_of_numbers);
}

}  // namespace maskpipe
