#include "bind_records.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "chat_line.h"
#include "hash.h"
#include "usual_record.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace maskpipe {
namespace {

template <typename Value>
void append(std::vector<Value>& out, std::span<const Value> values) {
  out.insert(out.end(), values.begin(), values.end());
}

template <typename Value>
py::array_t<Value> since(const std::vector<Value>& values, std::size_t start) {
  return to_numpy(std::vector<Value>(values.begin() + static_cast<std::ptrdiff_t>(start), values.end()));
}

struct PyAlphabet {
  Alphabet alphabet;
  Windows windows;
  py::object table, strings;  // kept alive
};

struct UsualRecords {
  std::shared_ptr<ChatTemplate> by;
  py::object alphabet;  // a PyAlphabet, kept alive
  Wanted wanted;
  std::vector<std::string> columns;
  std::size_t max_messages;
  Counted counted;
};

}  // namespace

void bind_records(py::module_& m) {
  py::class_<Documents>(m, "Documents")
      .def(py::init<>())
      .def(
          "add",
          [](Documents& self, const py::object& ids, const py::object& roles, const py::object& parts,
             const py::object& flags, const py::object& messages, const std::vector<std::int32_t>& turns,
             const std::vector<std::uint8_t>& verdicts) {
            const auto tokens = view<std::int32_t>(ids, "ids");
            const auto role_ids = view<std::uint8_t>(roles, "roles"), part_ids = view<std::uint8_t>(parts, "parts"),
                       bits = view<std::uint8_t>(flags, "flags");
            const auto message_ids = view<std::int32_t>(messages, "messages");
            const std::size_t size = tokens.size();
            if (role_ids.size() != size || part_ids.size() != size || bits.size() != size ||
                message_ids.size() != size || turns.size() != verdicts.size()) {
              throw py::value_error("ids, roles, parts, flags and messages must have one length, and so must turns");
            }
            append(self.ids, tokens);
            append(self.roles, role_ids);
            append(self.parts, part_ids);
            append(self.flags, bits);
            append(self.messages, message_ids);
            self.offsets.push_back(static_cast<std::int64_t>(self.ids.size()));
            self.verdict_messages.insert(self.verdict_messages.end(), turns.begin(), turns.end());
            self.verdicts.insert(self.verdicts.end(), verdicts.begin(), verdicts.end());
            self.verdict_offsets.push_back(static_cast<std::int64_t>(self.verdicts.size()));
          },
          "ids"_a, "roles"_a, "parts"_a, "flags"_a, "messages"_a, "turns"_a, "verdicts"_a)
      .def("last",
           [](const Documents& self) {
             if (self.offsets.size() < 2) throw py::index_error("there is no document");
             const auto start = static_cast<std::size_t>(self.offsets[self.offsets.size() - 2]);
             return py::make_tuple(since(self.ids, start), since(self.roles, start), since(self.parts, start),
                                   since(self.flags, start), since(self.messages, start));
           })
      .def("take", [](Documents& self) {
        Documents out = std::exchange(self, Documents());
        return py::make_tuple(to_numpy(std::move(out.ids)), to_numpy(std::move(out.roles)),
                              to_numpy(std::move(out.parts)), to_numpy(std::move(out.flags)),
                              to_numpy(std::move(out.messages)), to_numpy(std::move(out.offsets)),
                              to_numpy(std::move(out.verdict_messages)), to_numpy(std::move(out.verdicts)),
                              to_numpy(std::move(out.verdict_offsets)));
      });
  py::class_<PyAlphabet>(m, "Alphabet")
      .def(py::init([](const py::object& table, const py::object& strings, const py::object& string_ids,
                       const py::object& string_kinds, bool prefix_space, const py::bytes& space_mark) {
             auto out = std::make_unique<PyAlphabet>();
             const auto ids = view<std::int32_t>(string_ids, "string_ids");
             const auto kinds = view<std::uint8_t>(string_kinds, "string_kinds");
             out->table = table;
             out->strings = strings;
             out->alphabet = {table.cast<const TokenTable*>(),
                              strings.cast<const Strings*>(),
                              {ids.begin(), ids.end()},
                              {kinds.begin(), kinds.end()},
                              prefix_space,
                              space_mark,
                              &out->windows};
             return out;
           }),
           "table"_a, "strings"_a, "string_ids"_a, "string_kinds"_a, "prefix_space"_a, "space_mark"_a)
      .def(
          "add_window",
          [](PyAlphabet& self, const py::bytes& text, bool after_token, const py::object& ids) {
            const auto tokens = view<std::int32_t>(ids, "ids");
            auto& known = after_token ? self.windows.after_token : self.windows.at_start;
            known[text] = {tokens.begin(), tokens.end()};
          },
          "text"_a, "after_token"_a, "ids"_a)
      .def("forget_windows", [](PyAlphabet& self) { self.windows = {}; });
  py::class_<Draft>(m, "Draft")
      .def("text", [](const Draft& self) { return py::str(self.text); })
      .def("turns", [](const Draft& self) { return self.turns; })
      .def("size", [](const Draft& self) { return self.text.size(); })
      .def(
          "is_chosen",
          [](const Draft& self, std::uint64_t one_in) {
            return xxh3(self.text.data(), self.text.size()) % one_in == 0;
          },
          "one_in"_a);
  py::class_<UsualRecords>(m, "UsualRecords")
      .def(py::init([](const std::shared_ptr<ChatTemplate>& program, const py::object& alphabet, const LossRule& rule,
                       const std::optional<std::vector<std::int32_t>>& turns, bool trains_others, bool keeps_control,
                       std::int64_t sequence_length, std::size_t max_text, std::uint64_t one_in,
                       std::vector<std::string> columns, std::size_t max_messages) {
             alphabet.cast<const PyAlphabet&>();
             std::sort(columns.begin(), columns.end());
             return UsualRecords{
                 program,
                 alphabet,
                 {{rule, turns, false}, trains_others, keeps_control, sequence_length, max_text, one_in},
                 std::move(columns),
                 max_messages,
                 {}};
           }),
           "program"_a, "alphabet"_a, "rule"_a, "turns"_a, "trains_others"_a, "keeps_control"_a, "sequence_length"_a,
           "max_text"_a, "one_in"_a, "columns"_a, "max_messages"_a)
      .def(
          "read",
          [](const UsualRecords& self, const py::bytes& line, const TurnHabits& habits) -> std::optional<Draft> {
            const auto input = read_chat_line(line, self.columns, self.max_messages);
            if (!input) return {};
            return draft(*self.by, *input, habits, self.wanted);
          },
          "line"_a, "habits"_a)
      .def(
          "draft",
          [](const UsualRecords& self, const std::shared_ptr<Input>& input, const TurnHabits& habits) {
            return draft(*self.by, *input, habits, self.wanted);
          },
          "input"_a, "habits"_a)
      .def(
          "settle",
          [](UsualRecords& self, const Draft& draft, const py::object& ids, Documents& documents) {
            const auto tokens = view<std::int32_t>(ids, "ids");
            const auto& alphabet = self.alphabet.cast<const PyAlphabet&>().alphabet;
            return settle(draft, tokens, alphabet, self.wanted, documents, self.counted);
          },
          "draft"_a, "ids"_a, "documents"_a)
      .def("counted", [](UsualRecords& self) {
        const Counted all = std::exchange(self.counted, {});
        return py::make_tuple(all.tokens, all.loss, all.straddling, all.straddling_parts, all.marks, all.turns);
      });
}

}  // namespace maskpipe
