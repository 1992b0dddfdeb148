#include "usual.h"

#include <algorithm>
#include <cstring>

#include "facts.h"

namespace maskpipe {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

std::u32string_view between(const Shown& shown, std::int64_t start, std::int64_t stop) {
  if (stop <= start) return {};
  return std::u32string_view(shown.rendering.text).substr(to_size(start), to_size(stop - start));
}

// Many times as fast as starts_with, which compares character by character.
bool begins_with(std::u32string_view text, std::u32string_view start) {
  return text.size() >= start.size() && std::memcmp(text.data(), start.data(), start.size() * sizeof(char32_t)) == 0;
}

bool has_other_data(const Shown& shown, std::int64_t start, std::int64_t stop, std::int64_t index) {
  if (stop <= start) return false;
  const auto& origins = shown.rendering.origins;
  for (std::size_t k = shown.first_at(start); k < origins.size() && origins[k][0] < stop; ++k) {
    if (shown.is_data(origins[k]) && shown.message_of(origins[k]) != index) return true;
  }
  return false;
}

Tail literal_tail(const Shown& shown, std::int64_t start, std::int64_t index) {
  const auto& origins = shown.rendering.origins;
  std::int64_t stop = start, own = 0;
  for (std::size_t k = shown.first_at(start); k < origins.size() && !shown.is_data(origins[k]); ++k) {
    stop = origins[k][1];
    if (shown.message_of(origins[k]) == index) own = stop - start;
  }
  const bool known =
      std::any_of(origins.begin(), origins.end(), [index](const Origin& entry) { return entry[2] == -2 - index; });
  return {between(shown, start, stop), known ? own : stop - start};
}

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

Shown::Shown(Rendering made, const Input& of) : rendering(std::move(made)), input(&of) {
  own.assign(of.roles.size(), {-1, -1});
  for (std::size_t k = 0; k < rendering.origins.size(); ++k) {
    const Origin& entry = rendering.origins[k];
    if (!is_data(entry)) continue;
    const std::int64_t message = message_of(entry);
    if (message < 0) continue;
    auto& [first, last] = own[to_size(message)];
    if (first < 0) first = static_cast<std::int64_t>(k);
    last = static_cast<std::int64_t>(k);
  }
}

bool Shown::is_data(const Origin& entry) const {
  return entry[2] >= 0 && input->leaves[to_size(entry[2])][1] != part::scaffold;
}

std::int64_t Shown::message_of(const Origin& entry) const {
  return entry[2] >= 0 ? input->leaves[to_size(entry[2])][2] : -2 - entry[2];
}

std::size_t Shown::first_at(std::int64_t position) const {
  const auto& origins = rendering.origins;
  const auto found = std::upper_bound(origins.begin(), origins.end(), position,
                                      [](std::int64_t at, const Origin& entry) { return at < entry[1]; });
  return static_cast<std::size_t>(found - origins.begin());
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

std::optional<UsualTurn> usual_turn(const Shown& whole, const Shown& alone, std::u32string_view prompt,
                                    std::int64_t index, const TurnHabits& habits) {
  const std::u32string_view text = whole.rendering.text, last = alone.rendering.text;
  if (!begins_with(text, prompt) || (&whole != &alone && !begins_with(last, prompt))) return {};
  const auto [first_own, last_own] = alone.own[to_size(index)];
  if (first_own < 0) return {};
  const std::int64_t start = static_cast<std::int64_t>(prompt.size());
  const std::int64_t alone_own = std::max(start, alone.rendering.origins[to_size(first_own)][0]);
  const std::int64_t alone_end = alone.rendering.origins[to_size(last_own)][1];
  if (alone_end <= start) return {};
  if (!habits.header.empty()) {
    std::u32string_view head = between(alone, start, alone_own);
    while (!head.empty() && is_space(head.front())) head.remove_prefix(1);
    if (head.starts_with(habits.header)) return {};
  }
  std::int64_t shift = 0;
  if (&whole != &alone) {
    const auto found = same_turn(text.substr(to_size(start)), between(alone, start, alone_end), habits.empty_blocks);
    if (!found) return {};
    shift = *found;
  }
  const std::int64_t own = alone_own + shift, own_end = alone_end + shift;
  if (has_other_data(whole, start, own_end, index)) return {};
  if (holds_any(between(whole, start, own_end), habits.finals)) return {};
  if (holds_any(between(whole, start, own), habits.middles)) return {};
  UsualTurn out{start, own, own_end, 0, literal_tail(whole, own_end, index), {}};
  out.alone = &whole == &alone ? out.tail : literal_tail(alone, alone_end, index);
  const std::u32string_view head = between(whole, start, own);
  for (const std::u32string& block : habits.empty_blocks) {
    if (head.starts_with(block)) {
      out.supplied = static_cast<std::int64_t>(block.size());
      break;
    }
  }
  return out;
}

}  // namespace maskpipe
