#include "usual.h"

#include <algorithm>

#include "facts.h"

namespace maskpipe {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

bool is_data(const Input& input, const Origin& entry) {
  return entry[2] >= 0 && input.leaves[to_size(entry[2])][1] != part::scaffold;
}

std::int64_t message_of(const Input& input, const Origin& entry) {
  return entry[2] >= 0 ? input.leaves[to_size(entry[2])][2] : -2 - entry[2];
}

// A rendering, and the text that it shares its beginning with.
struct Reading {
  const Rendering& rendering;
  const Input& input;
  std::u32string_view beside;

  // The characters start..stop; `held` keeps them where they stand in both.
  std::u32string_view between(std::int64_t start, std::int64_t stop, std::u32string& held) const {
    if (stop <= start) return {};
    const std::size_t from = to_size(start), to = to_size(stop), shared = rendering.shared;
    const std::u32string_view own = rendering.text;
    if (to <= shared) return beside.substr(from, to - from);
    if (from >= shared) return own.substr(from - shared, to - from);
    held.assign(beside.substr(from, shared - from));
    held.append(own.substr(0, to - shared));
    return held;
  }

  std::size_t first_at(std::int64_t position) const {
    const auto& origins = rendering.origins;
    const auto found = std::upper_bound(origins.begin(), origins.end(), position,
                                        [](std::int64_t at, const Origin& entry) { return at < entry[1]; });
    return static_cast<std::size_t>(found - origins.begin());
  }

  bool has_other_data(std::int64_t start, std::int64_t stop, std::int64_t index) const {
    if (stop <= start) return false;
    const auto& origins = rendering.origins;
    for (std::size_t k = first_at(start); k < origins.size() && origins[k][0] < stop; ++k) {
      if (is_data(input, origins[k]) && message_of(input, origins[k]) != index) return true;
    }
    return false;
  }

  // `known`: was literal text of the message printed?
  Tail literal_tail(std::int64_t start, std::int64_t index, bool known) const {
    const auto& origins = rendering.origins;
    std::int64_t stop = start, own = 0;
    for (std::size_t k = first_at(start); k < origins.size() && !is_data(input, origins[k]); ++k) {
      stop = origins[k][1];
      if (message_of(input, origins[k]) == index) own = stop - start;
    }
    std::u32string held;
    return {std::u32string(between(start, stop, held)), known ? own : stop - start};
  }
};

bool holds_any(std::u32string_view text, const std::vector<std::u32string>& tokens) {
  return std::any_of(tokens.begin(), tokens.end(), [text](const std::u32string& token) {
    return !token.empty() && text.find(token) != std::u32string_view::npos;
  });
}

// sampled.py's _same_turn: how much longer the head of the turn is in `text` than in `turn`.
std::optional<std::int64_t> same_turn(std::u32string_view text, std::u32string_view turn,
                                      const std::vector<std::u32string>& blocks) {
  const auto goes_on = [&](std::u32string_view there, std::u32string_view head) {
    return text.starts_with(there) && text.substr(there.size()).starts_with(turn.substr(head.size()));
  };
  const auto longer = [](std::u32string_view there, std::u32string_view head) {
    return static_cast<std::int64_t>(there.size()) - static_cast<std::int64_t>(head.size());
  };
  for (std::size_t k = blocks.size() + 1; k > 0; --k) {  // the head "" comes last
    const std::u32string_view head = k > 1 ? std::u32string_view(blocks[k - 2]) : std::u32string_view();
    if (!turn.starts_with(head)) continue;
    if (goes_on(head, head)) return 0;
    if (goes_on({}, head)) return longer({}, head);
    for (const std::u32string& there : blocks) {
      if (goes_on(there, head)) return longer(there, head);
    }
  }
  return {};
}

}  // namespace

namespace {

std::u32string key_of(bool is_last, const Tail& tail, const Tail& alone) {
  std::u32string out = {is_last, static_cast<char32_t>(tail.own), static_cast<char32_t>(alone.own),
                        static_cast<char32_t>(tail.text.size())};
  out += tail.text;
  out += alone.text;
  return out;
}

}  // namespace

std::optional<std::pair<std::int64_t, std::int64_t>> TurnHabits::stop_of(bool is_last, const Tail& tail,
                                                                         const Tail& alone) const {
  const auto found = stops.find(key_of(is_last, tail, alone));
  return found == stops.end() ? std::nullopt : found->second;
}

void TurnHabits::remember(bool is_last, const Tail& tail, const Tail& alone,
                          std::optional<std::pair<std::int64_t, std::int64_t>> stop, std::size_t most) {
  if (stops.size() >= most) stops.clear();
  stops[key_of(is_last, tail, alone)] = stop;
}

Shown::Shown(Rendering made, const Input& of) : rendering(std::move(made)), input(&of) {
  own.assign(of.roles.size(), {-1, -1});
  literal.assign(of.roles.size(), 0);
  for (std::size_t k = 0; k < rendering.origins.size(); ++k) {
    const Origin& entry = rendering.origins[k];
    const std::int64_t message = message_of(of, entry);
    if (message < 0 || to_size(message) >= own.size()) continue;
    if (entry[2] < 0) literal[to_size(message)] = 1;
    if (!is_data(of, entry)) continue;
    auto& [first, last] = own[to_size(message)];
    if (first < 0) first = static_cast<std::int64_t>(k);
    last = static_cast<std::int64_t>(k);
  }
}

bool shows_all(const Shown& shown) {
  if (!shown.rendering.none_at.empty()) return false;
  const Input& input = *shown.input;
  std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> ranges(input.leaves.size());
  for (const auto& [a, b, source, c, d] : shown.rendering.origins) {
    if (source < 0) continue;
    const std::int64_t start = c < 0 ? 0 : c;
    ranges[to_size(source)].emplace_back(start, c < 0 ? 0 : std::max(d, c + 1));
  }
  for (std::size_t leaf = 0; leaf < ranges.size(); ++leaf) {
    if (input.leaves[leaf][1] == part::scaffold) continue;
    if (input.texts[leaf].kind != Kind::text) return false;
    const std::u32string_view text = input.texts[leaf].as_text().chars;
    auto& shown_ranges = ranges[leaf];
    std::sort(shown_ranges.begin(), shown_ranges.end());
    shown_ranges.emplace_back(text.size(), text.size());
    std::int64_t at = 0;
    for (const auto& [start, stop] : shown_ranges) {
      for (std::int64_t k = at; k < start; ++k) {
        if (!is_space(text[to_size(k)])) return false;
      }
      at = std::max(at, stop);
    }
  }
  return true;
}

namespace {

// As usual_turn; `alone` is the conversation cut after the turn, nullptr where it is the last.
std::optional<UsualTurn> turn_in(const Shown& whole, const Rendering* alone, std::int64_t start, std::int64_t index,
                                 const TurnHabits& habits) {
  const std::u32string_view text = whole.rendering.text;
  const Reading here{whole.rendering, *whole.input, {}};
  const Reading last{alone != nullptr ? *alone : whole.rendering, *whole.input, text};
  const auto [first_own, last_own] = alone != nullptr ? alone->own : whole.own[to_size(index)];
  if (first_own < 0) return {};
  const std::int64_t alone_own = std::max(start, last.rendering.origins[to_size(first_own)][0]);
  const std::int64_t alone_end = last.rendering.origins[to_size(last_own)][1];
  if (alone_end <= start) return {};
  std::u32string held;
  if (!habits.header.empty()) {
    std::u32string_view head = last.between(start, alone_own, held);
    while (!head.empty() && is_space(head.front())) head.remove_prefix(1);
    if (head.starts_with(habits.header)) return {};
  }
  std::int64_t shift = 0;
  if (alone != nullptr) {
    const auto found =
        same_turn(text.substr(to_size(start)), last.between(start, alone_end, held), habits.empty_blocks);
    if (!found) return {};
    shift = *found;
  }
  const std::int64_t own = alone_own + shift, own_end = alone_end + shift;
  if (here.has_other_data(start, own_end, index)) return {};
  if (holds_any(here.between(start, own_end, held), habits.finals)) return {};
  if (holds_any(here.between(start, own, held), habits.middles)) return {};
  UsualTurn out{start, own_end, 0, here.literal_tail(own_end, index, whole.literal[to_size(index)] != 0), {}};
  out.alone = alone == nullptr ? out.tail : last.literal_tail(alone_end, index, alone->is_own_literal);
  const std::u32string_view head = here.between(start, own, held);
  for (const std::u32string& block : habits.empty_blocks) {
    if (head.starts_with(block)) {
      out.supplied = static_cast<std::int64_t>(block.size());
      break;
    }
  }
  return out;
}

}  // namespace

Looked usual_turn(const ChatTemplate& by, const Shown& whole, std::int64_t index, const TurnHabits& habits,
                  std::uint64_t one_in) {
  const std::u32string_view text = whole.rendering.text;
  const Input& input = *whole.input;
  try {
    Beside beside{text, true, index, input.leaves};
    const Rendering prompt = by.render(input, index, true, &beside);
    bool unsure = needs_comparison(prompt, text, one_in);
    std::optional<Rendering> alone;
    if (to_size(index) + 1 < input.messages.size()) {
      beside.only = false;
      alone = by.render(input, index + 1, false, &beside);
      if (alone->shared < prompt.shared) return {};
      unsure = unsure || needs_comparison(*alone, text, one_in);
    }
    if (unsure) return {true, {}};
    const auto start = static_cast<std::int64_t>(prompt.shared);
    return {false, turn_in(whole, alone ? &*alone : nullptr, start, index, habits)};
  } catch (const Bail&) {
    return {};
  } catch (const Differs&) {
    return {};
  }
}

}  // namespace maskpipe
