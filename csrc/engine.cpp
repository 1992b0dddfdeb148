#include "engine.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string_view>

#include "operations.h"
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

// What may stand inside another value: the template's own objects could hold themselves.
const Value& inert(const Value& value) {
  if (value.kind == Kind::names || value.kind == Kind::loop || value.kind == Kind::macro) throw Bail{};
  return value;
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
        return attribute_of(eval(*node.kids[0]), node.text, node.numbers[0] != 0, node.numbers[1] != 0);
      case Op::loop_field:
        return loop_field(eval(*node.kids[0]), node);
      case Op::item: {
        const Value value = eval(*node.kids[0]), index = eval(*node.kids[1]);
        return item_of(value, index, node.numbers[0] != 0);
      }
      case Op::slice: {
        const Value value = eval(*node.kids[0]), first = eval(*node.kids[1]), last = eval(*node.kids[2]);
        return slice_of(value, first, last, node.numbers[0] == -1);
      }
      case Op::call:
        return call(node);
      case Op::method: {
        const Value owner = eval(*node.kids[0]);
        return method_of(owner, node.text, arguments_of(node));
      }
      case Op::filter: {
        const Value value = eval(*node.kids[0]);
        return filtered(node.text, value, arguments_of(node));
      }
      case Op::test: {
        const Value value = eval(*node.kids[0]);
        return Value::boolean(tested(node.text, value, arguments_of(node)));
      }
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
      case Op::arithmetic: {
        const Value left = eval(*node.kids[0]), right = eval(*node.kids[1]);
        return arithmetic(node.text[0], left, right);
      }
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

  bool compare(const Node& node) {
    Value left = eval(*node.kids[0]);
    for (std::size_t k = 1; k < node.kids.size(); ++k) {
      const Value right = eval(*node.kids[k]);
      if (!compared(node.text[k - 1], left, right)) return false;
      left = right;
    }
    return true;
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
