// Layout: documents and a plan of pieces -> rows of exactly `sequence_length` tokens, with the runs of their facts.
//
//   piece = tokens [start, stop) of a document; a row = its pieces one after the other, then padding
//   row 0   A A A A A B B B . .     piece ends 5 8     runs end at every change of facts, at every piece border and at
//   the row's end
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runs.h"

namespace maskpipe {

// Tokens of document d are [offsets[d], offsets[d + 1]); its runs, relative to the document, tile it.
struct DocumentsView {
  std::span<const std::int32_t> ids;      // [tokens]
  std::span<const std::int64_t> offsets;  // [documents + 1]
  RunsView runs;                          // one group per document
};

// Piece p is tokens [starts[p], stops[p]) of document documents[p], never empty; row r holds pieces [row_offsets[r],
// row_offsets[r + 1]).
struct PiecesView {
  std::span<const std::int64_t> documents;    // [pieces]
  std::span<const std::int32_t> starts;       // [pieces]
  std::span<const std::int32_t> stops;        // [pieces]
  std::span<const std::int64_t> row_offsets;  // [rows + 1]
};

struct Rows {
  std::vector<std::int32_t> input_ids;   // [rows * sequence_length]
  Runs runs;                             // one group per row, ends relative to the row, the last one is sequence_length
  std::vector<std::int32_t> n_loss;      // [rows] tokens with the loss flag
  std::vector<std::int32_t> piece_ends;  // [pieces] relative to the row
};

// Rows of the planned pieces. Guaranteed:
// - a run never crosses a piece border; inside a piece equal neighbours are one run;
// - the first token of a piece has the loss flag cleared, since it has nothing before it to be predicted from; all else
// is as it was;
// - padding stands only after the last piece: ids pad_id, role 0, part 0, flags 0, message -1.
// A row without pieces is all padding. std::invalid_argument, saying where, unless offsets fit, runs tile their
// documents, pieces are inside their documents and rows hold at most sequence_length tokens (in [1, 2^31 - 1]).
Rows lay_out(const DocumentsView& documents, const PiecesView& pieces, std::int64_t sequence_length,
             std::int32_t pad_id);

}  // namespace maskpipe
