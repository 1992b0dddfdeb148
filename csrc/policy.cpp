#include "policy.h"

#include <algorithm>
#include <utility>

#include "facts.h"

namespace maskpipe {

bool chosen(const Policy& policy, std::size_t turn, std::size_t turns) {
  if (!policy.turns) return true;
  const auto from_start = static_cast<std::int64_t>(turn), from_end = from_start - static_cast<std::int64_t>(turns);
  return std::ranges::any_of(*policy.turns,
                             [&](std::int64_t number) { return number == from_start || number == from_end; });
}

void decide(const Policy& policy, const FactsView& runs, const Turns& turns, Decided& out) {
  out.allowed.clear();
  bool own_allowed = false;
  for (std::size_t turn = 0; turn < turns.messages.size(); ++turn) {
    const std::uint8_t verdict = turns.verdicts[turn];
    if (!chosen(policy, turn, turns.messages.size()) || verdict & verdict::refused) continue;
    if (turns.messages[turn] == turns.own) own_allowed = true;
    if (policy.accept_rewritten || !(verdict & verdict::history_differs)) out.allowed.push_back(turns.messages[turn]);
  }
  // The document's first token is never trained, which is no word about the rest of its run.
  decide_loss(policy.rule, runs, {turns.own >= 0 && !own_allowed, turns.own, out.allowed}, true, out.kind, out.loss);
}

std::vector<std::uint8_t> decide(const Policy& policy, const FactsView& runs, const Turns& turns) {
  Decided out;
  decide(policy, runs, turns, out);
  return std::move(out.loss);
}

}  // namespace maskpipe
