// The loss of runs, decided anew: csrc/loss.h over the runs of a document instead of its tokens, and which of its turns
// may train, as maskpipe/policy.py says it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "loss.h"

namespace maskpipe {

struct Policy {
  LossRule rule;
  std::optional<std::vector<std::int32_t>> turns;  // assistant turns from 0, negative from the end; none: all
  bool accept_rewritten;
};

// What is known of the assistant turns of a document.
struct Turns {
  std::span<const std::int32_t> messages;  // [turns], increasing
  std::span<const std::uint8_t> verdicts;  // [turns]
  std::int32_t own;                        // the message of its only trainable turn, or -1
};

// May the assistant turn number `turn` of `turns` be trained, as far as the policy lists turns?
bool chosen(const Policy& policy, std::size_t turn, std::size_t turns);

// 0 or 1 per run, for all of its tokens but the document's first, which never has loss. `runs` are the facts of the
// runs of one document, without weights: a weight of 0 takes the loss away, which is left to the caller.
std::vector<std::uint8_t> decide(const Policy& policy, const FactsView& runs, const Turns& turns);

// What decide() needs, kept between documents.
struct Decided {
  std::vector<std::uint8_t> loss;  // [runs] what decide() returns
  std::vector<std::uint8_t> kind;
  std::vector<std::int64_t> allowed;
};
void decide(const Policy& policy, const FactsView& runs, const Turns& turns, Decided& out);

}  // namespace maskpipe
