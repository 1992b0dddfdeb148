#include "chat_line.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <utility>

#include "facts.h"

namespace maskpipe {
namespace {

constexpr std::size_t max_bytes = 1'000'000;  // more could hold more values than strict_json.py takes
constexpr std::size_t max_digits = 15;

// The line is not usual.
struct Unusual {};

class Reader {
 public:
  Reader(std::string_view line, const std::vector<std::string>& meant, std::size_t max_messages, Input& out)
      : at_(line.data()), end_(line.data() + line.size()), meant_(meant), max_messages_(max_messages), out_(out) {}

  void line() {
    expect('{');
    std::vector<std::u32string> names;
    bool any = false;
    do {
      space();
      std::u32string name = text();
      if (std::find(names.begin(), names.end(), name) != names.end()) throw Unusual{};
      expect(':');
      if (name == U"messages") {
        messages();
        any = true;
      } else {
        const bool ascii = std::all_of(name.begin(), name.end(), [](char32_t c) { return c < 128; });
        if (ascii && std::binary_search(meant_.begin(), meant_.end(), std::string(name.begin(), name.end()))) {
          throw Unusual{};
        }
        other();
      }
      names.push_back(std::move(name));
    } while (next(','));
    expect('}');
    space();
    if (at_ != end_ || !any) throw Unusual{};
  }

 private:
  void messages() {
    expect('[');
    do {
      message();
      if (out_.messages.size() > max_messages_) throw Unusual{};
    } while (next(','));
    expect(']');
  }

  void message() {
    static thread_local const Value role_name = literal_text(U"role"), content_name = literal_text(U"content");
    const auto index = static_cast<std::int64_t>(out_.messages.size());
    expect('{');
    std::array<std::u32string, 2> values;
    bool role_first = false, seen[2] = {false, false};
    for (int k = 0; k < 2; ++k) {
      if (k == 1) expect(',');
      space();
      const std::u32string key = text();
      const bool is_content = key == U"content";
      if ((!is_content && key != U"role") || std::exchange(seen[is_content ? 1 : 0], true)) throw Unusual{};
      if (k == 0) role_first = !is_content;
      expect(':');
      space();
      values[is_content ? 1 : 0] = text();
    }
    expect('}');
    const std::int64_t role = role_of(values[0]);
    Dict* dict = new Dict;
    const Value out = Value::of(Kind::dict, dict);
    dict->message = static_cast<std::int32_t>(index);
    for (int k = 0; k < 2; ++k) {
      const bool is_role = (k == 0) == role_first;
      const std::int64_t part = is_role ? part::scaffold : part::content;
      dict->entries.emplace_back(is_role ? role_name : content_name,
                                 leaf(std::move(values[is_role ? 0 : 1]), index, role, part));
    }
    out_.roles.push_back(role);
    out_.messages.push_back(out);
  }

  Value leaf(std::u32string text, std::int64_t message, std::int64_t role, std::int64_t part) {
    if (text.empty()) return literal_text({});
    const auto number = static_cast<std::int64_t>(out_.leaves.size());
    const std::int64_t inline_end = part == part::content ? end_of_inline_reasoning(role, text) : 0;
    out_.leaves.push_back({role, part, message, inline_end});
    out_.texts.push_back(tracked_text(std::move(text), number));
    return out_.texts.back();
  }

  static std::int64_t role_of(std::u32string_view name) {
    const std::int64_t role = role_named(name);
    if (role < 0) throw Unusual{};
    return role;
  }

  // A value that means nothing: a text, a short number, true, false or null.
  void other() {
    space();
    if (at_ == end_) throw Unusual{};
    switch (*at_) {
      case '"':
        text();
        return;
      case 't':
        return word("true");
      case 'f':
        return word("false");
      case 'n':
        return word("null");
      default:
        number();
    }
  }

  void word(std::string_view expected) {
    if (std::string_view(at_, static_cast<std::size_t>(end_ - at_)).substr(0, expected.size()) != expected) {
      throw Unusual{};
    }
    at_ += expected.size();
  }

  std::size_t digits() {
    const char* begin = at_;
    while (at_ != end_ && *at_ >= '0' && *at_ <= '9') ++at_;
    return static_cast<std::size_t>(at_ - begin);
  }

  void number() {
    next('-', false);
    const char first = at_ != end_ ? *at_ : '\0';
    const std::size_t whole = digits();
    if (whole == 0 || whole > max_digits || (first == '0' && whole > 1)) throw Unusual{};
    if (at_ != end_ && *at_ == '.') {
      ++at_;
      const std::size_t fraction = digits();
      if (fraction == 0 || fraction > max_digits) throw Unusual{};
    }
    if (at_ != end_ && (*at_ == 'e' || *at_ == 'E')) throw Unusual{};
  }

  void space() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
  }

  bool next(char wanted, bool after_space = true) {
    if (after_space) space();
    if (at_ == end_ || *at_ != wanted) return false;
    ++at_;
    return true;
  }

  void expect(char wanted) {
    if (!next(wanted)) throw Unusual{};
  }

  std::u32string text() {
    if (at_ == end_ || *at_ != '"') throw Unusual{};
    const char* close = ++at_;
    while (close != end_ && *close != '"') close += *close == '\\' && close + 1 != end_ ? 2 : 1;
    if (close == end_) throw Unusual{};
    std::u32string out(static_cast<std::size_t>(close - at_), U'\0');
    char32_t* to = out.data();
    while (at_ != close) {
      const auto byte = static_cast<std::uint8_t>(*at_);
      if (byte < 0x20) throw Unusual{};
      if (byte == '\\') {
        *to++ = escaped();
      } else if (byte < 0x80) {
        *to++ = byte;
        ++at_;
      } else {
        *to++ = encoded(byte);
      }
    }
    ++at_;
    out.resize(static_cast<std::size_t>(to - out.data()));
    return out;
  }

  char32_t escaped() {
    ++at_;
    switch (const char letter = *at_++) {  // a quote follows in any case
      case '"':
      case '\\':
      case '/':
        return static_cast<char32_t>(letter);
      case 'b':
        return U'\b';
      case 'f':
        return U'\f';
      case 'n':
        return U'\n';
      case 'r':
        return U'\r';
      case 't':
        return U'\t';
      case 'u':
        break;
      default:
        throw Unusual{};
    }
    const char32_t unit = hex();
    if (unit < 0xD800 || unit > 0xDFFF) return unit;
    if (unit > 0xDBFF || end_ - at_ < 2 || at_[0] != '\\' || at_[1] != 'u') throw Unusual{};
    at_ += 2;
    const char32_t low = hex();
    if (low < 0xDC00 || low > 0xDFFF) throw Unusual{};
    return 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00);
  }

  char32_t hex() {
    if (end_ - at_ < 4) throw Unusual{};
    char32_t out = 0;
    for (int k = 0; k < 4; ++k) {
      const char digit = *at_++;
      out <<= 4;
      if (digit >= '0' && digit <= '9') {
        out += static_cast<char32_t>(digit - '0');
      } else if (digit >= 'a' && digit <= 'f') {
        out += static_cast<char32_t>(digit - 'a' + 10);
      } else if (digit >= 'A' && digit <= 'F') {
        out += static_cast<char32_t>(digit - 'A' + 10);
      } else {
        throw Unusual{};
      }
    }
    return out;
  }

  // A character of several bytes; nothing but strict UTF-8.
  char32_t encoded(std::uint8_t first) {
    const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
    static constexpr std::array<char32_t, 4> least = {0, 0x80, 0x800, 0x10000};
    if (first < 0xC2 || first > 0xF4 || end_ - at_ <= more) throw Unusual{};
    char32_t out = first & (0x3F >> more);
    for (int k = 1; k <= more; ++k) {
      const auto byte = static_cast<std::uint8_t>(at_[k]);
      if ((byte & 0xC0) != 0x80) throw Unusual{};
      out = (out << 6) | (byte & 0x3F);
    }
    if (out < least[static_cast<std::size_t>(more)] || out > 0x10FFFF || (out >= 0xD800 && out <= 0xDFFF)) {
      throw Unusual{};
    }
    at_ += more + 1;
    return out;
  }

  const char *at_, *end_;
  const std::vector<std::string>& meant_;
  std::size_t max_messages_;
  Input& out_;
};

}  // namespace

std::optional<Input> read_chat_line(std::string_view line, const std::vector<std::string>& meant,
                                    std::size_t max_messages) {
  if (line.size() > max_bytes) return {};
  Input out;
  out.tools = out.documents = Value::none();
  try {
    Reader(line, meant, max_messages, out).line();
  } catch (const Unusual&) {
    return {};
  }
  return out;
}

}  // namespace maskpipe
