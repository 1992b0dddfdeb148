// One row of a batch: its ids, which are there, and decided runs -> the other dense columns.
#pragma once

#include <cstdint>
#include <span>

#include "block.h"

namespace maskpipe {

// Where the row's values go, [sequence_length] each; nullptr for what nobody asked for.
struct RowOut {
  std::int32_t* ids32;
  std::int64_t* ids;
  std::int64_t* labels;     // the token's id where it has loss, else -100; not shifted
  std::int64_t* targets;    // labels of the next token; -100 at the end of the row
  std::int64_t* positions;  // from 0 in every document, and in the padding as if it were one; a branch goes on from
                            // its prompt
  std::int32_t* segments;   // 1.. per document, 0 in the padding
  float* weights;           // of the loss, at the same places as labels
  std::uint8_t* roles;
};

// Of `length` tokens, whose ids are in out.ids or out.ids32 already.
void expand_row(std::int64_t length, const RowFacts& facts, const RowOut& out);

}  // namespace maskpipe
