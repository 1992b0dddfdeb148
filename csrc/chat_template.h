// A chat template with its special tokens, and the conversations that it is shown.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine.h"

namespace maskpipe {

// What a conversation is made of, as render.py's `wrap` numbers it.
struct Input {
  std::vector<Leaf> leaves;         // (role, part, message, end of inline reasoning)
  std::vector<Value> texts;         // of each leaf; none for a number
  std::vector<std::int64_t> roles;  // of each message
  std::vector<Value> messages;
  Value tools, documents;
  Variables kwargs;
  bool foreign = false;  // holds what the core cannot show to a template
};

// The role that a name stands for, -1 where it is none of the standard ones.
std::int64_t role_named(std::u32string_view name);

// Where reasoning inside a content ends, its closing tag included; 0 where there is none.
std::int64_t end_of_inline_reasoning(std::int64_t role, std::u32string_view content);

struct ChatTemplate {
  std::unique_ptr<Program> program;
  Variables special;
  bool is_timed = false;
  mutable double seconds = 0;  // of processor time spent in renders, where is_timed

  // The first `count` messages, with a prompt for a new turn or without. Bail where Python has to do it, Differs as
  // `beside` says.
  Rendering render(const Input& input, std::int64_t count, bool prompt, const Beside* beside = nullptr) const;
};

// Whether the Python tracker has to make this rendering too: it ran nodes that are not settled, or it is one of
// `one_in`, chosen by a hash of how its text ends. `beside` is the text that it shares its beginning with.
bool needs_comparison(const Rendering& rendering, std::u32string_view beside, std::uint64_t one_in);

}  // namespace maskpipe
