// The usual assistant turn: what template/sampled.py establishes about it where nothing is out of the ordinary.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
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

// A rendering with the table of its leaves.
struct Shown {
  Rendering rendering;
  const Input* input = nullptr;
  // message → its first and its last own text, as numbers of origins; -1 for none
  std::vector<std::pair<std::int64_t, std::int64_t>> own;

  Shown(Rendering made, const Input& of);
  bool is_data(const Origin& entry) const;
  std::int64_t message_of(const Origin& entry) const;
  std::size_t first_at(std::int64_t position) const;
};

// Does it show every leaf that is no role name, white space aside? Where it does, lost.py finds nothing lost.
bool shows_all(const Shown& shown);

struct Tail {
  std::u32string_view text;
  std::int64_t own = 0;  // how much of it was printed while the template's loop stood on the turn
};

struct UsualTurn {
  std::int64_t start = 0;  // first sampled character
  std::int64_t own = 0;    // the turn's own text, as it is shown from there on
  std::int64_t own_end = 0;
  std::int64_t supplied = 0;  // characters of an empty reasoning block at its start
  Tail tail;                  // after the own text
  Tail alone;                 // the same where the turn is last
};

// What usual_turn looks for; see Habits of template/sampled.py.
struct TurnHabits {
  std::u32string header;                     // without white space around
  std::vector<std::u32string> finals;        // tokens that end a last turn
  std::vector<std::u32string> middles;       // tokens that end turns before it
  std::vector<std::u32string> empty_blocks;  // empty reasoning, longest first
};

// The turn of message `index`, where its prompt begins both texts, the template adds no header of its own after it,
// both texts go on with the same turn (an empty reasoning block more or less), no other data is inside, and none of
// these tokens stands in it: finals from the start on, middles before its own text. Nothing where any of it does not
// hold.
std::optional<UsualTurn> usual_turn(const Shown& whole, const Shown& alone, std::u32string_view prompt,
                                    std::int64_t index, const TurnHabits& habits);

}  // namespace maskpipe
