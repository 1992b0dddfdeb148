// Methods, filters and tests of operations.h, by their names in Jinja2.
#include <algorithm>
#include <array>
#include <cstdint>

#include "operations.h"

namespace maskpipe {
namespace {

bool is_method_of_dict(std::u32string_view name) {
  static constexpr std::array<std::u32string_view, 11> methods = {U"clear",      U"copy",   U"fromkeys", U"get",
                                                                  U"items",      U"keys",   U"pop",      U"popitem",
                                                                  U"setdefault", U"update", U"values"};
  return std::find(methods.begin(), methods.end(), name) != methods.end();
}

Value items(const Dict& dict, Kind kind) {
  List* list = new List;
  const Value out = Value::of(kind, list);
  for (const auto& [key, value] : dict.entries) {
    List* pair = new List;
    list->entries.push_back(Value::of(Kind::tuple, pair));
    pair->entries = {key, value};
  }
  return out;
}

Value selected(std::u32string_view name, const Value& value, const std::vector<Value>& arguments) {
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

}  // namespace

Value method_of(const Value& owner, std::u32string_view name, const std::vector<Value>& arguments) {
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

Value filtered(std::u32string_view name, const Value& value, const std::vector<Value>& arguments) {
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

bool tested(std::u32string_view name, const Value& value, const std::vector<Value>& arguments) {
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

}  // namespace maskpipe
