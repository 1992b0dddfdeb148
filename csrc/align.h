// Align: which bytes of a text does each token cover, and which spans of the text does each token touch.
//
//   text     <|im_end|> H i   ' '        a token's bytes are known from its id alone, so its span is the running sum
//   tokens   [   tok   ][Hi][ ' ']       of byte lengths; the bytes are compared on the way, so the sum cannot drift.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace maskpipe {

// A set of byte strings that can be found in a text. Immutable, safe to share between threads.
class Strings {
 public:
  // Pattern i is strings[i]. std::invalid_argument when one is empty or there twice.
  explicit Strings(const std::vector<std::string>& strings);

  struct Hits {
    std::vector<std::int64_t> starts;   // [hits] byte positions, ascending
    std::vector<std::int32_t> strings;  // [hits] index of the pattern; longest first where starts are equal
  };
  // Every place where a pattern occurs, overlapping ones too. O(bytes + bytes of partial matches).
  Hits find(std::string_view text) const;

  std::size_t count() const { return sizes_.size(); }
  std::size_t size(std::int32_t string) const { return sizes_[static_cast<std::size_t>(string)]; }  // bytes

 private:
  struct Node {
    std::int32_t first_edge = 0;
    std::int32_t edges = 0;
    std::int32_t string = -1;  // the pattern that ends here, or -1
  };
  std::vector<std::size_t> sizes_;         // [strings]
  std::vector<Node> nodes_;                // breadth first; a node's edges are contiguous and sorted by byte
  std::vector<std::uint8_t> bytes_;        // [nodes] the byte that leads to the node
  std::array<std::int32_t, 256> roots_{};  // child of the root per first byte, or -1
};

// The bytes that each id stands for, as the model prints it. Immutable, checked once.
class TokenTable {
 public:
  // The bytes of id i are bytes[offsets[i]:offsets[i + 1]]; control[i] is 1 for the id of a control token.
  // std::invalid_argument when offsets [ids + 1] descend or reach past the bytes, or control is not [ids].
  TokenTable(std::vector<std::int64_t> offsets, std::vector<std::uint8_t> bytes, std::vector<std::uint8_t> control);

  std::size_t size() const { return control_.size(); }
  bool is_control(std::int32_t id) const { return control_[static_cast<std::size_t>(id)] != 0; }
  std::span<const std::uint8_t> operator[](std::int32_t id) const {
    const auto i = static_cast<std::size_t>(id);
    return std::span(bytes_).subspan(static_cast<std::size_t>(offsets_[i]),
                                     static_cast<std::size_t>(offsets_[i + 1] - offsets_[i]));
  }

 private:
  std::vector<std::int64_t> offsets_;
  std::vector<std::uint8_t> bytes_;
  std::vector<std::uint8_t> control_;
};

// Control tokens located in a text: ascending, not overlapping.
struct Occurrences {
  std::span<const std::int64_t> starts;  // [occurrences] byte positions
  std::span<const std::int64_t> ends;    // [occurrences] byte positions, at most the next start
  std::span<const std::int32_t> ids;     // [occurrences]
  std::span<const std::int32_t> tokens;  // [occurrences] index of the token where that is known, or empty: the tokens
                                         // of the piece before it say where it is
};

struct TokenEnds {
  std::vector<std::int64_t> ends;               // [tokens] byte position where the token's text ends; never descending
  std::vector<std::int32_t> occurrence_tokens;  // [occurrences] index of the token
  std::vector<std::int32_t> stray;              // control ids that stand at no occurrence: token indices, ascending
  std::vector<std::int64_t> failed;  // pieces whose bytes do not come out, four values each: first token, token after
                                     // the last, first byte, byte after the last. `ends` holds the piece's end there.
  std::int64_t marks = 0;            // space marks in the text that a token prints as a space
  bool in_step = true;               // every occurrence was found among the ids; when false, nothing else is of use
};

// The span of each token: an occurrence covers its own range; between two of them lies a piece, and the tokens of a
// piece must print exactly its bytes.
//   prefix_space   a piece may print one space more than it has, at its start; a token of only that space is zero-width
//   space_mark     bytes in the text that count as equal to a token's space ("\u2581"); empty: none
// Time O(tokens + bytes). std::invalid_argument for an id outside the table, occurrences that are out of order or
// outside the text, tokens of occurrences that do not ascend or have another id, or arrays that do not fit each other.
TokenEnds token_ends(std::span<const std::int32_t> ids, const TokenTable& table, std::string_view text,
                     const Occurrences& occurrences, bool prefix_space, std::string_view space_mark);

// What stands where a pattern of Strings stands.
enum class AddedKind : std::uint8_t {
  ordinary = 0,  // an added token that data may write
  control = 1,   // one that only the template may write
  odd = 2,       // one that swallows whitespace or must stand alone as a word: nothing is plain about it
};

struct Plain {
  bool plain = false;                       // when false, nothing else is of use
  std::vector<std::int64_t> ends;           // [tokens] as in TokenEnds
  std::int64_t marks = 0;                   // as in TokenEnds
  std::vector<std::int64_t> cuts;           // [cuts] those of the given cuts that lie inside the text
  std::vector<std::int64_t> window_starts;  // [cuts] where the text between the last added token and the cut begins
  std::vector<std::int32_t> window_tokens;  // [cuts] index of the first token after that added token
};

// The usual text: every added token in it was written by the template alone, the tokens print its bytes, and no other
// token is a control token. Anything else is not plain, and is for the slow way. Patterns are found as the library
// finds them, leftmost and then longest; pattern i stands for token id string_ids[i] of kind kinds[i]. Owned ranges
// are bytes that came from data: ascending, not overlapping. Cuts ascend. Time O(bytes + tokens + hits).
// std::invalid_argument as token_ends, and when the patterns' ids or kinds are not as many as the patterns.
Plain align_plain(std::span<const std::int32_t> ids, const TokenTable& table, std::string_view text,
                  const Strings& strings, std::span<const std::int32_t> string_ids, std::span<const std::uint8_t> kinds,
                  std::span<const std::int64_t> owned_starts, std::span<const std::int64_t> owned_ends,
                  std::span<const std::int64_t> cuts, bool prefix_space, std::string_view space_mark);

struct Touched {
  std::vector<std::int32_t> first;  // [tokens] index of the first span that the token touches
  std::vector<std::int32_t> last;   // [tokens] index of the last one; first <= last
};

// For each token the spans it touches; token k covers [token_ends[k - 1], token_ends[k]), span s likewise. Both start
// at 0 and never descend. A zero-width token takes the span at its position, at the very end the last span with any
// width. Zero-width spans are touched by no token. One merge, O(tokens + spans).
// std::invalid_argument when ends descend, or tokens reach past the spans.
Touched align_facts(std::span<const std::int64_t> token_ends, std::span<const std::int64_t> span_ends);

// Byte position of each character position in UTF-8 text; positions never descend and may be the length in characters.
// std::invalid_argument when they descend, are negative or past the end.
std::vector<std::int64_t> char_to_byte(std::string_view text, std::span<const std::int64_t> positions);

}  // namespace maskpipe
