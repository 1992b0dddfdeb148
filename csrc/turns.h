// Turns: where the turns of conversations stand in ids that somebody else made, found by the joints that a template
// writes between contents, and by nothing else.
//
//   joint system -> user    [<|im_end|> \n <|im_start|> user \n]        content, joint, content, joint, … until the end
//
// A joint begins with a control token. Its first `needed` ids must be there; those after them are white space, which
// may be part of the content's first token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace maskpipe {

// Places that are no role: before the first content, after the last, and "wherever it is" for what begins a turn alone.
inline constexpr std::uint8_t kJointStart = 252, kJointEnd = 253, kJointAny = 254;
inline constexpr std::uint8_t kUnknownRole = 255, kAssistantRole = 3, kTemplateRole = 8;

// Bits of what is known of a token.
enum Mark : std::uint8_t {
  kSampled = 1,  // the model writes it: content of an assistant turn, or its stop token
  kStop = 2,     // ends an assistant turn
  kHeader = 4,   // of an assistant turn, supplied by the generation prompt
  kAfter = 8,    // the template's text behind a stop token
  kOpen = 16,    // nothing is claimed: part of a joint's white space and of the content behind it
  kStray = 32,   // a control token that the template does not write there
  kEmpty = 64,   // an empty reasoning block at the head of a turn, as the template writes it by itself
  kJoint = 128,  // belongs to a joint
};

struct Joints {
  std::span<const std::int32_t> ids;      // flat
  std::span<const std::uint8_t> roles;    // [ids]
  std::span<const std::uint8_t> marks;    // [ids] bits of Mark
  std::span<const std::int64_t> offsets;  // [joints + 1]; longer joints of one `from` come first
  std::span<const std::uint8_t> from;     // [joints] role of the content before it, or one of the places above
  std::span<const std::uint8_t> to;       // [joints] role of the content after it, or kJointEnd
  std::span<const std::int32_t> needed;   // [joints] in [0, length]; the rest is white space; 0 only for kJointStart
};

// What a token is for: bits. Bit r (0 to 8) of `allowed`: this control token may stand in content of role r.
struct TokenKinds {
  std::span<const std::uint8_t> control;   // [vocab] 1: control token; 2: one that ends or begins texts
  std::span<const std::uint16_t> allowed;  // [vocab]
};

enum DocumentState : std::uint8_t {
  kNotLocated = 0,   // no joint of the template was found
  kWhole = 1,        // from a joint of the beginning to one of the end
  kCut = 2,          // ends inside content or a joint
  kTailMissing = 3,  // ends with a joint of the end, without the white space behind it
  kMore = 4,         // ends with a joint of the end, and tokens that end texts behind it
};

struct Located {
  std::vector<std::uint8_t> roles;       // [ids] kUnknownRole where not located
  std::vector<std::uint8_t> marks;       // [ids] bits of Mark
  std::vector<std::uint8_t> states;      // [documents]
  std::vector<std::int32_t> bos;         // [documents] how many BOS tokens it begins with
  std::vector<std::uint8_t> from_start;  // [documents] 1: it begins with a joint of the beginning
  std::vector<std::int64_t> turns;       // [4 * turns] document, start, end, stop (-1: none) of sampled tokens, flat
  std::vector<std::int64_t> openings;    // where a turn begins that no joint of the role before it leads to
  std::vector<std::int64_t> beginnings;  // where a conversation begins inside a document
};

// Documents are [starts[d], ends[d]), ascending, not overlapping, inside ids; what lies between stays unknown. An id
// outside the vocabulary is content. `bos` is -1 where the template writes none; `empty` are ids of empty reasoning
// blocks, flat, with offsets. std::invalid_argument where shapes do not fit.
Located locate_turns(std::span<const std::int32_t> ids, std::span<const std::int64_t> starts,
                     std::span<const std::int64_t> ends, const Joints& joints, const TokenKinds& kinds,
                     std::int32_t bos, std::span<const std::int32_t> empty,
                     std::span<const std::int64_t> empty_offsets);

}  // namespace maskpipe
