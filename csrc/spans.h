// Spans: a rendered text cut into runs of one provenance, and the facts that its tokens take from them.
//
//   origins   [literal][ leaf 3 ][lit]      characters of the text, from the template's one render
//   turns              [  sampled   ]       where the model would speak
//   spans     [literal][ leaf 3 ][lit]      cut at the turns' borders; role, part and message each, ends in bytes
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace maskpipe {

// (start, end, source, first, last): characters start..end of the text come from characters first..last of leaf
// `source`; a negative source is literal text of the template, printed at message -2 - source.
// first == last: half of the escape of character `first`; both -1: of the leaf, from characters that nobody knows.
using Origin = std::array<std::int64_t, 5>;

// (role, part, message, end of inline reasoning): one scalar of the input; the last is 0 when it holds none.
using Leaf = std::array<std::int64_t, 4>;

// (message, start, stop, start and end of the stop token, start and end of the empty reasoning): characters of the
// text; -1, -1 for what is not there.
using TurnPlace = std::array<std::int64_t, 7>;

struct SpanTable {
  std::vector<std::int64_t> ends;  // [spans] bytes; never descending, the last is the text's size
  std::vector<std::uint8_t> roles;
  std::vector<std::uint8_t> parts;
  std::vector<std::int32_t> messages;
  std::vector<std::uint8_t> flags;  // flag::sampled, flag::empty_reasoning
  // Ranges of bytes that came from data, none empty, ascending: neighbouring spans of one leaf are one range.
  std::vector<std::int64_t> content_starts;
  std::vector<std::int64_t> content_ends;
  std::vector<std::uint8_t> content_roles;  // the role of the range's first span
};

// The spans of a text in UTF-8. Origins are contiguous from 0 to its length in characters, turns do not overlap.
// roles[m] is the role of message m. std::invalid_argument when origins leave the text or each other, when a leaf is
// outside the table, or when a role, part or message does not fit its type. O(bytes + origins * turn borders inside).
SpanTable make_spans(std::span<const Origin> origins, std::span<const Leaf> leaves, std::span<const std::int64_t> roles,
                     std::span<const TurnPlace> turns, std::string_view text);

struct TokenFacts {
  std::vector<std::uint8_t> roles;  // [tokens] of the span that holds the token's first byte, as are part and message
  std::vector<std::uint8_t> parts;
  std::vector<std::uint8_t> flags;  // sampled, straddles, cut before, empty reasoning
  std::vector<std::int32_t> messages;
  std::int64_t straddling = 0;        // tokens with bytes from both sides of the border of sampled text
  std::int64_t straddling_parts = 0;  // sampled tokens whose first and last span differ in role or part
};

// A token is sampled when all spans that it touches are (align_facts in align.h). cut_before: indices of tokens.
// std::invalid_argument as align_facts, and for an index outside the tokens.
TokenFacts token_facts(std::span<const std::int64_t> token_ends, const SpanTable& spans,
                       std::span<const std::int32_t> cut_before);

}  // namespace maskpipe
