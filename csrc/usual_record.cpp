#include "usual_record.h"

#include <algorithm>
#include <utility>

#include "facts.h"
#include "loss.h"

namespace maskpipe {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

// False where the text is no Unicode. `places` are ascending characters, and become bytes.
bool to_utf8(std::u32string_view text, std::string& out, std::vector<std::int64_t>& places) {
  out.resize(4 * text.size());
  char* to = out.data();
  std::size_t next = 0;
  const auto note = [&](std::size_t at) {
    for (; next < places.size() && places[next] == static_cast<std::int64_t>(at); ++next) {
      places[next] = to - out.data();
    }
  };
  for (std::size_t k = 0; k < text.size(); ++k) {
    if (next < places.size()) note(k);
    const char32_t c = text[k];
    if (c < 0x80) {
      *to++ = static_cast<char>(c);
    } else if (c < 0x800) {
      *to++ = static_cast<char>(0xC0 | (c >> 6));
      *to++ = static_cast<char>(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
      if (c >= 0xD800 && c <= 0xDFFF) return false;
      *to++ = static_cast<char>(0xE0 | (c >> 12));
      *to++ = static_cast<char>(0x80 | ((c >> 6) & 0x3F));
      *to++ = static_cast<char>(0x80 | (c & 0x3F));
    } else {
      *to++ = static_cast<char>(0xF0 | (c >> 18));
      *to++ = static_cast<char>(0x80 | ((c >> 12) & 0x3F));
      *to++ = static_cast<char>(0x80 | ((c >> 6) & 0x3F));
      *to++ = static_cast<char>(0x80 | (c & 0x3F));
    }
  }
  note(text.size());
  if (next != places.size()) return false;
  out.resize(static_cast<std::size_t>(to - out.data()));
  return true;
}

// As tokenizer.py's _same_with_cuts: every prompt that ends at a cut has ids that the whole text begins with.
bool same_with_cuts(std::string_view text, std::span<const std::int32_t> ids, const Plain& plain,
                    const Windows& windows) {
  std::string window;
  for (std::size_t k = 0; k < plain.cuts.size(); ++k) {
    const std::size_t start = to_size(plain.window_starts[k]), cut = to_size(plain.cuts[k]);
    const auto token = static_cast<std::size_t>(plain.window_tokens[k]);
    window.assign(text.substr(start, cut - start));
    const auto& known = token != 0 ? windows.after_token : windows.at_start;
    const auto found = known.find(window);
    if (found == known.end()) return false;
    const std::vector<std::int32_t>& prompt = found->second;
    const std::size_t after = token + prompt.size();
    if (after > ids.size() || (after > token && plain.ends[after - 1] != plain.cuts[k])) return false;
    if (!std::equal(prompt.begin(), prompt.end(), ids.begin() + static_cast<std::ptrdiff_t>(token))) return false;
  }
  return true;
}

template <typename Value>
void append(std::vector<Value>& out, const std::vector<Value>& values) {
  out.insert(out.end(), values.begin(), values.end());
}

}  // namespace

std::optional<Draft> draft(const ChatTemplate& by, const Input& input, const TurnHabits& habits, const Wanted& wanted) {
  if (input.foreign) return {};
  std::optional<Shown> whole;
  try {
    whole.emplace(by.render(input, static_cast<std::int64_t>(input.messages.size()), false), input);
  } catch (const Bail&) {
    return {};
  }
  const Rendering& rendering = whole->rendering;
  if (rendering.text.empty() || rendering.text.size() > wanted.max_text) return {};
  if (needs_comparison(rendering, {}, wanted.one_in) || !shows_all(*whole)) return {};
  Draft out;
  std::vector<TurnPlace> places;
  std::vector<std::int64_t> starts;
  for (std::size_t index = 0; index < input.roles.size(); ++index) {
    if (input.roles[index] != role::assistant) continue;
    const auto message = static_cast<std::int64_t>(index);
    const Looked looked = usual_turn(by, *whole, message, habits, wanted.one_in);
    if (!looked.found) return {};
    const UsualTurn& turn = *looked.found;
    const auto stop = habits.stop_of(index + 1 == input.roles.size(), turn.tail, turn.alone);
    if (!stop) return {};
    const std::int64_t begin = turn.own_end + stop->first, end = turn.own_end + stop->second;
    const bool empty = turn.supplied > 0;
    places.push_back(
        {message, turn.start, end, begin, end, empty ? turn.start : -1, empty ? turn.start + turn.supplied : -1});
    out.turns.push_back(static_cast<std::int32_t>(message));
    starts.push_back(turn.start);
  }
  std::vector<std::int64_t> cuts;
  for (std::size_t turn = 0; turn < out.turns.size(); ++turn) {
    if (!chosen(wanted.policy, turn, out.turns.size())) continue;
    out.trained.push_back(out.turns[turn]);
    if (starts[turn] > 0) cuts.push_back(starts[turn]);
  }
  if (out.trained.empty() && !wanted.trains_others) return {};
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  out.cuts = std::move(cuts);
  if (!to_utf8(rendering.text, out.text, out.cuts)) return {};
  out.spans = make_spans(rendering.origins, input.leaves, input.roles, places, out.text);
  return out;
}

bool settle(const Draft& draft, std::span<const std::int32_t> ids, const Alphabet& alphabet, const Wanted& wanted,
            Documents& out, Counted& counted) {
  if (static_cast<std::int64_t>(ids.size()) > wanted.sequence_length) return false;
  std::span<const std::int64_t> owned_starts = draft.spans.content_starts, owned_ends = draft.spans.content_ends;
  if (wanted.keeps_control) owned_starts = owned_ends = {};
  const Plain plain =
      align_plain(ids, *alphabet.table, draft.text, *alphabet.strings, alphabet.string_ids, alphabet.string_kinds,
                  owned_starts, owned_ends, draft.cuts, alphabet.prefix_space, alphabet.space_mark);
  if (!plain.plain || !same_with_cuts(draft.text, ids, plain, *alphabet.windows)) return false;
  const TokenFacts facts = token_facts(plain.ends, draft.spans, {});
  const std::vector<std::uint8_t> flags = mark_loss(
      wanted.policy.rule, {facts.roles, facts.parts, facts.flags, facts.messages, {}}, {false, -1, draft.trained});
  const auto loss = std::count_if(flags.begin(), flags.end(), [](std::uint8_t each) { return each & flag::loss; });
  if (loss == 0) return false;
  out.ids.insert(out.ids.end(), ids.begin(), ids.end());
  append(out.roles, facts.roles);
  append(out.parts, facts.parts);
  append(out.flags, flags);
  append(out.messages, facts.messages);
  out.offsets.push_back(static_cast<std::int64_t>(out.ids.size()));
  append(out.verdict_messages, draft.turns);
  out.verdicts.resize(out.verdict_messages.size());  // all exact
  out.verdict_offsets.push_back(static_cast<std::int64_t>(out.verdicts.size()));
  counted.tokens += static_cast<std::int64_t>(ids.size());
  counted.loss += loss;
  counted.straddling += facts.straddling;
  counted.straddling_parts += facts.straddling_parts;
  counted.marks += plain.marks;
  counted.turns += static_cast<std::int64_t>(draft.turns.size());
  return true;
}

}  // namespace maskpipe
