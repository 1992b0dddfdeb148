#include "tracked.h"

#include <algorithm>

namespace maskpipe {
namespace {

std::int64_t to_signed(std::size_t value) { return static_cast<std::int64_t>(value); }

Value made(std::u32string&& chars, std::vector<Origin>&& origins) {
  Text* text = new Text;
  Value out = Value::text(text);
  text->chars = std::move(chars);
  text->origins = std::move(origins);
  return out;
}

void append_shifted(std::vector<Origin>& out, const std::vector<Origin>& origins, std::int64_t at) {
  for (const auto& [a, b, source, c, d] : origins) out.push_back({a + at, b + at, source, c, d});
}

const Text& plain(const Value& value) {
  if (value.kind != Kind::text || value.as_text().safe) throw Bail{};
  return value.as_text();
}

bool is_number(const Value& value) { return value.kind == Kind::boolean || value.kind == Kind::integer; }

bool is_ascii(const std::u32string& chars) {
  return std::all_of(chars.begin(), chars.end(), [](char32_t c) { return c < 128; });
}

}  // namespace

const Value* Dict::find(std::u32string_view key) const {
  for (const auto& [name, value] : entries) {
    if (name.as_text().chars == key) return &value;
  }
  return nullptr;
}

const Value* Names::find(std::u32string_view name) const {
  for (const auto& [key, value] : entries) {
    if (key == name) return &value;
  }
  return nullptr;
}

bool is_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

Value literal_text(std::u32string chars) { return made(std::move(chars), {}); }

Value tracked_text(std::u32string chars, std::int64_t leaf) {
  const std::int64_t size = to_signed(chars.size());
  std::vector<Origin> origins;
  if (size > 0) origins.push_back({0, size, leaf, 0, size});
  return made(std::move(chars), std::move(origins));
}

Value cut(const Value& value, std::size_t first, std::size_t last) {
  const Text& text = plain(value);
  if (first == 0 && last >= text.chars.size()) return value;
  last = std::min(last, text.chars.size());
  first = std::min(first, last);
  const std::int64_t start = to_signed(first), stop = to_signed(last);
  std::vector<Origin> out;
  for (const auto& [a, b, source, c, d] : text.origins) {
    if (b <= start) continue;
    if (a >= stop) break;
    const std::int64_t left = std::max(a, start), right = std::min(b, stop);
    if (left >= right) continue;
    if (b - a == d - c) {
      out.push_back({left - start, right - start, source, c + left - a, c + right - a});
    } else if (right - left == d - c) {
      out.push_back({left - start, right - start, source, c, c});
    } else {
      out.push_back({left - start, right - start, source, c, d});
    }
  }
  return made(text.chars.substr(first, last - first), std::move(out));
}

Value concat(const std::vector<Value>& parts) {
  std::size_t size = 0, count = 0;
  for (const Value& part : parts) {
    const Text& text = plain(part);
    size += text.chars.size();
    count += text.origins.size();
  }
  std::u32string chars;
  std::vector<Origin> origins;
  chars.reserve(size);
  origins.reserve(count);
  for (const Value& part : parts) {
    append_shifted(origins, part.as_text().origins, to_signed(chars.size()));
    chars += part.as_text().chars;
  }
  return made(std::move(chars), std::move(origins));
}

Value strip(const Value& value, const Text* characters, bool left, bool right) {
  const std::u32string& chars = plain(value).chars;
  const auto goes = [&](char32_t c) {
    return characters == nullptr ? is_space(c) : characters->chars.find(c) != std::u32string::npos;
  };
  std::size_t start = 0, stop = chars.size();
  while (left && start < stop && goes(chars[start])) ++start;
  while (right && stop > start && goes(chars[stop - 1])) --stop;
  return cut(value, start, stop);
}

Value split(const Value& value, const Text* separator, std::int64_t most) {
  const std::u32string& chars = plain(value).chars;
  List* list = new List;
  Value out = Value::of(Kind::list, list);
  std::size_t at = 0;
  if (separator == nullptr) {
    if (most >= 0) throw Bail{};
    while (true) {
      while (at < chars.size() && is_space(chars[at])) ++at;
      if (at == chars.size()) return out;
      std::size_t stop = at;
      while (stop < chars.size() && !is_space(chars[stop])) ++stop;
      list->entries.push_back(cut(value, at, stop));
      at = stop;
    }
  }
  if (separator->chars.empty()) throw Bail{};
  while (true) {
    const std::size_t found = most == 0 ? std::u32string::npos : chars.find(separator->chars, at);
    if (found == std::u32string::npos) break;
    if (most > 0) --most;
    list->entries.push_back(cut(value, at, found));
    at = found + separator->chars.size();
  }
  list->entries.push_back(cut(value, at, chars.size()));
  return out;
}

Value replace(const Value& value, const Text& old, const Value& fresh, std::int64_t most) {
  const std::u32string& chars = plain(value).chars;
  if (old.chars.empty()) throw Bail{};
  std::vector<Value> parts;
  std::size_t at = 0;
  while (most != 0) {
    const std::size_t found = chars.find(old.chars, at);
    if (found == std::u32string::npos) break;
    parts.push_back(cut(value, at, found));
    parts.push_back(fresh);
    at = found + old.chars.size();
    --most;
  }
  parts.push_back(cut(value, at, chars.size()));
  return concat(parts);
}

Value recased(const Value& value, Case to) {
  const Text& text = plain(value);
  if (!is_ascii(text.chars)) throw Bail{};
  std::u32string chars = text.chars;
  for (std::size_t k = 0; k < chars.size(); ++k) {
    const bool up = to == Case::upper || (to == Case::capital && k == 0);
    if (up && chars[k] >= U'a' && chars[k] <= U'z') chars[k] -= 32;
    if (!up && chars[k] >= U'A' && chars[k] <= U'Z') chars[k] += 32;
  }
  return made(std::move(chars), std::vector(text.origins));
}

bool truth(const Value& value) {
  switch (value.kind) {
    case Kind::missing:
    case Kind::generator:
    case Kind::opaque:
    case Kind::builtin:
      throw Bail{};
    case Kind::undefined:
    case Kind::none:
      return false;
    case Kind::boolean:
    case Kind::integer:
      return value.number != 0;
    case Kind::text:
      return !value.as_text().chars.empty();
    case Kind::list:
    case Kind::tuple:
    case Kind::view:
      return !static_cast<const List&>(*value.object).entries.empty();
    case Kind::dict:
      return !static_cast<const Dict&>(*value.object).entries.empty();
    case Kind::names:
    case Kind::loop:
    case Kind::macro:
      return true;
  }
  throw Bail{};
}

bool equal(const Value& left, const Value& right) {
  if (left.kind >= Kind::generator || right.kind >= Kind::generator) throw Bail{};
  if (is_number(left) && is_number(right)) return left.number == right.number;
  if (left.kind != right.kind) return false;
  switch (left.kind) {
    case Kind::undefined:
    case Kind::none:
      return true;
    case Kind::text:
      return left.as_text().chars == right.as_text().chars;
    case Kind::list:
    case Kind::tuple: {
      const auto& a = static_cast<const List&>(*left.object).entries;
      const auto& b = static_cast<const List&>(*right.object).entries;
      if (a.size() != b.size()) return false;
      for (std::size_t k = 0; k < a.size(); ++k) {
        if (!equal(a[k], b[k])) return false;
      }
      return true;
    }
    default:
      throw Bail{};
  }
}

bool less(const Value& left, const Value& right) {
  if (is_number(left) && is_number(right)) return left.number < right.number;
  if (left.kind == Kind::text && right.kind == Kind::text) return left.as_text().chars < right.as_text().chars;
  throw Bail{};
}

bool contains(const Value& container, const Value& entry) {
  if (entry.kind == Kind::opaque) throw Bail{};
  switch (container.kind) {
    case Kind::undefined:
      return false;
    case Kind::text:
      if (entry.kind != Kind::text) throw Bail{};
      return container.as_text().chars.find(entry.as_text().chars) != std::u32string::npos;
    case Kind::list:
    case Kind::tuple: {
      const auto& entries = static_cast<const List&>(*container.object).entries;
      return std::any_of(entries.begin(), entries.end(), [&](const Value& each) { return equal(each, entry); });
    }
    case Kind::dict:
      if (entry.kind == Kind::text) {
        return static_cast<const Dict&>(*container.object).find(entry.as_text().chars) != nullptr;
      }
      if (is_number(entry) || entry.kind == Kind::none || entry.kind == Kind::undefined) return false;
      throw Bail{};
    default:
      throw Bail{};
  }
}

std::int64_t length(const Value& value) {
  switch (value.kind) {
    case Kind::undefined:
      return 0;
    case Kind::text:
      return to_signed(value.as_text().chars.size());
    case Kind::list:
    case Kind::tuple:
    case Kind::view:
      return to_signed(static_cast<const List&>(*value.object).entries.size());
    case Kind::dict:
      return to_signed(static_cast<const Dict&>(*value.object).entries.size());
    default:
      throw Bail{};
  }
}

namespace {

std::u32string widened(std::string_view ascii) { return {ascii.begin(), ascii.end()}; }

}  // namespace

Value to_text(const Value& value) {
  switch (value.kind) {
    case Kind::text:
      return value;
    case Kind::undefined:
      return literal_text({});
    case Kind::none:
      return literal_text(U"None");
    case Kind::boolean:
    case Kind::integer: {
      std::u32string chars = value.kind == Kind::boolean ? (value.number != 0 ? U"True" : U"False")
                                                         : widened(std::to_string(value.number));
      return value.leaf >= 0 ? tracked_text(std::move(chars), value.leaf) : literal_text(std::move(chars));
    }
    default:
      throw Bail{};
  }
}

const std::vector<Value>& entries_of(const Value& value, std::vector<Value>& out) {
  switch (value.kind) {
    case Kind::undefined:
      return out;
    case Kind::generator: {
      List& list = static_cast<List&>(*value.object);
      if (list.used) throw Bail{};
      list.used = true;
      return list.entries;
    }
    case Kind::list:
    case Kind::tuple:
    case Kind::view:
      return static_cast<const List&>(*value.object).entries;
    case Kind::dict:
      for (const auto& [key, entry] : static_cast<const Dict&>(*value.object).entries) out.push_back(key);
      return out;
    case Kind::text: {
      const std::size_t size = plain(value).chars.size();
      for (std::size_t k = 0; k < size; ++k) out.push_back(cut(value, k, k + 1));
      return out;
    }
    default:
      throw Bail{};
  }
}

// -- JSON

namespace {

constexpr std::string_view hex = "0123456789abcdef";

void append_unit(std::u32string& out, std::uint32_t unit) {
  out += U"\\u";
  for (int shift = 12; shift >= 0; shift -= 4) out += static_cast<char32_t>(hex[(unit >> shift) & 15]);
}

// Appends the escape of a character; false: it stands for itself.
bool append_escape(std::u32string& out, char32_t c, bool ascii) {
  switch (c) {
    case U'"':
      out += U"\\\"";
      return true;
    case U'\\':
      out += U"\\\\";
      return true;
    case U'\n':
      out += U"\\n";
      return true;
    case U'\r':
      out += U"\\r";
      return true;
    case U'\t':
      out += U"\\t";
      return true;
    case U'\f':
      out += U"\\f";
      return true;
    case U'\b':
      out += U"\\b";
      return true;
    default:
      break;
  }
  if (c >= 0x20 && (!ascii || c < 0x7F)) return false;
  if (c > 0xFFFF) {
    append_unit(out, 0xD800 + ((static_cast<std::uint32_t>(c) - 0x10000) >> 10));
    append_unit(out, 0xDC00 + ((static_cast<std::uint32_t>(c) - 0x10000) & 0x3FF));
  } else {
    append_unit(out, static_cast<std::uint32_t>(c));
  }
  return true;
}

class Json {
 public:
  Json(bool ascii, std::int64_t indent) : ascii_(ascii), indent_(indent) {}

  void write(const Value& value, std::int64_t level) {
    if (level > 200) throw Bail{};
    if (value.kind == Kind::list || value.kind == Kind::tuple) {
      const auto& entries = static_cast<const List&>(*value.object).entries;
      if (entries.empty()) return add(U"[]");
      add(U"[");
      for (std::size_t k = 0; k < entries.size(); ++k) {
        separate(k, level);
        write(entries[k], level + 1);
      }
      close(level);
      return add(U"]");
    }
    if (value.kind == Kind::dict) {
      const auto& entries = static_cast<const Dict&>(*value.object).entries;
      if (entries.empty()) return add(U"{}");
      add(U"{");
      for (std::size_t k = 0; k < entries.size(); ++k) {
        separate(k, level);
        text(entries[k].first);
        add(U": ");
        write(entries[k].second, level + 1);
      }
      close(level);
      return add(U"}");
    }
    switch (value.kind) {
      case Kind::text:
        return text(value);
      case Kind::none:
        return add(U"null");
      case Kind::boolean:
        return number(value, value.number != 0 ? U"true" : U"false");
      case Kind::integer:
        return number(value, widened(std::to_string(value.number)));
      default:
        throw Bail{};
    }
  }

  Value done() { return made(std::move(chars_), std::move(origins_)); }

 private:
  void add(std::u32string_view literal) { chars_ += literal; }

  void separate(std::size_t number, std::int64_t level) {
    if (number > 0) add(indent_ < 0 ? U", " : U",");
    if (indent_ >= 0) line(level + 1);
  }

  void close(std::int64_t level) {
    if (indent_ >= 0) line(level);
  }

  void line(std::int64_t level) {
    chars_ += U'\n';
    chars_.append(static_cast<std::size_t>(level * indent_), U' ');
  }

  void number(const Value& value, std::u32string_view shown) {
    const std::int64_t at = to_signed(chars_.size()), size = to_signed(shown.size());
    chars_ += shown;
    if (value.leaf >= 0) origins_.push_back({at, at + size, value.leaf, 0, size});
  }

  // origin.py's _escaped: where nothing is escaped the origins stay as they are, else they are cut around each escape.
  void text(const Value& value) {
    const Text& text = plain(value);
    add(U"\"");
    std::size_t done = 0;
    std::u32string escape;
    for (std::size_t k = 0; k < text.chars.size(); ++k) {
      escape.clear();
      if (!append_escape(escape, text.chars[k], ascii_)) continue;
      append(cut(value, done, k));
      const Value origin = cut(value, k, k + 1);
      const std::int64_t at = to_signed(chars_.size());
      if (!origin.as_text().origins.empty()) {
        const auto& [a, b, source, c, d] = origin.as_text().origins.front();
        origins_.push_back({at, at + to_signed(escape.size()), source, c, d});
      }
      chars_ += escape;
      done = k + 1;
    }
    append(cut(value, done, text.chars.size()));
    add(U"\"");
  }

  void append(const Value& part) {
    append_shifted(origins_, part.as_text().origins, to_signed(chars_.size()));
    chars_ += part.as_text().chars;
  }

  bool ascii_;
  std::int64_t indent_;
  std::u32string chars_;
  std::vector<Origin> origins_;
};

}  // namespace

Value to_json(const Value& value, bool ascii, std::int64_t indent) {
  Json json(ascii, indent);
  json.write(value, 0);
  return json.done();
}

}  // namespace maskpipe
