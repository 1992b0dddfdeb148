// A usual record, from its messages to the facts and the loss of its tokens, in two steps around the tokenizer.
//
//   Input ─draft─▶ Draft: text, spans, where prompts end ─(ids)─▶ settle ─▶ one more document in Documents
//
// Usual is a conversation all of whose content the template shows, all of whose assistant turns are usual (usual.h),
// without weights of its own, whose one document fits a sequence and trains something. encoder.py says what every step
// means, for any record; whatever is not usual, or not known here yet, is nothing here and is for it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "align.h"
#include "policy.h"
#include "spans.h"
#include "usual.h"

namespace maskpipe {

// What a recipe wants.
struct Wanted {
  Policy policy;
  bool trains_others = false;  // can tokens outside assistant turns get loss?
  bool keeps_control = false;  // control tokens in content stay what they are
  std::int64_t sequence_length = 0;
  std::size_t max_text = 0;  // characters; what a longer one may have depends on its record
  std::uint64_t one_in = 0;  // renders that are compared, as in needs_comparison
};

// Ids of the ends of prompts, as the tokenizer makes them behind an added token or at the start of a text. Python adds
// what it comes across.
struct Windows {
  std::unordered_map<std::string, std::vector<std::int32_t>> after_token, at_start;
};

// What tokenizer.py's fast way takes; see align_plain.
struct Alphabet {
  const TokenTable* table = nullptr;
  const Strings* strings = nullptr;
  std::vector<std::int32_t> string_ids;
  std::vector<std::uint8_t> string_kinds;
  bool prefix_space = false;
  std::string space_mark;
  const Windows* windows = nullptr;
};

struct Draft {
  std::string text;  // UTF-8
  SpanTable spans;
  std::vector<std::int64_t> cuts;     // bytes, ascending
  std::vector<std::int32_t> turns;    // messages of its assistant turns, ascending
  std::vector<std::int64_t> trained;  // of these, those that may train
};

std::optional<Draft> draft(const ChatTemplate& by, const Input& input, const TurnHabits& habits, const Wanted& wanted);

// Documents one after the other, flat; offsets are [documents + 1].
struct Documents {
  std::vector<std::int32_t> ids;       // [tokens]
  std::vector<std::uint8_t> roles;     // [tokens]
  std::vector<std::uint8_t> parts;     // [tokens]
  std::vector<std::uint8_t> flags;     // [tokens]
  std::vector<std::int32_t> messages;  // [tokens]
  std::vector<std::int64_t> offsets = {0};
  std::vector<std::int32_t> verdict_messages;
  std::vector<std::uint8_t> verdicts;
  std::vector<std::int64_t> verdict_offsets = {0};
};

struct Counted {
  std::int64_t tokens = 0, loss = 0, straddling = 0, straddling_parts = 0, marks = 0, turns = 0;
};

// Adds the document that the draft becomes with these ids, and what there is to count; false, and nothing added, where
// that is not usual.
bool settle(const Draft& draft, std::span<const std::int32_t> ids, const Alphabet& alphabet, const Wanted& wanted,
            Documents& out, Counted& counted);

}  // namespace maskpipe
