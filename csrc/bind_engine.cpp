#include "bind_engine.h"

#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "facts.h"
#include "spans.h"
#include "usual.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace maskpipe {
namespace {

constexpr int max_depth = 250;
constexpr std::size_t max_keys = 256;  // looked up one by one

std::u32string characters(PyObject* text) {
  const Py_ssize_t size = PyUnicode_GET_LENGTH(text);
  std::u32string out(static_cast<std::size_t>(size), U'\0');
  const void* data = PyUnicode_DATA(text);
  const auto copy = [&](const auto* from) { std::copy(from, from + size, out.begin()); };
  switch (PyUnicode_KIND(text)) {
    case PyUnicode_1BYTE_KIND:
      copy(static_cast<const Py_UCS1*>(data));
      break;
    case PyUnicode_2BYTE_KIND:
      copy(static_cast<const Py_UCS2*>(data));
      break;
    default:
      copy(static_cast<const Py_UCS4*>(data));
  }
  return out;
}

py::object to_python(std::u32string_view text) {
  PyObject* out = PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, text.data(), static_cast<Py_ssize_t>(text.size()));
  if (out == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(out);
}

bool is(PyObject* text, const char* ascii) { return PyUnicode_CompareWithASCIIString(text, ascii) == 0; }

bool is_reasoning(PyObject* key) { return is(key, "reasoning_content") || is(key, "thinking") || is(key, "reasoning"); }

bool is_standard(PyObject* key) {
  static constexpr std::array<const char*, 10> names = {"role", "content", "name",     "tool_calls", "tool_call_id",
                                                        "id",   "type",    "function", "arguments",  "text"};
  for (const char* name : names) {
    if (is(key, name)) return true;
  }
  return is_reasoning(key);
}

constexpr std::int64_t role_context = 5, role_other = 6, part_content = 1, part_tool_schema = 4;

std::int64_t role_of(PyObject* name) {
  if (name == nullptr || !PyUnicode_Check(name)) return role_other;
  const std::int64_t role = role_named(characters(name));
  return role < 0 ? role_other : role;
}

// render.py's _Wrapper: the same leaves in the same order.
class Wrapper {
 public:
  explicit Wrapper(Input& out) : out_(out) {}

  Value message(PyObject* message, std::int64_t index, std::int64_t role) {
    Dict* dict = new Dict;
    const Value out = Value::of(Kind::dict, dict);
    dict->message = static_cast<std::int32_t>(index);
    PyObject *key = nullptr, *value = nullptr;
    Py_ssize_t at = 0;
    check_size(message);
    while (PyDict_Next(message, &at, &key, &value)) {
      if (!is_text(key)) continue;
      Value name;
      if (is(key, "content") && PyUnicode_CheckExact(value)) {
        name = literal(key);
        dict->entries.emplace_back(name, scalar(value, index, role, part_content));
      } else if (is(key, "role") && role != role_other) {
        name = literal(key);
        dict->entries.emplace_back(name, scalar(value, index, role, part::scaffold));
      } else if (is_reasoning(key)) {
        name = literal(key);
        dict->entries.emplace_back(name, data(value, index, role, part::reasoning, 0));
      } else if (is(key, "tool_calls") || is(key, "function_call")) {
        name = literal(key);
        dict->entries.emplace_back(name, data(value, index, role, part::tool_call, 0));
      } else {
        name = is_standard(key) ? literal(key) : scalar(key, index, role, part_content);
        dict->entries.emplace_back(name, data(value, index, role, part_content, 0));
      }
    }
    alias_reasoning(*dict);
    return out;
  }

  Value data(PyObject* value, std::int64_t message, std::int64_t role, std::int64_t part, int depth) {
    if (depth > max_depth) {
      out_.foreign = true;
      return {};
    }
    if (PyUnicode_Check(value)) return scalar(value, message, role, part);
    if (PyDict_CheckExact(value)) {
      Dict* dict = new Dict;
      const Value out = Value::of(Kind::dict, dict);
      check_size(value);
      PyObject *key = nullptr, *entry = nullptr;
      Py_ssize_t at = 0;
      while (PyDict_Next(value, &at, &key, &entry)) {
        if (!is_text(key)) continue;
        const bool known = part != part::tool_call && is_standard(key);
        const Value name = known ? literal(key) : scalar(key, message, role, part);
        dict->entries.emplace_back(name, data(entry, message, role, part, depth + 1));
      }
      return out;
    }
    if (PyList_CheckExact(value) || PyTuple_CheckExact(value)) {
      List* list = new List;
      const Value out = Value::of(Kind::list, list);
      const bool is_list = PyList_CheckExact(value);
      const Py_ssize_t size = is_list ? PyList_GET_SIZE(value) : PyTuple_GET_SIZE(value);
      for (Py_ssize_t k = 0; k < size; ++k) {
        PyObject* entry = is_list ? PyList_GET_ITEM(value, k) : PyTuple_GET_ITEM(value, k);
        list->entries.push_back(data(entry, message, role, part, depth + 1));
      }
      return out;
    }
    return scalar(value, message, role, part);
  }

 private:
  bool is_text(PyObject* key) {
    if (PyUnicode_CheckExact(key)) return true;
    out_.foreign = true;
    return false;
  }

  void check_size(PyObject* dict) {
    if (static_cast<std::size_t>(PyDict_GET_SIZE(dict)) > max_keys) out_.foreign = true;
  }

  // Names of fields: the same few again and again, so they are made once.
  Value literal(PyObject* key) {
    thread_local std::vector<std::pair<std::u32string, Value>> known;
    const std::u32string name = characters(key);
    for (const auto& [text, value] : known) {
      if (text == name) return value;
    }
    Value value = literal_text(name);
    if (known.size() < 64) known.emplace_back(name, value);
    return value;
  }

  Value scalar(PyObject* value, std::int64_t message, std::int64_t role, std::int64_t part) {
    if (PyUnicode_Check(value)) {
      std::u32string text = characters(value);
      if (text.empty()) return literal_text({});
      const std::int64_t leaf = add(message, role, part);
      Value out = tracked_text(std::move(text), leaf);
      out_.texts.back() = out;
      if (part == part_content) out_.leaves.back()[3] = end_of_inline_reasoning(role, out.as_text().chars);
      return out;
    }
    if (value == Py_None) return Value::none();
    if (PyBool_Check(value)) {
      Value out = Value::boolean(value == Py_True);
      out.leaf = static_cast<std::int32_t>(add(message, role, part));
      return out;
    }
    if (PyLong_CheckExact(value)) {
      const std::int64_t leaf = add(message, role, part);
      int overflow = 0;
      const long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
      Value out = overflow != 0 ? Value::of(Kind::opaque, nullptr) : Value::integer(number);
      out.leaf = static_cast<std::int32_t>(leaf);
      return out;
    }
    if (PyFloat_CheckExact(value)) {
      add(message, role, part);
      return Value::of(Kind::opaque, nullptr);
    }
    out_.foreign = true;
    return Value::of(Kind::opaque, nullptr);
  }

  std::int64_t add(std::int64_t message, std::int64_t role, std::int64_t part) {
    out_.leaves.push_back({role, part, message, 0});
    out_.texts.push_back(Value::none());
    return static_cast<std::int64_t>(out_.leaves.size()) - 1;
  }

  // render.py's _alias_reasoning
  void alias_reasoning(Dict& dict) {
    const Value* reasoning = nullptr;
    for (const std::u32string_view name : {U"reasoning_content", U"thinking", U"reasoning"}) {
      const Value* found = dict.find(name);
      if (reasoning == nullptr && found != nullptr && found->kind != Kind::none) reasoning = found;
    }
    if (reasoning == nullptr) return;
    const Value value = *reasoning;
    thread_local const Value thinking = literal_text(U"thinking"), content = literal_text(U"reasoning_content");
    const Value* own = dict.find(U"thinking");
    std::vector<std::pair<Value, Value>> entries = {{thinking, own != nullptr ? *own : value}};
    bool has_content = false;
    for (auto& [key, entry] : dict.entries) {
      if (key.as_text().chars == U"thinking") continue;
      const bool is_content = key.as_text().chars == U"reasoning_content";
      has_content = has_content || is_content;
      entries.emplace_back(key, is_content ? value : entry);
    }
    if (!has_content) entries.emplace_back(content, value);
    dict.entries = std::move(entries);
  }

  Input& out_;
};

// Messages, tools, documents and kwargs as they are given to a template.
std::shared_ptr<Input> make_input(const py::list& messages, const py::object& tools, const py::object& documents,
                                  const py::object& kwargs) {
  auto input = std::make_shared<Input>();
  Wrapper wrapper(*input);
  std::int64_t index = 0;
  for (const py::handle message : messages) {
    if (!PyDict_CheckExact(message.ptr())) {
      input->foreign = true;
      return input;
    }
    const std::int64_t role = role_of(PyDict_GetItemString(message.ptr(), "role"));
    input->roles.push_back(role);
    input->messages.push_back(wrapper.message(message.ptr(), index++, role));
  }
  const auto beside = [&](const py::object& value, std::int64_t part) {
    if (value.is_none()) return Value::none();
    if (!PyList_CheckExact(value.ptr())) {
      input->foreign = true;
      return Value{};
    }
    return wrapper.data(value.ptr(), -1, role_context, part, 0);
  };
  input->tools = beside(tools, part_tool_schema);
  input->documents = beside(documents, part_content);
  if (!kwargs.is_none()) {
    for (const auto& [name, value] : kwargs.cast<py::dict>()) {
      PyObject* given = value.ptr();
      Value held;
      if (PyUnicode_Check(given) || PyList_Check(given) || PyDict_Check(given)) {
        held = wrapper.data(given, -1, role_context, part_content, 0);
      } else if (given == Py_None) {
        held = Value::none();
      } else if (PyBool_Check(given)) {
        held = Value::boolean(given == Py_True);
      } else {
        input->foreign = true;
      }
      input->kwargs.emplace_back(characters(name.ptr()), held);
    }
  }
  return input;
}

// A node from (op, numbers, text, kids); ids are given in order.
class Builder {
 public:
  std::unique_ptr<Node> node(const py::handle& given) {
    const auto fields = given.cast<py::tuple>();
    auto out = std::make_unique<Node>();
    out->op = op_of(fields[0].cast<std::string>());
    out->id = count++;
    out->numbers = fields[1].cast<std::vector<std::int64_t>>();
    out->text = characters(py::str(fields[2]).ptr());
    for (const py::handle kid : fields[3].cast<py::tuple>()) out->kids.push_back(node(kid));
    if (out->op == Op::data) out->value = literal_of(*out);
    if (out->op == Op::constant) {
      const auto kind = static_cast<Kind>(out->numbers.at(0));
      if (kind == Kind::text) {
        out->value = literal_text(out->text);
      } else {
        out->value = Value{kind, -1, out->numbers.at(1), {}};
      }
    }
    return out;
  }

  std::int32_t count = 0;

 private:
  // Literal text is tagged where it is printed.
  static Value literal_of(const Node& node) { return literal_text(node.text); }

  static Op op_of(const std::string& name) {
    static const std::vector<std::string> names = {
        "bail",    "block",  "data",        "print",     "print_sum",  "branch",  "loop",       "assign",
        "capture", "macro",  "inline_body", "enter",     "remember",   "restore", "stop_loop",  "next_turn",
        "resolve", "alias",  "forget",      "store",     "store_name", "unpack",  "constant",   "variable",
        "list",    "tuple",  "dict",        "attribute", "loop_field", "item",    "slice",      "call",
        "keyword", "method", "filter",      "test",      "add",        "join",    "arithmetic", "negative",
        "compare", "both",   "either",      "negate",    "choose"};
    for (std::size_t k = 0; k < names.size(); ++k) {
      if (names[k] == name) return static_cast<Op>(k);
    }
    throw py::value_error("no such node: " + name);
  }
};

using Pairs = std::vector<std::pair<py::str, py::str>>;

std::vector<std::pair<std::u32string, std::u32string>> texts_of(const Pairs& pairs) {
  std::vector<std::pair<std::u32string, std::u32string>> out;
  for (const auto& [a, b] : pairs) out.emplace_back(characters(a.ptr()), characters(b.ptr()));
  return out;
}

struct PyShown {
  std::shared_ptr<const ChatTemplate> by;
  std::shared_ptr<Input> input;
  Shown shown;
  bool is_whole;  // all messages, and no prompt
  py::object text;

  PyShown(std::shared_ptr<const ChatTemplate> made_by, std::shared_ptr<Input> given, Rendering rendering, bool whole)
      : by(std::move(made_by)), input(std::move(given)), shown(std::move(rendering), *input), is_whole(whole) {}
};

std::unique_ptr<PyShown> render(const std::shared_ptr<ChatTemplate>& by, const std::shared_ptr<Input>& input,
                                std::int64_t count, bool prompt) {
  try {
    const bool whole = !prompt && count == static_cast<std::int64_t>(input->messages.size());
    return std::make_unique<PyShown>(by, input, by->render(*input, count, prompt), whole);
  } catch (const Bail&) {
    return nullptr;
  }
}

std::vector<std::u32string> words(const std::vector<py::str>& given) {
  std::vector<std::u32string> out;
  for (const py::str& word : given) out.push_back(characters(word.ptr()));
  return out;
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<Input, std::shared_ptr<Input>>(m, "TemplateInput")
      .def(py::init(&make_input), "messages"_a, "tools"_a, "documents"_a, "kwargs"_a)
      .def("leaves", [](const Input& self) { return self.leaves; });
  py::class_<TurnHabits>(m, "TurnHabits")
      .def(py::init([](const py::str& header, const std::vector<py::str>& finals, const std::vector<py::str>& middles,
                       const std::vector<py::str>& empty_blocks) {
             return TurnHabits{characters(header.ptr()), words(finals), words(middles), words(empty_blocks), {}};
           }),
           "header"_a, "finals"_a, "middles"_a, "empty_blocks"_a)
      .def(
          "remember",
          [](TurnHabits& self, bool is_last, const py::str& tail, std::int64_t own, const py::str& alone,
             std::int64_t alone_own, std::optional<std::pair<std::int64_t, std::int64_t>> stop, std::size_t most) {
            self.remember(is_last, {characters(tail.ptr()), own}, {characters(alone.ptr()), alone_own}, stop, most);
          },
          "is_last"_a, "tail"_a, "own"_a, "alone"_a, "alone_own"_a, "stop"_a, "most"_a);
  py::class_<ChatTemplate, std::shared_ptr<ChatTemplate>> program(m, "TemplateProgram");
  py::class_<PyShown>(m, "Shown")
      .def(py::init([](const std::shared_ptr<ChatTemplate>& given, const std::shared_ptr<Input>& input,
                       std::int64_t count, bool add_generation_prompt) {
             auto shown = render(given, input, count, add_generation_prompt);
             if (!shown) throw py::value_error("the core does not render this as Python does");
             return shown;
           }),
           "program"_a, "input"_a, "count"_a, "add_generation_prompt"_a)
      .def("text",
           [](PyShown& self) {
             if (!self.text) self.text = to_python(self.shown.rendering.text);
             return self.text;
           })
      .def("origins",
           [](const PyShown& self) {
             const auto& origins = self.shown.rendering.origins;
             py::tuple out(origins.size());
             for (std::size_t k = 0; k < origins.size(); ++k) {
               const auto& [a, b, source, c, d] = origins[k];
               out[k] = py::make_tuple(a, b, source, c, d);
             }
             return out;
           })
      .def("nulls", [](const PyShown& self) { return self.shown.rendering.none_at; })
      .def(
          "needs_comparison",
          [](const PyShown& self, std::uint64_t one_in) { return needs_comparison(self.shown.rendering, {}, one_in); },
          "one_in"_a)
      .def("shows_all", [](const PyShown& self) { return shows_all(self.shown); })
      .def(
          "usual_turn",
          [](const PyShown& self, std::int64_t index, const TurnHabits& habits, std::uint64_t one_in) -> py::object {
            if (!self.is_whole) throw py::value_error("turns are those of a rendering of all messages");
            if (index < 0 || index >= static_cast<std::int64_t>(self.input->roles.size())) {
              throw py::index_error("no such message");
            }
            const Looked looked = usual_turn(*self.by, self.shown, index, habits, one_in);
            if (looked.needs_comparison) return py::bool_(false);
            if (!looked.found) return py::none();
            const UsualTurn& found = *looked.found;
            return py::make_tuple(found.start, found.own_end, found.supplied, to_python(found.tail.text),
                                  found.tail.own, to_python(found.alone.text), found.alone.own);
          },
          "index"_a, "habits"_a, "one_in"_a)
      .def(
          "spans",
          [](const PyShown& self, const std::vector<TurnPlace>& turns, const py::bytes& text) {
            const std::string_view in = text;
            return make_spans(self.shown.rendering.origins, self.input->leaves, self.input->roles, turns, in);
          },
          "turns"_a, "text"_a);
  program
      .def(py::init([](const py::tuple& root, std::int32_t slots, const Pairs& clock, const Pairs& special) {
             Builder builder;
             auto node = builder.node(root);
             auto out = std::make_shared<ChatTemplate>();
             out->program = std::make_unique<Program>(std::move(node), builder.count, slots, texts_of(clock));
             for (const auto& [name, text] : texts_of(special)) out->special.emplace_back(name, literal_text(text));
             out->special.emplace_back(U"range", Value{Kind::builtin, -1, builtin_range, {}});
             out->special.emplace_back(U"namespace", Value{Kind::builtin, -1, builtin_namespace, {}});
             out->special.emplace_back(U"strftime_now", Value{Kind::builtin, -1, builtin_clock, {}});
             for (const char32_t* name : {U"raise_exception", U"dict", U"lipsum", U"cycler", U"joiner"}) {
               out->special.emplace_back(name, Value::of(Kind::opaque, nullptr));
             }
             return out;
           }),
           "root"_a, "slots"_a, "clock"_a, "special"_a)
      .def("render", &render, "input"_a, "count"_a, "add_generation_prompt"_a)
      .def(
          "agree", [](ChatTemplate& self, const PyShown& shown) { self.program->agree(shown.shown.rendering.touched); },
          "shown"_a)
      .def(
          "timed",
          [](ChatTemplate& self, bool on) {
            self.is_timed = on;
            return std::exchange(self.seconds, 0.0);
          },
          "on"_a);
}

}  // namespace maskpipe
