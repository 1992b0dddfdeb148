// The usual assistant turn: what template/sampled.py establishes about it where nothing is out of the ordinary.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "chat_template.h"

namespace maskpipe {

// A rendering of all messages, with where the text of each stands.
struct Shown {
  Rendering rendering;
  const Input* input = nullptr;
  // message → its first and its last own text, as numbers of origins; -1 for none
  std::vector<std::pair<std::int64_t, std::int64_t>> own;
  std::vector<std::uint8_t> literal;  // [messages] was literal text of it printed?

  Shown(Rendering made, const Input& of);
};

// Does it show every leaf that is no role name, white space aside? Where it does, lost.py finds nothing lost.
bool shows_all(const Shown& shown);

struct Tail {
  std::u32string text;
  std::int64_t own = 0;  // how much of it was printed while the template's loop stood on the turn
};

struct UsualTurn {
  std::int64_t start = 0;  // first sampled character
  std::int64_t own_end = 0;
  std::int64_t supplied = 0;  // characters of an empty reasoning block at its start
  Tail tail;                  // after the own text
  Tail alone;                 // the same where the turn is last
};

// What usual_turn looks for; see Habits of template/habits.py.
struct TurnHabits {
  std::u32string header;                     // without white space around
  std::vector<std::u32string> finals;        // tokens that end a last turn
  std::vector<std::u32string> middles;       // tokens that end turns before it
  std::vector<std::u32string> empty_blocks;  // empty reasoning, longest first
  // What was found about the stop token between the same literal texts: where it stands in the tail, if it does.
  std::unordered_map<std::u32string, std::optional<std::pair<std::int64_t, std::int64_t>>> stops;

  // Where the stop token stands, if the same was asked before and there was one.
  std::optional<std::pair<std::int64_t, std::int64_t>> stop_of(bool is_last, const Tail& tail, const Tail& alone) const;
  void remember(bool is_last, const Tail& tail, const Tail& alone,
                std::optional<std::pair<std::int64_t, std::int64_t>> stop, std::size_t most);
};

struct Looked {
  bool needs_comparison = false;  // a rendering that was looked at has to be made by the Python tracker first
  std::optional<UsualTurn> found;
};

// The turn of message `index`, where its prompt begins the text and so does it as the last one, the template adds no
// header of its own after the prompt, both texts go on with the same turn (an empty reasoning block more or less), no
// other data is inside, and none of these tokens stands in it: finals from the start on, middles before its own text.
// Nothing where any of it does not hold, or the core does not render what it takes. `one_in` as in needs_comparison; 0
// where that is done.
Looked usual_turn(const ChatTemplate& by, const Shown& whole, std::int64_t index, const TurnHabits& habits,
                  std::uint64_t one_in);

}  // namespace maskpipe
