// A line of JSON that holds a usual chat and nothing else that matters ─▶ Input, without a Python object in between.
//
//   {"messages": [{"role": "user", "content": "Hi"}, …], "source": "forum", "id": 7}
//
// Usual: strict JSON as maskpipe/strict_json.py reads it; messages of exactly a role that is known and a text; beside
// them only texts, true, false, null and short numbers, in columns that mean nothing here. What is read is what
// strict_json.py, chat/messages.py and `wrap` make of such a line; any other line, a wrong one too, is theirs.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "chat_template.h"

namespace maskpipe {

// `meant` are the names of columns that mean something beside messages, ascending. Nothing where the line is not usual.
std::optional<Input> read_chat_line(std::string_view line, const std::vector<std::string>& meant,
                                    std::size_t max_messages);

}  // namespace maskpipe
