// Audit: every token of every row against what its facts, the policy and the template allow; and, in the same pass, the
// counts that coverage is made of. Works on runs; ids are looked at once each, in a table of what is known of them.
//
// A row that does not hold together (row_malformed) is not looked at further. What is found elsewhere is found in every
// row: nothing stops at the first.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "check.h"
#include "policy.h"

namespace maskpipe {

// What can be found; what one counts is in brackets. A turn is a stretch of sampled assistant tokens of one message.
enum class Defect : std::uint8_t {
  row_malformed,            // [rows] ends of documents or runs do not tile the row, or a value does not exist
  id_outside,               // [tokens] an id outside the vocabulary
  role_missing,             // [tokens] role unknown or padding, or part none, inside a document
  run_repeats,              // [runs] a run with the facts of the one before it, inside one document
  weights_malformed,        // [rows] weight ranges that are not in order, not inside the row, or no weights
  n_loss,                   // [rows] n_loss is not the number of tokens with loss
  padding_trained,          // [tokens] padding with loss
  padding_wrong,            // [tokens] padding with another id, role, part or message, or with other flags
  first_trained,            // [documents] the first token has loss
  straddler_trained,        // [tokens] with loss: straddles the border of sampled text
  empty_reasoning_trained,  // [tokens] with loss: in an empty reasoning block, which the policy does not train
  weight_0_trained,         // [tokens] with loss: of source weight 0
  other_trained,            // [tokens] with loss: no assistant's, and not selected
  header_trained,           // [tokens] with loss: assistant's, before what is sampled of the message, or nothing is
  after_stop_trained,       // [tokens] with loss: assistant's, not sampled, behind something sampled of the message
  refused_trained,          // [tokens] with loss: verdict refused, or none
  not_chosen_trained,       // [tokens] with loss: of another turn than the own one, a turn or part that is not selected
  history_trained,          // [tokens] with loss: verdict history_differs, in place
  not_trained,              // [tokens] without loss although the policy trains them
  stop_not_trained,         // [turns] trained, and no stop at the end, or one without loss that the policy trains
  turn_without_stop,        // [turns] trained, and the verdict says no_stop, or the stop straddles
  stop_unknown,             // [turns] trained, and the last token of the stop is none that `ids` knows as a stop
  stop_doubled,             // [turns] something goes on in the stop behind a token that is a stop
  sampled_elsewhere,    // [tokens] sampled: no assistant's and no text, behind the stop, or of history of an own turn
  header_sampled,       // [tokens] sampled: the header that ends the prompt, or part of it
  start_not_sampled,    // [tokens] not sampled: own text between header and what is sampled
  hole,                 // [tokens] not sampled between two stretches of one message
  turn_not_sampled,     // [turns] own text is there, the verdict is exact or no_stop, and nothing is sampled
  turn_order,           // [turns] of a lower message than the turn before
  text_after_own_turn,  // [documents] something but template text stands behind the only trainable turn
  nothing_trained,      // [documents] no token with loss
  single_token,         // [documents] of one token
  chat_cut,             // [documents] a piece of a chat
  bos_missing,          // [documents] fewer BOS at the beginning than the template writes
  bos_doubled,          // [documents] more
  control_in_content,   // [tokens] a control token in content, reasoning, tool_call or tool_schema
  marks_unbalanced,     // [turns] trained, with more or fewer opening than closing marks than the template writes
  unknown_token,        // [tokens] the tokenizer's unknown token
  pair_incomplete,      // [documents] a chosen or rejected answer without the other one in its row
  pair_collapsed,       // [pairs] whose chosen and rejected answers are the same tokens
};
inline constexpr std::array<std::string_view, 40> defect_names{"row_malformed",
                                                               "id_outside",
                                                               "role_missing",
                                                               "run_repeats",
                                                               "weights_malformed",
                                                               "n_loss",
                                                               "padding_trained",
                                                               "padding_wrong",
                                                               "first_trained",
                                                               "straddler_trained",
                                                               "empty_reasoning_trained",
                                                               "weight_0_trained",
                                                               "other_trained",
                                                               "header_trained",
                                                               "after_stop_trained",
                                                               "refused_trained",
                                                               "not_chosen_trained",
                                                               "history_trained",
                                                               "not_trained",
                                                               "stop_not_trained",
                                                               "turn_without_stop",
                                                               "stop_unknown",
                                                               "stop_doubled",
                                                               "sampled_elsewhere",
                                                               "header_sampled",
                                                               "start_not_sampled",
                                                               "hole",
                                                               "turn_not_sampled",
                                                               "turn_order",
                                                               "text_after_own_turn",
                                                               "nothing_trained",
                                                               "single_token",
                                                               "chat_cut",
                                                               "bos_missing",
                                                               "bos_doubled",
                                                               "control_in_content",
                                                               "marks_unbalanced",
                                                               "unknown_token",
                                                               "pair_incomplete",
                                                               "pair_collapsed"};

// What is known of an id: bits of the low byte of AuditRules::ids; the high byte is its script.
namespace id_class {
inline constexpr std::uint16_t control = 1;  // content must not hold it
inline constexpr std::uint16_t bos = 2;
inline constexpr std::uint16_t stop = 4;
inline constexpr std::uint16_t mark = 8;  // AuditRules::marks says of which pair
inline constexpr std::uint16_t unknown = 16;
}  // namespace id_class

// How many BOS a document begins with.
struct Bos {
  std::int32_t least, most;  // -1: not known
};

struct AuditRules {
  Policy policy;
  std::int64_t sequence_length;
  std::int64_t vocab_size;
  std::int32_t pad_id;
  std::vector<std::uint16_t> ids;      // [vocab_size]
  std::vector<std::uint16_t> allowed;  // [vocab_size] bit r: content of role r may hold it
  std::vector<std::int8_t> marks;      // [vocab_size] p opens pair p, -p closes it, 0 is no mark
  std::vector<std::array<std::int32_t, 2>>
      mark_bounds;                                 // [pairs + 1] opening less closing marks in a turn: least, most
  std::vector<std::vector<std::int32_t>> headers;  // ids with which a prompt may end; empty: not known
  Bos chat, text;
  bool stops_known;         // id_class::stop is set for all stops there are
  bool may_cut;             // chats too may be cut by packing
  std::int64_t max_places;  // per defect
};

// Rows as F10 has them, flat. Groups of verdicts are documents, those of weights rows.
struct AuditView {
  RowsView rows;
  std::span<const std::int32_t> sources;           // [documents]
  std::span<const std::int64_t> records;           // [documents]
  std::span<const std::int32_t> turns;             // [documents]
  std::span<const std::int32_t> starts;            // [documents]
  std::span<const std::int32_t> lengths;           // [documents]
  std::span<const std::int64_t> pairs;             // [documents] -1 for none
  std::span<const std::uint8_t> branches;          // [documents]
  std::span<const std::int32_t> parents;           // [documents] 0 for none
  std::span<const std::int32_t> verdict_messages;  // [verdicts]
  std::span<const std::uint8_t> verdicts;          // [verdicts]
  std::span<const std::int64_t> verdict_offsets;   // [documents + 1]
  std::span<const std::int32_t> weight_starts;     // [weights]
  std::span<const std::int32_t> weight_ends;       // [weights]
  std::span<const float> weights;                  // [weights]
  std::span<const std::int64_t> weight_offsets;    // [rows + 1]
};

struct DefectPlace {
  Defect defect;
  std::int64_t row;
  std::int32_t start, end;  // tokens of the row
  std::int32_t document;    // of the row, -1 for none
};

struct Tally {
  std::int64_t tokens = 0, sampled = 0, loss = 0;
};

// What the rows of one call hold, in their order; documents of malformed rows are left out.
struct AuditedRows {
  std::vector<std::int32_t> document_tokens, document_loss, document_turns;  // turns: trained ones
  std::vector<std::uint64_t> document_hash;                                  // of the ids
  std::vector<std::uint64_t> document_origin;  // of source, record, turn, place and messages
  std::vector<std::int64_t> document_row;
  std::vector<std::int32_t> turn_first, turn_last;  // [trained turns] ids of the first and last token with loss
  std::vector<std::int32_t> turn_stop;              // [trained turns] id of the last token of the stop, -1 without
  std::vector<std::uint8_t> turn_stop_trained;      // [trained turns]

  void reserve(std::size_t documents, std::size_t turns) {
    for (auto* column : {&document_tokens, &document_loss, &document_turns}) column->reserve(documents);
    for (auto* column : {&document_hash, &document_origin}) column->reserve(documents);
    document_row.reserve(documents);
    for (auto* column : {&turn_first, &turn_last, &turn_stop}) column->reserve(turns);
    turn_stop_trained.reserve(turns);
  }
};

class Audit {
 public:
  static constexpr std::size_t roles = 10;       // role 255 is counted as 9
  static constexpr std::size_t messages = 1026;  // -1, 0 .. 1023, and all above

  // std::invalid_argument unless the tables have vocab_size entries.
  explicit Audit(AuditRules rules);

  // Rows that begin with row `first_row` of the dataset. std::invalid_argument when shapes or offsets do not fit each
  // other; nothing is counted then.
  AuditedRows add(const AuditView& view, std::int64_t first_row);

  const std::array<std::int64_t, defect_names.size()>& counts() const { return counts_; }
  const std::vector<DefectPlace>& places() const { return places_; }  // at most max_places of each, in order of rows
  const std::vector<Tally>& kinds() const { return kinds_; }          // [roles * 7] role * 7 + part
  const std::vector<Tally>& by_message() const { return messages_; }  // [messages]
  const std::vector<Tally>& by_source() const { return sources_; }    // [highest source + 1]
  const std::vector<Tally>& by_script() const { return scripts_; }    // [256]; sampled is not counted

 private:
  friend class RowAudit;

  AuditRules rules_;
  std::array<std::int64_t, defect_names.size()> counts_{};
  std::array<std::int64_t, defect_names.size()> kept_{};
  std::vector<DefectPlace> places_;
  std::vector<Tally> kinds_, messages_, sources_, scripts_;
};

}  // namespace maskpipe
