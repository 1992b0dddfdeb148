#include "operations.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace maskpipe {

const Text& text_of(const Value& value) {
  if (value.kind != Kind::text || value.as_text().safe) throw Bail{};
  return value.as_text();
}

bool is_integer(const Value& value) { return value.kind == Kind::integer || value.kind == Kind::boolean; }

Value sum(const std::vector<Value>& terms) {
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

Value arithmetic(char32_t sign, const Value& left, const Value& right) {
  if (!is_integer(left) || !is_integer(right)) throw Bail{};
  const std::int64_t a = left.number, b = right.number;
  std::int64_t out = 0;
  bool wrong = false;
  switch (sign) {
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

bool compared(char32_t sign, const Value& left, const Value& right) {
  switch (sign) {
    case U'=':
      return equal(left, right);
    case U'!':
      return !equal(left, right);
    case U'<':
      return less(left, right);
    case U'>':
      return less(right, left);
    case U'l':
      return !less(right, left);
    case U'g':
      return !less(left, right);
    case U'i':
      return contains(right, left);
    case U'n':
      return !contains(right, left);
    default:
      throw Bail{};
  }
}

Value attribute_of(const Value& value, const std::u32string& name, bool hidden, bool hidden_by_dict) {
  switch (value.kind) {
    case Kind::dict: {
      if (hidden_by_dict) throw Bail{};
      const Value* found = static_cast<const Dict&>(*value.object).find(name);
      return found != nullptr ? *found : Value{};
    }
    case Kind::names: {
      if (name[0] == U'_') throw Bail{};
      const Value* found = static_cast<const Names&>(*value.object).find(name);
      return found != nullptr ? *found : Value{};
    }
    case Kind::none:
    case Kind::boolean:
    case Kind::integer:
    case Kind::text:
    case Kind::list:
    case Kind::tuple:
      if (hidden || hidden_by_dict) throw Bail{};
      return {};
    default:
      throw Bail{};
  }
}

Value item_of(const Value& value, const Value& index, bool hidden) {
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

Value slice_of(const Value& value, const Value& first, const Value& last, bool backwards) {
  if (value.kind == Kind::text ? value.as_text().safe : value.kind != Kind::list && value.kind != Kind::tuple) {
    throw Bail{};
  }
  const std::int64_t size = length(value);
  if (backwards) {  // all of it
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

}  // namespace maskpipe
