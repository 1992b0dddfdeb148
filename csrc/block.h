// A block: the facts of the rows of one record batch, decided and ready to expand. Everything in it was checked, so
// what is made from it stays inside its rows.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "ipc.h"
#include "policy.h"

namespace maskpipe {

// Tokens up to `end` (of the row) that are alike.
struct Run {
  std::int32_t end;
  float weight;  // of the loss; 0 where there is none
  std::uint8_t role, part, loss;
};

// What the loader makes of the facts.
struct Decision {
  std::optional<Policy> policy;        // none: the loss flags as they are stored
  std::array<float, 256 * 8> weights;  // [role][kind], times the source weight; 0 takes the loss away
};

struct Block {
  std::int64_t ids_offset;                                  // in the file, of row 0
  std::vector<std::int32_t> run_offsets, document_offsets;  // [rows + 1]
  std::vector<Run> runs;
  std::vector<std::int32_t> document_ends;  // of the row
  std::vector<std::uint8_t> branches;       // [documents] format.Branch
  std::vector<std::int64_t> pairs;          // [documents] -1 for none; empty when no document has one

  std::int64_t rows() const { return static_cast<std::int64_t>(run_offsets.size()) - 1; }
  std::int64_t bytes() const;
};

// The part of a body that holds facts: all but the ids.
Buffer facts_place(const BatchLayout& layout, const BatchPlace& place);

// `facts` are the bytes of facts_place. std::invalid_argument, naming the row of the block, for what format v1 forbids
// (F12, F15, F17, F22 and sizes), for another number of rows than expected, and for documents with a parent, which the
// loader does not read yet.
Block decode_block(Bytes facts, const BatchLayout& layout, const BatchPlace& place, std::int64_t expected_rows,
                   std::int64_t sequence_length, const Decision& decision);

}  // namespace maskpipe
