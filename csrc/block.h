// A block: the facts of the rows of one record batch, decided and ready to expand. Everything in it was checked, so
// what is made from it stays inside its rows.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
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

// What one row holds; of several rows, the sums, the longest and whether any.
struct RowTotals {
  std::int64_t tokens = 0;  // with loss
  std::int64_t pairs = 0;
  std::int64_t rated = 0;    // documents of which is said whether they are wanted
  double weight = 0;         // of the loss of all its tokens
  std::int32_t longest = 0;  // tokens of its longest segment; padding at the end is one
  bool shared = false;       // does a branch continue a prompt?

  void add(const RowTotals& other);
};

// What the loader makes of the facts.
struct Decision {
  std::optional<Policy> policy;        // none: the loss flags as they are stored
  std::array<float, 256 * 8> weights;  // [role][kind], times the source weight; 0 takes the loss away
};

// The facts of one row. Runs tile it, document ends are inside it.
struct RowFacts {
  std::span<const Run> runs;
  std::span<const std::int32_t> document_ends;
  std::span<const std::int32_t> parents;  // as many, or none
};

struct Block {
  std::int64_t ids_offset;                                  // in the file, of row 0
  std::vector<std::uint64_t> ids_hashes;                    // [rows] xxh3_64 of the ids
  std::vector<std::int32_t> run_offsets, document_offsets;  // [rows + 1]
  std::vector<Run> runs;
  std::vector<std::int32_t> document_ends;  // of the row
  std::vector<std::uint8_t> branches;       // [documents] format.Branch
  std::vector<std::int64_t> pairs;          // [documents] -1 for none; empty when no document has one
  std::vector<std::int32_t> parents;   // [documents] places back to the prompt that it continues, 0 for none; empty
                                       // when no document has one
  std::vector<float> scores;           // [documents] NaN for none; empty when no document has one
  std::vector<std::int8_t> desirable;  // [documents] 1 or 0, -1 for none; empty when no document has one
  std::vector<RowTotals> totals;       // [rows]

  RowFacts row(std::size_t number) const;
  std::int64_t rows() const { return static_cast<std::int64_t>(run_offsets.size()) - 1; }
  std::int64_t bytes() const;
};

// `facts` are the bytes of the body from the end of its ids on. std::invalid_argument, naming the row of the block, for
// what format v1 forbids (F12, F15, F17, F22, F23 and sizes) and for another number of rows than expected.
Block decode_block(Bytes facts, const BatchLayout& layout, const BatchPlace& place, std::int64_t expected_rows,
                   std::int64_t sequence_length, const Decision& decision);

}  // namespace maskpipe
