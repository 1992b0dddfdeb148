// What a template's expressions do with values: operators, attributes and items; methods, filters and tests by name.
// Values in, a value out. Bail where Python has to do it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tracked.h"

namespace maskpipe {

// A text that is not marked safe; Bail for anything else.
const Text& text_of(const Value& value);
bool is_integer(const Value& value);

Value sum(const std::vector<Value>& terms);
Value arithmetic(char32_t sign, const Value& left, const Value& right);
bool compared(char32_t sign, const Value& left, const Value& right);
// `hidden`: a text, a list or a number has such an attribute; `hidden_by_dict`: a dict has.
Value attribute_of(const Value& value, const std::u32string& name, bool hidden, bool hidden_by_dict);
// `hidden`: the index may also be the name of an attribute of what has no such item.
Value item_of(const Value& value, const Value& index, bool hidden);
Value slice_of(const Value& value, const Value& first, const Value& last, bool backwards);

Value method_of(const Value& owner, std::u32string_view name, const std::vector<Value>& arguments);
Value filtered(std::u32string_view name, const Value& value, const std::vector<Value>& arguments);
bool tested(std::u32string_view name, const Value& value, const std::vector<Value>& arguments);

}  // namespace maskpipe
