#include "layout.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "facts.h"

namespace maskpipe {
namespace {

void check(const DocumentsView& documents, const PiecesView& pieces, std::int64_t sequence_length) {
  if (sequence_length < 1 || sequence_length > std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument("sequence_length must be in [1, 2147483647], got " + std::to_string(sequence_length));
  }
  check_offsets(documents.offsets, documents.ids.size(), "id_offsets");
  check_shapes(documents.runs, "run_offsets");
  if (documents.runs.offsets.size() != documents.offsets.size()) {
    throw std::invalid_argument("id_offsets and run_offsets must speak of the same documents, got " +
                                std::to_string(documents.offsets.size() - 1) + " and " +
                                std::to_string(documents.runs.offsets.size() - 1));
  }
  const auto count = static_cast<std::int64_t>(documents.offsets.size() - 1);
  for (std::int64_t document = 0; document < count; ++document) {
    const auto d = static_cast<std::size_t>(document);
    check_tiling(documents.runs.ends, documents.runs.offsets[d], documents.runs.offsets[d + 1],
                 documents.offsets[d + 1] - documents.offsets[d], document);
  }
  if (pieces.starts.size() != pieces.documents.size() || pieces.stops.size() != pieces.documents.size()) {
    throw std::invalid_argument("piece_documents, piece_starts and piece_stops must have one length, got " +
                                std::to_string(pieces.documents.size()) + ", " + std::to_string(pieces.starts.size()) +
                                ", " + std::to_string(pieces.stops.size()));
  }
  check_offsets(pieces.row_offsets, pieces.documents.size(), "row_offsets");
  for (std::size_t row = 0; row + 1 < pieces.row_offsets.size(); ++row) {
    std::int64_t filled = 0;
    for (auto p = static_cast<std::size_t>(pieces.row_offsets[row]);
         p < static_cast<std::size_t>(pieces.row_offsets[row + 1]); ++p) {
      const std::int64_t document = pieces.documents[p];
      if (document < 0 || document >= count) {
        throw std::invalid_argument("piece_documents[" + std::to_string(p) + "] is " + std::to_string(document) +
                                    ", but there are " + std::to_string(count) + " documents");
      }
      const auto d = static_cast<std::size_t>(document);
      const std::int64_t length = documents.offsets[d + 1] - documents.offsets[d];
      if (pieces.starts[p] < 0 || pieces.stops[p] <= pieces.starts[p] || pieces.stops[p] > length) {
        throw std::invalid_argument("piece " + std::to_string(p) + " is tokens [" + std::to_string(pieces.starts[p]) +
                                    ", " + std::to_string(pieces.stops[p]) + ") of document " +
                                    std::to_string(document) + ", which has " + std::to_string(length) +
                                    "; pieces are inside their document and not empty");
      }
      filled += pieces.stops[p] - pieces.starts[p];
      if (filled > sequence_length) {
        throw std::invalid_argument("row " + std::to_string(row) + " holds more than sequence_length = " +
                                    std::to_string(sequence_length) + " tokens at piece " + std::to_string(p));
      }
    }
  }
}

// The runs of one piece, merged, appended to a row; `at` is where the piece begins in the row. Returns the tokens with
// loss.
std::int32_t append_piece(const RunsView& runs, std::size_t document, std::int32_t start, std::int32_t stop,
                          std::int32_t at, Runs& row) {
  const std::size_t piece_begin = row.ends.size();
  std::int32_t n_loss = 0;
  std::int32_t position = start;
  const auto add = [&](std::int32_t end, std::size_t run, std::uint8_t flags) {
    if (flags & flag::loss) n_loss += end - position;
    position = end;
    const std::int32_t row_end = at + (end - start);
    if (row.ends.size() > piece_begin && row.roles.back() == runs.roles[run] && row.parts.back() == runs.parts[run] &&
        row.flags.back() == flags && row.messages.back() == runs.messages[run]) {
      row.ends.back() = row_end;
    } else {
      row.push(row_end, runs.roles[run], runs.parts[run], flags, runs.messages[run]);
    }
  };
  const auto first = runs.ends.begin() + runs.offsets[document];
  const auto last = runs.ends.begin() + runs.offsets[document + 1];
  auto run = static_cast<std::size_t>(std::upper_bound(first, last, start) - runs.ends.begin());
  add(start + 1, run, static_cast<std::uint8_t>(runs.flags[run] & ~flag::loss));
  while (position < stop) {
    if (runs.ends[run] <= position) ++run;
    add(std::min(runs.ends[run], stop), run, runs.flags[run]);
  }
  return n_loss;
}

}  // namespace

Rows lay_out(const DocumentsView& documents, const PiecesView& pieces, std::int64_t sequence_length,
             std::int32_t pad_id) {
  check(documents, pieces, sequence_length);
  const std::size_t rows = pieces.row_offsets.size() - 1;
  const auto length = static_cast<std::int32_t>(sequence_length);
  Rows out;
  out.input_ids.assign(rows * static_cast<std::size_t>(sequence_length), pad_id);
  out.n_loss.assign(rows, 0);
  out.piece_ends.reserve(pieces.documents.size());
  out.runs.offsets.reserve(rows + 1);
  out.runs.offsets.push_back(0);
  for (std::size_t row = 0; row < rows; ++row) {
    const auto row_ids = out.input_ids.begin() + static_cast<std::ptrdiff_t>(row) * length;
    std::int32_t filled = 0;
    for (auto p = static_cast<std::size_t>(pieces.row_offsets[row]);
         p < static_cast<std::size_t>(pieces.row_offsets[row + 1]); ++p) {
      const auto document = static_cast<std::size_t>(pieces.documents[p]);
      const std::int32_t start = pieces.starts[p];
      const std::int32_t stop = pieces.stops[p];
      std::copy_n(documents.ids.begin() + documents.offsets[document] + start, stop - start, row_ids + filled);
      out.n_loss[row] += append_piece(documents.runs, document, start, stop, filled, out.runs);
      filled += stop - start;
      out.piece_ends.push_back(filled);
    }
    if (filled < length) out.runs.push(length, role::padding, part::none, 0, -1);
    out.runs.offsets.push_back(static_cast<std::int64_t>(out.runs.ends.size()));
  }
  return out;
}

}  // namespace maskpipe
