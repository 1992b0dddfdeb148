// The values of a chat template in the core: text that knows where its characters came from, and what holds it.
//
//   Text      characters and origins, as template/origin.py has them: (start, end, source, first, last)
//   Value     undefined, null, a number, a Text, or an object that holds values
//
// Everything here does exactly what the Python tracker does, or throws Bail: then the Python tracker renders it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "spans.h"

namespace maskpipe {

// What the core does not do as Python would: no error, but work for the Python tracker.
struct Bail {};

class Object {
 public:
  virtual ~Object() = default;
  std::int64_t references = 0;
};

template <typename Kind>
class Ref {
 public:
  Ref() = default;
  explicit Ref(Kind* object) : object_(object) {
    if (object_ != nullptr) ++object_->references;
  }
  Ref(const Ref& other) : Ref(other.object_) {}
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() {
    if (object_ != nullptr && --object_->references == 0) delete object_;
  }
  Kind* get() const { return object_; }
  Kind& operator*() const { return *object_; }
  Kind* operator->() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  Kind* object_ = nullptr;
};

struct Text final : Object {
  std::u32string chars;
  std::vector<Origin> origins;  // ascending, not overlapping; what none covers is literal text not printed yet
  bool safe = false;            // by the `safe` filter: only printing it is the same as printing any text
};

enum class Kind : std::uint8_t {
  missing,    // a variable that is not set; never a value of an expression
  undefined,  // Jinja's Undefined
  none,
  boolean,
  integer,
  text,
  list,
  tuple,
  generator,  // what a filter yields once
  view,       // a range, or what a method of an object yields: only gone over and counted
  dict,
  names,  // a template's namespace
  loop,
  macro,
  builtin,
  opaque,  // a value of the data that the core does not look into
};

struct Value {
  Kind kind = Kind::undefined;
  std::int32_t leaf = -1;   // of a number or boolean of the data
  std::int64_t number = 0;  // boolean, integer; which builtin
  Ref<Object> object;

  static Value none() { return {Kind::none, -1, 0, {}}; }
  static Value boolean(bool value) { return {Kind::boolean, -1, value, {}}; }
  static Value integer(std::int64_t value) { return {Kind::integer, -1, value, {}}; }
  static Value of(Kind kind, Object* object) { return {kind, -1, 0, Ref<Object>(object)}; }
  static Value text(Text* text) { return of(Kind::text, text); }

  const Text& as_text() const { return static_cast<const Text&>(*object); }
};

struct List final : Object {
  std::vector<Value> entries;
  bool used = false;  // a generator gives its entries once
};

struct Dict final : Object {
  std::vector<std::pair<Value, Value>> entries;  // keys are texts, each once
  std::int32_t message = -1;                     // the message of the conversation that this is

  const Value* find(std::u32string_view key) const;
};

struct Names final : Object {
  std::vector<std::pair<std::u32string, Value>> entries;

  const Value* find(std::u32string_view name) const;
};

// -- text, as the functions and methods of these names in template/origin.py

Value literal_text(std::u32string chars);
Value tracked_text(std::u32string chars, std::int64_t leaf);
Value cut(const Value& text, std::size_t start, std::size_t stop);
Value concat(const std::vector<Value>& parts);
Value strip(const Value& text, const Text* characters, bool left, bool right);
Value split(const Value& text, const Text* separator, std::int64_t most);
Value replace(const Value& text, const Text& old, const Value& fresh, std::int64_t most);
enum class Case { upper, lower, capital };
Value recased(const Value& text, Case to);  // of ASCII
bool is_space(char32_t character);          // as str.isspace

// -- values

bool truth(const Value& value);
bool equal(const Value& left, const Value& right);
bool less(const Value& left, const Value& right);
bool contains(const Value& container, const Value& entry);
std::int64_t length(const Value& value);
// `str(value)`: texts, numbers, None, undefined.
Value to_text(const Value& value);
// What a loop goes over; a generator is used up.
const std::vector<Value>& entries_of(const Value& value, std::vector<Value>& made);
// json.dumps with the origins of its strings and numbers; indent < 0: on one line.
Value to_json(const Value& value, bool ascii, std::int64_t indent);

}  // namespace maskpipe
