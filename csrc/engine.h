// A chat template as a tree of nodes, run over tracked values: what template/environment.py makes Jinja2 do, faster.
//
//   jinja2's tree ─template/program.py─▶ Node ─Program─▶ run(variables) ─▶ Rendering: text, origins, what was printed
//
// Names are slots, decided by Jinja2's own analysis of scopes. A node that the core does not know is `bail`.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tracked.h"

namespace maskpipe {

enum class Op : std::uint8_t {
  // statements
  bail,         // not known here
  block,        // kids one after another
  data,         // literal text
  print,        // kid
  print_sum,    // kids, each printed, once all are known
  branch,       // kids: test, then, else
  loop,         // kids: target, what to go over, body, else; numbers: slot of `loop` or -1
  assign,       // kids: target, value
  capture,      // kids: target, body
  macro,        // numbers: slot, slots inside, parameters; kids: loads, defaults ("bail" for none), body
  inline_body,  // kid: what it gathers is printed
  enter,        // kid: the message that a loop stands on
  remember,
  restore,
  stop_loop,
  next_turn,
  resolve,  // numbers: slot; text: a variable's name
  alias,    // numbers: slot, hops, slot
  forget,   // numbers: slot
  // targets
  store,       // numbers: slot
  store_name,  // of a namespace; numbers: hops, slot; text: name
  unpack,      // kids: targets
  // expressions
  constant,    // numbers: Kind, number; text
  variable,    // numbers: hops, slot
  list,        // kids
  tuple,       // kids
  dict,        // kids: key, value, ...
  attribute,   // kid; text; numbers: 1 where it is also an attribute of a text, a list or a number; of a dict
  loop_field,  // kid; text: an attribute of a variable called loop
  item,        // kids: value, index; numbers: 1 where it is also an attribute of some value
  slice,       // kids: value, start, stop (none where left out); numbers: step, 1 or -1
  call,        // kids: function, arguments; numbers: how many are keyword arguments, which come last
  keyword,     // kid; text
  method,      // kids: value, arguments; text: name
  filter,      // kids: value, arguments; text: name
  test,        // kids: value, arguments; text: name
  add,         // kids: terms
  join,        // kids: `~`
  arithmetic,  // kids: left, right; text: operator
  negative,    // kid
  compare,     // kids: first, others; text: one letter per comparison
  both,
  either,
  negate,
  choose,  // kids: test, then, else
};

struct Node {
  Op op = Op::bail;
  std::int32_t id = 0;
  std::vector<std::int64_t> numbers;
  std::u32string text;
  std::vector<std::unique_ptr<Node>> kids;
  Value value;  // of a constant; the literal of `data`
};

enum Builtin : std::int64_t { builtin_range, builtin_namespace, builtin_clock };

// Another rendering, which a new one is expected to begin as or to begin: the two are compared where the new one is
// printed, and what both have is not kept again.
struct Beside {
  std::u32string_view text;
  bool only = false;          // the new one must be the beginning of `text`, else Differs; nothing of it is kept
  std::int64_t message = -1;  // whose own text is to be told: Rendering::own
  std::span<const Leaf> leaves;
};

// The new rendering is no beginning of the one beside it.
struct Differs {};

struct Rendering {
  std::u32string text;                // without its first `shared` characters
  std::size_t shared = 0;             // how many are those of the text beside it; 0 where there is none
  std::vector<Origin> origins;        // contiguous, as render.py's _coalesced leaves them
  std::vector<std::int32_t> none_at;  // the message at which null was printed as None
  std::vector<std::int32_t> touched;  // ids of the nodes that were run and are not settled
  // Beside another one: the first and the last own text of its message, as numbers of origins, -1 for none; and
  // whether literal text of that message was printed.
  std::pair<std::int64_t, std::int64_t> own = {-1, -1};
  bool is_own_literal = false;

  std::size_t size() const { return shared + text.size(); }
};

using Variables = std::vector<std::pair<std::u32string, Value>>;

class Program {
 public:
  // `nodes`: how many, ids are 0..nodes-1; `slots` of the root. `clock`: what strftime_now gives for each format.
  Program(std::unique_ptr<Node> root, std::int32_t nodes, std::int32_t slots,
          std::vector<std::pair<std::u32string, std::u32string>> clock);

  // Bail where Python has to do it; Differs as `beside` says.
  Rendering run(const Variables& variables, const Beside* beside = nullptr) const;

  // A rendering was compared with the reference: the nodes it touched are one comparison nearer to being settled.
  void agree(const std::vector<std::int32_t>& touched);

  std::vector<std::uint8_t> agreed;  // [nodes]
  const std::vector<std::pair<std::u32string, std::u32string>>& clock() const { return clock_; }
  const Node& root() const { return *root_; }
  std::int32_t slots() const { return slots_; }

 private:
  std::unique_ptr<Node> root_;
  std::int32_t slots_;
  std::vector<std::pair<std::u32string, std::u32string>> clock_;
};

// Comparisons after which a node is settled.
inline constexpr std::uint8_t settled = 8;

}  // namespace maskpipe
