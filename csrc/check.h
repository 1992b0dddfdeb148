// Check: the invariants of rows, as any reader may rely on them. Says where the first one is broken.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "runs.h"

namespace maskpipe {

struct RowsView {
  std::span<const std::int32_t> input_ids;             // [rows * sequence_length]
  RunsView runs;                                       // one group per row
  std::span<const std::int32_t> document_ends;         // [documents] relative to the row
  std::span<const std::int64_t> row_document_offsets;  // [rows + 1]
  std::span<const std::int32_t> n_loss;                // [rows]
};

struct Violation {
  std::int64_t row;
  std::int64_t position;  // token in the row; sequence_length for what concerns the row as a whole
  std::string code;
  std::string message;
};

// The first violation in order of row, then position, or nothing. At one position the order of this list decides.
// Codes:
//   document_ends          ends of documents strictly increase, above 0 and at most sequence_length
//   run_ends               ends of runs strictly increase, and the last one is sequence_length
//   role, part, flags, message      a value that the format does not know; messages are at least -1
//   run_crosses_document   a run goes on over the end of a document
//   padding_in_document    role padding (or part none, unless the role is unknown) inside a document
//   tokens_after_documents another role than padding after the last document
//   padding_facts          padding with a part, a flag (so: with loss) or a message
//   loss_on_first_token    the first token of a document has the loss flag
//   input_id               an id outside [0, vocab_size)
//   n_loss                 not the count of tokens with the loss flag
// std::invalid_argument when shapes or offsets do not fit each other, or sequence_length or vocab_size is not in [1,
// 2^31 - 1].
std::optional<Violation> check_rows(const RowsView& rows, std::int64_t sequence_length, std::int64_t vocab_size);

}  // namespace maskpipe
