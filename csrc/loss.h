// Loss: which tokens of a document get it, from their facts alone. maskpipe/policy.py says what the parts mean.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace maskpipe {

// (1 to add or 0 to take away, role or -1 for all, part or -1 for what the role says).
using Selector = std::array<std::int64_t, 3>;

struct LossRule {
  std::vector<Selector> selectors;  // from left to right
  bool everything = false;          // verdicts of turns forbid nothing
  bool empty_reasoning = false;     // empty reasoning blocks train too
};

// Facts of the tokens of one document; all of one length.
struct FactsView {
  std::span<const std::uint8_t> roles;
  std::span<const std::uint8_t> parts;
  std::span<const std::uint8_t> flags;
  std::span<const std::int32_t> messages;
  std::span<const float> weights;  // [tokens], or empty: 1 everywhere
};

// Which assistant turns may train.
struct Trainable {
  bool none = false;                       // nothing at all
  std::int64_t own = -1;                   // >= 0: only tokens of this message
  std::span<const std::int64_t> messages;  // else: assistant tokens of these messages, and all other tokens
};

// [tokens] the part that each token belongs to: a run of sampled literal text goes with the tool call or the reasoning
// of the same message that stands after it, else before it.
std::vector<std::uint8_t> kinds(const FactsView& facts);
void set_kinds(const FactsView& facts, std::vector<std::uint8_t>& out);

// [tokens] the flags with flag::loss set where the rule says so and cleared elsewhere; never set on the first token.
// std::invalid_argument when the facts differ in length.
std::vector<std::uint8_t> mark_loss(const LossRule& rule, const FactsView& facts, const Trainable& trainable);

// The same into vectors that are kept between documents: `kind` as kinds() says it, and in `out` 0 or 1 instead of
// flags. `first_too`: the first entry is decided as all others are.
void decide_loss(const LossRule& rule, const FactsView& facts, const Trainable& trainable, bool first_too,
                 std::vector<std::uint8_t>& kind, std::vector<std::uint8_t>& out);

}  // namespace maskpipe
