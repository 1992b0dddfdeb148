#include "engine.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string_view>

#include "printer.h"

namespace maskpipe {
namespace {

constexpr int max_depth = 60;
constexpr std::int64_t max_range = 100'000;

struct Activation {
  std::vector<Value> slots;
  Activation* outer = nullptr;
};

struct LoopState final : Object {
  Value over;
  std::vector<Value> made;
  const std::vector<Value>* entries = nullptr;  // of one of these
  std::size_t at = 0;
};

struct Macro final : Object {
  const Node* node = nullptr;
  Activation* home = nullptr;
};

enum class Flow : std::uint8_t { on, stop, next };

std::int64_t to_signed(std::size_t value) { return static_cast<std::int64_t>(value); }

const Text& text_of(const Value& value) {
  if (value.kind != Kind::text || value.as_text().safe) throw Bail{};
  return value.as_text();
}

bool is_integer(const Value& value) { return value.kind == Kind::integer || value.kind == Kind::boolean; }

// What may stand inside another value: the template's own objects could hold themselves.
const Value& inert(const Value& value) {
  if (value.kind == Kind::names || value.kind == Kind::loop || value.kind == Kind::macro) throw Bail{};
  return value;
}

bool is_method_of_dict(std::u32string_view name) {
  static constexpr std::array<std::u32string_view, 11> methods = {U"clear",      U"copy",   U"fromkeys", U"get",
                                                                  U"items",      U"keys",   U"pop",      U"popitem",
                                                                  U"setdefault", U"update", U"values"};
  return std::find(methods.begin(), methods.end(), name) != methods.end();
}

class Run {
 public:
  Run(const Program& program, const Variables& variables, const Beside* beside)
      : program_(program), variables_(variables), printer_(beside) {}

  Rendering done() {
    Activation root;
    root.slots.resize(static_cast<std::size_t>(program_.slots()));
    for (Value& slot : root.slots) slot.kind = Kind::missing;
    here_ = &root;
    exec(program_.root());
    printer_.finish(out_);
    return std::move(out_);
  }

 private:
  // -- statements

  void touch(const Node& node) {
    const std::size_t id = static_cast<std::size_t>(node.id);
    if (program_.agreed[id] >= settled) return;
    if (seen_.empty()) seen_.resize(program_.agreed.size());
    if (std::exchange(seen_[id], std::uint8_t{1}) == 0) out_.touched.push_back(node.id);
  }

  std::int64_t source() const { return -2 - static_cast<std::int64_t>(message_); }

  void print(const Value& value) {
    if (value.kind == Kind::none) out_.none_at.push_back(message_);
    print_text(value.kind == Kind::text ? value : to_text(value));
  }

  void print_text(const Value& value) {
    if (gathering_ != nullptr) {
      gathering_->piece(value.as_text(), source());
    } else {
      printer_.piece(value.as_text(), source());
    }
  }

  Flow exec_all(const Node& node) {
    for (const auto& kid : node.kids) {
      const Flow flow = exec(*kid);
      if (flow != Flow::on) return flow;
    }
    return Flow::on;
  }

  Flow exec(const Node& node) {
    touch(node);
    switch (node.op) {
      case Op::block:
        return exec_all(node);
      case Op::data:
        print_text(node.value);
        return Flow::on;
      case Op::print: {
        const Value value = eval(*node.kids[0]);
        print(value);
        return Flow::on;
      }
      case Op::print_sum: {
        std::vector<Value> terms;
        terms.reserve(node.kids.size());
        for (const auto& kid : node.kids) terms.push_back(eval(*kid));
        const bool texts = std::all_of(terms.begin(), terms.end(), [](const Value& term) {
          return term.kind == Kind::text && !term.as_text().safe;
        });
        if (texts) {
          for (const Value& term : terms) print_text(term);
        } else {
          print(sum(terms));
        }
        return Flow::on;
      }
      case Op::branch:
        return exec(truth(eval(*node.kids[0])) ? *node.kids[1] : *node.kids[2]);
      case Op::loop:
        return exec_loop(node);
      case Op::assign:
        assign(*node.kids[0], eval(*node.kids[1]));
        return Flow::on;
      case Op::capture: {
        const Value value = gathered(*node.kids[1]);
        assign(*node.kids[0], value);
        return Flow::on;
      }
      case Op::macro: {
        Macro* macro = new Macro;
        const Value value = Value::of(Kind::macro, macro);
        macro->node = &node;
        macro->home = here_;
        if (here_->outer != nullptr) throw Bail{};
        slot(0, node.numbers[0]) = value;
        return Flow::on;
      }
      case Op::inline_body:
        print_text(gathered(*node.kids[0]));
        return Flow::on;
      case Op::enter: {
        const Value value = eval(*node.kids[0]);
        if (value.kind == Kind::dict) {
          const std::int32_t message = static_cast<const Dict&>(*value.object).message;
          if (message >= 0) message_ = message;
        }
        return Flow::on;
      }
      case Op::remember:
        before_loops_.push_back(message_);
        return Flow::on;
      case Op::restore:
        message_ = before_loops_.back();
        before_loops_.pop_back();
        return Flow::on;
      case Op::stop_loop:
        return Flow::stop;
      case Op::next_turn:
        return Flow::next;
      case Op::resolve: {
        Value& place = slot(0, node.numbers[0]);
        place = Value{Kind::missing, -1, 0, {}};
        for (const auto& [name, value] : variables_) {
          if (name == node.text) {
            place = value;
            break;
          }
        }
        return Flow::on;
      }
      case Op::alias: {
        const Value value = slot(node.numbers[1], node.numbers[2]);
        slot(0, node.numbers[0]) = value;
        return Flow::on;
      }
      case Op::forget:
        slot(0, node.numbers[0]) = Value{Kind::missing, -1, 0, {}};
        return Flow::on;
      default:
        throw Bail{};
    }
  }

  Value gathered(const Node& body) {
    Gathering gathering;
    Gathering* before = std::exchange(gathering_, &gathering);
    if (exec(body) != Flow::on) throw Bail{};  // what was gathered goes with the loop: nobody writes that
    gathering_ = before;
    return gathering.done();
  }

  Flow exec_loop(const Node& node) {
    LoopState* loop = new LoopState;
    const Value state = Value::of(Kind::loop, loop);
    loop->over = eval(*node.kids[1]);
    loop->entries = &entries_of(loop->over, loop->made);
    const std::vector<Value>& entries = *loop->entries;
    const std::int64_t loop_slot = node.numbers[0];
    bool went_through = false;  // Jinja2's `else` also comes where `break` or `continue` ended every turn
    for (std::size_t k = 0; k < entries.size(); ++k) {
      loop->at = k;
      if (loop_slot >= 0) slot(0, loop_slot) = state;
      assign(*node.kids[0], entries[k]);
      const Flow flow = exec(*node.kids[2]);
      if (flow == Flow::stop) break;
      went_through = went_through || flow == Flow::on;
    }
    return went_through ? Flow::on : exec(*node.kids[3]);
  }

  void assign(const Node& target, const Value& value) {
    touch(target);
    switch (target.op) {
      case Op::store:
        slot(0, target.numbers[0]) = value;
        return;
      case Op::store_name: {
        const Value& place = slot(target.numbers[0], target.numbers[1]);
        if (place.kind != Kind::names) throw Bail{};
        inert(value);
        Names& names = static_cast<Names&>(*place.object);
        for (auto& [name, held] : names.entries) {
          if (name == target.text) {
            held = value;
            return;
          }
        }
        names.entries.emplace_back(target.text, value);
        return;
      }
      case Op::unpack: {
        if (value.kind != Kind::tuple && value.kind != Kind::list) throw Bail{};
        const auto& entries = static_cast<const List&>(*value.object).entries;
        if (entries.size() != target.kids.size()) throw Bail{};
        for (std::size_t k = 0; k < entries.size(); ++k) assign(*target.kids[k], entries[k]);
        return;
      }
      default:
        throw Bail{};
    }
  }

  Value& slot(std::int64_t hops, std::int64_t number) {
    Activation* place = here_;
    for (; hops > 0; --hops) place = place->outer;
    return place->slots[static_cast<std::size_t>(number)];
  }

  // -- expressions

  Value eval(const Node& node) {
    touch(node);
    switch (node.op) {
      case Op::constant:
        return node.value;
      case Op::variable: {
        const Value& value = slot(node.numbers[0], node.numbers[1]);
        return value.kind == Kind::missing ? Value{} : value;
      }
      case Op::list:
      case Op::tuple: {
        List* list = new List;
        const Value out = Value::of(node.op == Op::list ? Kind::list : Kind::tuple, list);
        for (const auto& kid : node.kids) list->entries.push_back(inert(eval(*kid)));
        return out;
      }
      case Op::dict: {
        Dict* dict = new Dict;
        const Value out = Value::of(Kind::dict, dict);
        for (std::size_t k = 0; k < node.kids.size(); k += 2) {
          const Value key = eval(*node.kids[k]);
          if (dict->find(text_of(key).chars) != nullptr) throw Bail{};
          dict->entries.emplace_back(key, inert(eval(*node.kids[k + 1])));
        }
        return out;
      }
      case Op::attribute:
        return attribute(eval(*node.kids[0]), node);
      case Op::loop_field:
        return loop_field(eval(*node.kids[0]), node);
      case Op::item:
        return item(node);
      case Op::slice:
        return slice(node);
      case Op::call:
        return call(node);
      case Op::method:
        return method(node);
      case Op::filter:
        return filter(node);
      case Op::test:
        return Value::boolean(test(node));
      case Op::add: {
        std::vector<Value> terms;
        for (const auto& kid : node.kids) terms.push_back(eval(*kid));
        return sum(terms);
      }
      case Op::join: {
        std::vector<Value> parts;
        for (const auto& kid : node.kids) {
          const Value value = eval(*kid);
          if (value.kind == Kind::none) throw Bail{};
          parts.push_back(to_text(value));
        }
        return concat(parts);
      }
      case Op::arithmetic:
        return arithmetic(node);
      case Op::negative: {
        const Value value = eval(*node.kids[0]);
        if (!is_integer(value) || value.number == std::numeric_limits<std::int64_t>::min()) throw Bail{};
        return Value::integer(-value.number);
      }
      case Op::compare:
        return Value::boolean(compare(node));
      case Op::both: {
        Value left = eval(*node.kids[0]);
        return truth(left) ? eval(*node.kids[1]) : left;
      }
      case Op::either: {
        Value left = eval(*node.kids[0]);
        return truth(left) ? left : eval(*node.kids[1]);
      }
      case Op::negate:
        return Value::boolean(!truth(eval(*node.kids[0])));
      case Op::choose:
        return eval(truth(eval(*node.kids[0])) ? *node.kids[1] : *node.kids[2]);
      default:
        throw Bail{};
    }
  }

  static Value sum(const std::vector<Value>& terms) {
    if (std::all_of(terms.begin(), terms.end(), [](const Value& term) { return term.kind == Kind::text; })) {
      return concat(terms);
    }
    Value total = terms[0];
    for (std::size_t k = 1; k < terms.size(); ++k) {
      const Value& term = terms[k];
      if (total.kind == Kind::text && term.kind == Kind::text) {
        total = concat({total, term});
      } else if (is_integer(total) && is_integer(term)) {
        std::int64_t out = 0;
        if (__builtin_add_overflow(total.number, term.number, &out)) throw Bail{};
        total = Value::integer(out);
      } else if (total.kind == Kind::list && term.kind == Kind::list) {
        List* list = new List;
        Value joined = Value::of(Kind::list, list);
        for (const Value* part : {static_cast<const Value*>(&total), &term}) {
          const auto& entries = static_cast<const List&>(*part->object).entries;
          list->entries.insert(list->entries.end(), entries.begin(), entries.end());
        }
        total = std::move(joined);
      } else {
        throw Bail{};
      }
    }
    return total;
  }

  Value arithmetic(const Node& node) {
    const Value left = eval(*node.kids[0]), right = eval(*node.kids[1]);
    if (!is_integer(left) || !is_integer(right)) throw Bail{};
    const std::int64_t a = left.number, b = right.number;
    std::int64_t out = 0;
    bool wrong = false;
    switch (node.text[0]) {
      case U'-':
        wrong = __builtin_sub_overflow(a, b, &out);
        break;
      case U'*':
        wrong = __builtin_mul_overflow(a, b, &out);
        break;
      case U'/':  // floor division
        wrong = b <= 0;
        if (!wrong) out = a >= 0 ? a / b : -((-(a + 1)) / b) - 1;
        break;
      case U'%':
        wrong = b <= 0;
        if (!wrong) out = a % b < 0 ? a % b + b : a % b;
        break;
      default:
        throw Bail{};
    }
    if (wrong) throw Bail{};
    return Value::integer(out);
  }

  bool compare(const Node& node) {
    Value left = eval(*node.kids[0]);
    for (std::size_t k = 1; k < node.kids.size(); ++k) {
      const Value right = eval(*node.kids[k]);
      bool holds = false;
      switch (node.text[k - 1]) {
        case U'=':
          holds = equal(left, right);
          break;
        case U'!':
          holds = !equal(left, right);
          break;
        case U'<':
          holds = less(left, right);
          break;
        case U'>':
          holds = less(right, left);
          break;
        case U'l':
          holds = !less(right, left);
          break;
        case U'g':
          holds = !less(left, right);
          break;
        case U'i':
          holds = contains(right, left);
          break;
        case U'n':
          holds = !contains(right, left);
          break;
        default:
          throw Bail{};
      }
      if (!holds) return false;
      left = right;
    }
    return true;
  }

  static Value attribute(const Value& value, const Node& node) {
    switch (value.kind) {
      case Kind::dict: {
        if (node.numbers[1] != 0) throw Bail{};
        const Value* found = static_cast<const Dict&>(*value.object).find(node.text);
        return found != nullptr ? *found : Value{};
      }
      case Kind::names: {
        if (node.text[0] == U'_') throw Bail{};
        const Value* found = static_cast<const Names&>(*value.object).find(node.text);
        return found != nullptr ? *found : Value{};
      }
      case Kind::none:
      case Kind::boolean:
      case Kind::integer:
      case Kind::text:
      case Kind::list:
      case Kind::tuple:
        if (node.numbers[0] != 0 || node.numbers[1] != 0) throw Bail{};
        return {};
      default:
        throw Bail{};
    }
  }

  static Value loop_field(const Value& value, const Node& node) {
    if (value.kind != Kind::loop) throw Bail{};
    const LoopState& loop = static_cast<const LoopState&>(*value.object);
    const std::int64_t at = to_signed(loop.at), size = to_signed(loop.entries->size());
    const std::u32string_view name = node.text;
    if (name == U"index0") return Value::integer(at);
    if (name == U"index") return Value::integer(at + 1);
    if (name == U"first") return Value::boolean(at == 0);
    if (name == U"last") return Value::boolean(at + 1 == size);
    if (name == U"length") return Value::integer(size);
    if (name == U"revindex") return Value::integer(size - at);
    if (name == U"revindex0") return Value::integer(size - at - 1);
    if (name == U"previtem") return at == 0 ? Value{} : (*loop.entries)[loop.at - 1];
    if (name == U"nextitem") return at + 1 == size ? Value{} : (*loop.entries)[loop.at + 1];
    throw Bail{};
  }

  Value item(const Node& node) {
    const Value value = eval(*node.kids[0]), index = eval(*node.kids[1]);
    return item_of(value, index, node.numbers[0] != 0);
  }

  // `hidden`: the index may also be the name of an attribute of what has no such item.
  static Value item_of(const Value& value, const Value& index, bool hidden) {
    if (index.kind == Kind::text) {
      switch (value.kind) {
        case Kind::dict: {
          const Value* found = static_cast<const Dict&>(*value.object).find(index.as_text().chars);
          if (found != nullptr) return *found;
          if (hidden) throw Bail{};
          return {};
        }
        case Kind::names: {
          const std::u32string& name = index.as_text().chars;
          if (hidden || name.empty() || name[0] == U'_') throw Bail{};
          const Value* found = static_cast<const Names&>(*value.object).find(name);
          return found != nullptr ? *found : Value{};
        }
        case Kind::none:
        case Kind::text:
        case Kind::list:
        case Kind::tuple:
        case Kind::integer:
        case Kind::boolean:
          if (hidden) throw Bail{};
          return {};
        default:
          throw Bail{};
      }
    }
    if (!is_integer(index)) throw Bail{};
    if (value.kind != Kind::list && value.kind != Kind::tuple && value.kind != Kind::text) throw Bail{};
    const std::int64_t size = length(value);
    const std::int64_t at = index.number < 0 ? index.number + size : index.number;
    if (at < 0 || at >= size) return {};
    const std::size_t place = static_cast<std::size_t>(at);
    if (value.kind == Kind::text) return cut(value, place, place + 1);
    return static_cast<const List&>(*value.object).entries[place];
  }

  Value slice(const Node& node) {
    const Value value = eval(*node.kids[0]), first = eval(*node.kids[1]), last = eval(*node.kids[2]);
    if (value.kind == Kind::text ? value.as_text().safe : value.kind != Kind::list && value.kind != Kind::tuple) {
      throw Bail{};
    }
    const std::int64_t size = length(value);
    if (node.numbers[0] == -1) {  // backwards, all of it
      if (value.kind == Kind::text || first.kind != Kind::none || last.kind != Kind::none) throw Bail{};
      const auto& entries = static_cast<const List&>(*value.object).entries;
      List* list = new List;
      const Value out = Value::of(value.kind, list);
      list->entries.assign(entries.rbegin(), entries.rend());
      return out;
    }
    const auto place = [size](const Value& at, std::int64_t missing) {
      if (at.kind == Kind::none) return missing;
      if (!is_integer(at)) throw Bail{};
      return std::clamp<std::int64_t>(at.number < 0 ? at.number + size : at.number, 0, size);
    };
    const std::int64_t start = place(first, 0), stop = std::max(start, place(last, size));
    if (value.kind == Kind::text) return cut(value, static_cast<std::size_t>(start), static_cast<std::size_t>(stop));
    const auto& entries = static_cast<const List&>(*value.object).entries;
    List* list = new List;
    const Value out = Value::of(value.kind, list);
    list->entries.assign(entries.begin() + start, entries.begin() + stop);
    return out;
  }

  // -- calls

  Value call(const Node& node) {
    const Value function = eval(*node.kids[0]);
    const std::size_t named = static_cast<std::size_t>(node.numbers[0]), given = node.kids.size() - 1 - named;
    std::vector<Value> arguments;
    std::vector<std::pair<const std::u32string*, Value>> keywords;
    for (std::size_t k = 0; k < given; ++k) arguments.push_back(eval(*node.kids[k + 1]));
    for (std::size_t k = given; k < given + named; ++k) {
      const Node& keyword = *node.kids[k + 1];
      keywords.emplace_back(&keyword.text, eval(*keyword.kids[0]));
    }
    if (function.kind == Kind::macro) {
      return call_macro(static_cast<const Macro&>(*function.object), arguments, keywords);
    }
    if (function.kind != Kind::builtin) throw Bail{};
    switch (function.number) {
      case builtin_namespace: {
        if (!arguments.empty()) throw Bail{};
        Names* names = new Names;
        const Value out = Value::of(Kind::names, names);
        for (auto& [name, value] : keywords) {
          if ((*name)[0] == U'_') throw Bail{};
          names->entries.emplace_back(*name, inert(value));
        }
        return out;
      }
      case builtin_range: {
        if (!keywords.empty() || arguments.empty() || arguments.size() > 3) throw Bail{};
        for (const Value& argument : arguments) {
          if (!is_integer(argument) || argument.number > max_range || argument.number < -max_range) throw Bail{};
        }
        const std::int64_t start = arguments.size() > 1 ? arguments[0].number : 0;
        const std::int64_t stop = arguments.size() > 1 ? arguments[1].number : arguments[0].number;
        const std::int64_t step = arguments.size() > 2 ? arguments[2].number : 1;
        if (step == 0 || stop - start > max_range || start - stop > max_range) throw Bail{};
        List* list = new List;
        const Value out = Value::of(Kind::view, list);
        for (std::int64_t k = start; step > 0 ? k < stop : k > stop; k += step) {
          list->entries.push_back(Value::integer(k));
        }
        return out;
      }
      case builtin_clock: {
        if (!keywords.empty() || arguments.size() != 1) throw Bail{};
        const Text& format = text_of(arguments[0]);
        if (!format.origins.empty()) throw Bail{};
        for (const auto& [known, shown] : program_.clock()) {
          if (known == format.chars) return literal_text(shown);
        }
        throw Bail{};
      }
      default:
        throw Bail{};
    }
  }

  Value call_macro(const Macro& macro, const std::vector<Value>& arguments,
                   const std::vector<std::pair<const std::u32string*, Value>>& keywords) {
    const Node& node = *macro.node;
    const std::size_t parameters = static_cast<std::size_t>(node.numbers[2]);
    if (arguments.size() > parameters || ++depth_ > max_depth) throw Bail{};
    Activation inside;
    inside.outer = macro.home;
    inside.slots.resize(static_cast<std::size_t>(node.numbers[1]));
    for (Value& slot : inside.slots) slot.kind = Kind::missing;
    Activation* before = std::exchange(here_, &inside);
    Gathering gathering;
    Gathering* outside = std::exchange(gathering_, &gathering);
    exec(*node.kids[0]);
    std::size_t taken = 0;
    std::vector<Value> given(parameters);
    std::vector<bool> is_given(parameters, false);
    for (std::size_t k = 0; k < parameters; ++k) {
      const Node& parameter = *node.kids[k + 1];
      if (k < arguments.size()) {
        given[k] = arguments[k];
        is_given[k] = true;
        continue;
      }
      for (const auto& [name, value] : keywords) {
        if (*name == parameter.text) {
          given[k] = value;
          is_given[k] = true;
          ++taken;
        }
      }
    }
    if (taken != keywords.size()) throw Bail{};
    for (std::size_t k = 0; k < parameters; ++k) {
      if (is_given[k]) slot(0, node.kids[k + 1]->numbers[0]) = given[k];
    }
    for (std::size_t k = 0; k < parameters; ++k) {
      const Node& parameter = *node.kids[k + 1];
      if (is_given[k]) continue;
      Value value;
      if (!parameter.kids.empty()) value = eval(*parameter.kids[0]);
      slot(0, parameter.numbers[0]) = value;
    }
    if (exec(*node.kids[parameters + 1]) != Flow::on) throw Bail{};
    here_ = before;
    gathering_ = outside;
    --depth_;
    return gathering.done();
  }

  std::vector<Value> arguments_of(const Node& node) {
    std::vector<Value> out;
    for (std::size_t k = 1; k < node.kids.size(); ++k) out.push_back(eval(*node.kids[k]));
    return out;
  }

  Value method(const Node& node) {
    const Value owner = eval(*node.kids[0]);
    const std::vector<Value> arguments = arguments_of(node);
    const std::u32string_view name = node.text;
    const std::size_t count = arguments.size();
    if (owner.kind == Kind::dict) {
      const Dict& dict = static_cast<const Dict&>(*owner.object);
      if (name == U"get" && (count == 1 || count == 2)) {
        const Value* found = dict.find(text_of(arguments[0]).chars);
        return found != nullptr ? *found : count == 2 ? arguments[1] : Value::none();
      }
      if (name == U"items" && count == 0) return items(dict, Kind::view);
      if ((name == U"keys" || name == U"values") && count == 0) {
        List* list = new List;
        const Value out = Value::of(Kind::view, list);
        for (const auto& [key, value] : dict.entries) list->entries.push_back(name == U"keys" ? key : value);
        return out;
      }
      throw Bail{};
    }
    text_of(owner);
    if ((name == U"strip" || name == U"lstrip" || name == U"rstrip") && count <= 1) {
      const Text* characters = count == 1 ? &text_of(arguments[0]) : nullptr;
      return strip(owner, characters, name != U"rstrip", name != U"lstrip");
    }
    if (name == U"split" && count <= 2) {
      const Text* separator = count > 0 && arguments[0].kind != Kind::none ? &text_of(arguments[0]) : nullptr;
      if (count == 2 && !is_integer(arguments[1])) throw Bail{};
      return split(owner, separator, count == 2 ? arguments[1].number : -1);
    }
    if ((name == U"startswith" || name == U"endswith") && count == 1) {
      const std::u32string &whole = owner.as_text().chars, &part = text_of(arguments[0]).chars;
      return Value::boolean(name == U"startswith" ? whole.starts_with(part) : whole.ends_with(part));
    }
    if (name == U"replace" && count == 2) {
      text_of(arguments[1]);
      return replace(owner, text_of(arguments[0]), arguments[1], -1);
    }
    if (count == 0 && name == U"upper") return recased(owner, Case::upper);
    if (count == 0 && name == U"lower") return recased(owner, Case::lower);
    if (count == 0 && name == U"capitalize") return recased(owner, Case::capital);
    throw Bail{};
  }

  static Value items(const Dict& dict, Kind kind) {
    List* list = new List;
    const Value out = Value::of(kind, list);
    for (const auto& [key, value] : dict.entries) {
      List* pair = new List;
      list->entries.push_back(Value::of(Kind::tuple, pair));
      pair->entries = {key, value};
    }
    return out;
  }

  // -- filters and tests

  Value filter(const Node& node) {
    const Value value = eval(*node.kids[0]);
    const std::vector<Value> arguments = arguments_of(node);
    return filtered(node.text, value, arguments);
  }

  static Value filtered(std::u32string_view name, const Value& value, const std::vector<Value>& arguments) {
    const std::size_t count = arguments.size();
    if (name == U"trim" && count == 0) return strip(to_text(value), nullptr, true, true);
    if ((name == U"length" || name == U"count") && count == 0) return Value::integer(length(value));
    if (name == U"tojson") return to_json(value, arguments[0].number != 0, arguments[1].number);
    if ((name == U"default" || name == U"d") && count <= 2) {
      const bool gone = value.kind == Kind::undefined || (count == 2 && truth(arguments[1]) && !truth(value));
      return !gone ? value : count > 0 ? arguments[0] : literal_text({});
    }
    if (name == U"string" && count == 0) return to_text(value);
    if (name == U"safe" && count == 0) {
      const Value text = to_text(value);
      Text* safe = new Text;
      const Value out = Value::text(safe);
      safe->chars = text.as_text().chars;
      safe->origins = text.as_text().origins;
      safe->safe = true;
      return out;
    }
    if (name == U"list" && count == 0) {
      List* list = new List;
      const Value out = Value::of(Kind::list, list);
      std::vector<Value> made;
      list->entries = entries_of(value, made);
      return out;
    }
    if ((name == U"first" || name == U"last") && count == 0) {
      if (value.kind != Kind::list && value.kind != Kind::tuple && value.kind != Kind::text) throw Bail{};
      const std::int64_t size = length(value);
      return size == 0 ? Value{} : item_of(value, Value::integer(name == U"first" ? 0 : size - 1), false);
    }
    if (name == U"join" && count <= 1) {
      const Value separator = count == 1 ? to_text(arguments[0]) : literal_text({});
      std::vector<Value> made, parts;
      for (const Value& entry : entries_of(value, made)) {
        if (!parts.empty() && !text_of(separator).chars.empty()) parts.push_back(separator);
        parts.push_back(to_text(entry));
      }
      return concat(parts);
    }
    if (name == U"items" && count == 0) {
      if (value.kind != Kind::dict) throw Bail{};
      return items(static_cast<const Dict&>(*value.object), Kind::generator);
    }
    if (name == U"upper" && count == 0) return recased(to_text(value), Case::upper);
    if (name == U"lower" && count == 0) return recased(to_text(value), Case::lower);
    if (name == U"capitalize" && count == 0) return recased(to_text(value), Case::capital);
    if (name == U"replace" && count == 2) {
      return replace(to_text(value), text_of(to_text(arguments[0])), to_text(arguments[1]), -1);
    }
    if ((name == U"selectattr" || name == U"rejectattr") && count >= 1 && count <= 3) {
      return selected(name, value, arguments);
    }
    if (name == U"map" && count == 1) {
      // the name of a filter without arguments
      const std::u32string& inner = text_of(arguments[0]).chars;
      static constexpr std::array<std::u32string_view, 5> known = {U"trim", U"string", U"upper", U"lower", U"length"};
      if (std::find(known.begin(), known.end(), inner) == known.end()) throw Bail{};
      List* list = new List;
      const Value out = Value::of(Kind::generator, list);
      std::vector<Value> made;
      for (const Value& entry : entries_of(value, made)) list->entries.push_back(filtered(inner, entry, {}));
      return out;
    }
    if (name == U"map attribute" && count == 1) {
      List* list = new List;
      const Value out = Value::of(Kind::generator, list);
      std::vector<Value> made;
      for (const Value& entry : entries_of(value, made)) {
        if (entry.kind != Kind::dict) throw Bail{};
        list->entries.push_back(item_of(entry, arguments[0], true));
      }
      return out;
    }
    throw Bail{};
  }

  static Value selected(std::u32string_view name, const Value& value, const std::vector<Value>& arguments) {
    List* list = new List;
    const Value out = Value::of(Kind::generator, list);
    std::vector<Value> made;
    for (const Value& entry : entries_of(value, made)) {
      if (entry.kind != Kind::dict) throw Bail{};
      const std::u32string& wanted = text_of(arguments[0]).chars;
      const Value* held = static_cast<const Dict&>(*entry.object).find(wanted);
      const bool simple = !wanted.empty() && wanted.find(U'.') == std::u32string::npos && !(wanted[0] < U'A');
      if (!simple || (held == nullptr && is_method_of_dict(wanted))) throw Bail{};
      const Value found = held != nullptr ? *held : Value{};
      bool holds = false;
      if (arguments.size() == 1) {
        holds = truth(found);
      } else if (arguments.size() == 3) {
        const std::u32string& test = text_of(arguments[1]).chars;
        if (test != U"equalto" && test != U"==" && test != U"eq") throw Bail{};
        holds = equal(found, arguments[2]);
      } else {
        const std::u32string& test = text_of(arguments[1]).chars;
        if (test == U"defined") {
          holds = found.kind != Kind::undefined;
        } else if (test == U"undefined") {
          holds = found.kind == Kind::undefined;
        } else {
          throw Bail{};
        }
      }
      if (holds == (name == U"selectattr")) list->entries.push_back(entry);
    }
    return out;
  }

  bool test(const Node& node) {
    const Value value = eval(*node.kids[0]);
    const std::vector<Value> arguments = arguments_of(node);
    const std::u32string_view name = node.text;
    if (arguments.empty()) {
      if (name == U"defined") return value.kind != Kind::undefined;
      if (name == U"undefined") return value.kind == Kind::undefined;
      if (value.kind == Kind::opaque || value.kind == Kind::builtin || value.kind == Kind::missing) throw Bail{};
      if (name == U"none") return value.kind == Kind::none;
      if (name == U"string") return value.kind == Kind::text;
      if (name == U"mapping") return value.kind == Kind::dict;
      if (name == U"boolean") return value.kind == Kind::boolean;
      if (name == U"true") return value.kind == Kind::boolean && value.number != 0;
      if (name == U"false") return value.kind == Kind::boolean && value.number == 0;
      if (name == U"integer") return value.kind == Kind::integer;
      if (name == U"number") return is_integer(value);
      if (value.kind >= Kind::generator && value.kind != Kind::dict) throw Bail{};
      if (name == U"iterable") return value.kind == Kind::undefined || value.kind >= Kind::text;
      if (name == U"sequence") {
        if (value.kind == Kind::undefined) throw Bail{};
        return value.kind >= Kind::text;
      }
      throw Bail{};
    }
    if (arguments.size() != 1) throw Bail{};
    if (name == U"equalto" || name == U"==" || name == U"eq") return equal(value, arguments[0]);
    if (name == U"ne" || name == U"!=") return !equal(value, arguments[0]);
    if (name == U"in") return contains(arguments[0], value);
    throw Bail{};
  }

  const Program& program_;
  const Variables& variables_;
  Rendering out_;
  Printer printer_;
  Gathering* gathering_ = nullptr;
  Activation* here_ = nullptr;
  std::int32_t message_ = -1;
  std::vector<std::uint8_t> seen_;  // of each node: is it in `touched`?
  std::vector<std::int32_t> before_loops_;
  int depth_ = 0;
};

}  // namespace

Program::Program(std::unique_ptr<Node> root, std::int32_t nodes, std::int32_t slots,
                 std::vector<std::pair<std::u32string, std::u32string>> clock)
    : agreed(static_cast<std::size_t>(nodes)), root_(std::move(root)), slots_(slots), clock_(std::move(clock)) {}

Rendering Program::run(const Variables& variables, const Beside* beside) const {
  return Run(*this, variables, beside).done();
}

void Program::agree(const std::vector<std::int32_t>& touched) {
  for (const std::int32_t id : touched) {
    std::uint8_t& count = agreed[static_cast<std::size_t>(id)];
    if (count < settled) ++count;
  }
}

}  // namespace maskpipe
