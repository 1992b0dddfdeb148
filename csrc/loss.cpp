#include "loss.h"

#include <algorithm>
#include <stdexcept>

#include "facts.h"

namespace maskpipe {
namespace {

void check(const FactsView& facts) {
  const std::size_t size = facts.roles.size();
  if (facts.parts.size() != size || facts.flags.size() != size || facts.messages.size() != size ||
      (!facts.weights.empty() && facts.weights.size() != size)) {
    throw std::invalid_argument("roles, parts, flags, messages and weights must have one length");
  }
}

}  // namespace

void set_kinds(const FactsView& facts, std::vector<std::uint8_t>& out) {
  check(facts);
  const auto& [roles, parts, flags, messages, weights] = facts;
  const std::size_t size = parts.size();
  out.assign(parts.begin(), parts.end());
  const auto loose = [&](std::size_t k) { return flags[k] & flag::sampled && parts[k] == part::scaffold; };
  for (std::size_t start = 0; start < size;) {
    if (!loose(start)) {
      ++start;
      continue;
    }
    std::size_t stop = start + 1;
    while (stop < size && loose(stop)) ++stop;
    const std::uint8_t after = stop < size && messages[stop] == messages[start] ? parts[stop] : part::none;
    const std::uint8_t before = start > 0 && messages[start - 1] == messages[start] ? parts[start - 1] : part::none;
    for (const std::uint8_t neighbour : {after, before}) {
      if (neighbour == part::tool_call || neighbour == part::reasoning) {
        std::fill(out.begin() + static_cast<std::ptrdiff_t>(start), out.begin() + static_cast<std::ptrdiff_t>(stop),
                  neighbour);
        break;
      }
    }
    start = stop;
  }
}

std::vector<std::uint8_t> kinds(const FactsView& facts) {
  std::vector<std::uint8_t> out;
  set_kinds(facts, out);
  return out;
}

std::vector<std::uint8_t> mark_loss(const LossRule& rule, const FactsView& facts, const Trainable& trainable) {
  std::vector<std::uint8_t> kind, out;
  decide_loss(rule, facts, trainable, false, kind, out);
  for (std::size_t k = 0; k < out.size(); ++k) {
    out[k] = static_cast<std::uint8_t>(out[k] ? facts.flags[k] | flag::loss : facts.flags[k] & ~flag::loss);
  }
  return out;
}

void decide_loss(const LossRule& rule, const FactsView& facts, const Trainable& trainable, bool first_too,
                 std::vector<std::uint8_t>& kind, std::vector<std::uint8_t>& out) {
  set_kinds(facts, kind);
  const auto& [roles, parts, flags, messages, weights] = facts;
  out.resize(flags.size());
  auto may_train = [&, asked = std::int64_t{-2}, answer = false](std::int64_t message) mutable {
    if (message != asked) {  // tokens of one message stand together
      asked = message;
      answer = std::find(trainable.messages.begin(), trainable.messages.end(), message) != trainable.messages.end();
    }
    return answer;
  };
  for (std::size_t k = 0; k < out.size(); ++k) {
    bool loss = false;
    for (const auto& [add, role, part] : rule.selectors) {
      bool chosen = role < 0 || roles[k] == role;
      if (part >= 0) {
        chosen = chosen && kind[k] == part;
      } else if (role >= 0 && role != role::assistant) {
        chosen = chosen && kind[k] != part::scaffold;
      }
      if (role == role::assistant && add) chosen = chosen && flags[k] & flag::sampled;
      if (chosen) loss = add != 0;
    }
    if (flags[k] & flag::straddles) loss = false;
    if (loss && !rule.everything) {
      if (trainable.none) {
        loss = false;
      } else if (trainable.own >= 0) {
        loss = messages[k] == trainable.own;
      } else if (roles[k] == role::assistant) {
        loss = may_train(messages[k]);
      }
    }
    if (!rule.empty_reasoning && flags[k] & flag::empty_reasoning) loss = false;
    if (!weights.empty() && weights[k] == 0) loss = false;
    if (k == 0 && !first_too) loss = false;
    out[k] = loss;
  }
}

}  // namespace maskpipe
