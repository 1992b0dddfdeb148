#include "policy.h"

#include <algorithm>

#include "facts.h"

namespace maskpipe {

bool chosen(const Policy& policy, std::size_t turn, std::size_t turns) {
  if (!policy.turns) return true;
  const auto from_start = static_cast<std::int64_t>(turn), from_end = from_start - static_cast<std::int64_t>(turns);
  return std::ranges::any_of(*policy.turns,
                             [&](std::int64_t number) { return number == from_start || number == from_end; });
}

namespace {

template <typename Value>
std::vector<Value> first_twice(std::span<const Value> values) {
  std::vector<Value> out(values.begin(), values.end());
  if (!out.empty()) out.insert(out.begin(), out.front());
  return out;
}

}  // namespace

std::vector<std::uint8_t> decide(const Policy& policy, const FactsView& runs, const Turns& turns) {
  std::vector<std::int64_t> allowed;
  bool own_allowed = false;
  for (std::size_t turn = 0; turn < turns.messages.size(); ++turn) {
    const std::uint8_t verdict = turns.verdicts[turn];
    if (!chosen(policy, turn, turns.messages.size()) || verdict & verdict::refused) continue;
    if (turns.messages[turn] == turns.own) own_allowed = true;
    if (policy.accept_rewritten || !(verdict & verdict::history_differs)) allowed.push_back(turns.messages[turn]);
  }
  // The first token stands alone before its run, so that what is never trained is not a whole run.
  const std::vector<std::uint8_t> roles = first_twice(runs.roles), parts = first_twice(runs.parts),
                                  flags = first_twice(runs.flags);
  const std::vector<std::int32_t> messages = first_twice(runs.messages);
  std::vector<std::uint8_t> out =
      mark_loss(policy.rule, {roles, parts, flags, messages, {}}, {turns.own >= 0 && !own_allowed, turns.own, allowed});
  if (!out.empty()) out.erase(out.begin());
  for (std::uint8_t& value : out) value = (value & flag::loss) != 0;
  return out;
}

}  // namespace maskpipe
