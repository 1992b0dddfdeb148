#include "block.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "facts.h"

namespace maskpipe {
namespace {

// Of F10's schema, depth first.
constexpr std::size_t run_offsets = 4, run_end = 7, run_role = 9, run_part = 11, run_flags = 13, run_message = 15,
                      document_offsets = 17, document_end = 20, document_turn = 26, verdict_offsets = 32,
                      verdict_message = 35, verdict_value = 37, pair_valid = 38, pair_value = 39, branch_value = 41,
                      parent_valid = 42, parent_value = 43, score_valid = 44, score_value = 45, label_valid = 46,
                      label_value = 47, weight_offsets = 49, weight_start = 52, weight_end = 54, weight_value = 56,
                      n_loss = 58, ids_xxh3 = 60;
constexpr std::size_t runs_node = 3, documents_node = 10, verdicts_node = 18, pair_node = 21, parent_node = 23,
                      score_node = 24, label_node = 25, weights_node = 27;
constexpr std::size_t may_be_null[] = {pair_node, parent_node, score_node, label_node};

[[noreturn]] void wrong(const std::string& what) { throw std::invalid_argument(what); }

class Columns {
 public:
  Columns(Bytes facts, const BatchLayout& layout, std::int64_t begin) : facts_(facts), layout_(layout), begin_(begin) {}

  // `count` values of a buffer, copied: buffers need not be aligned.
  template <typename Value>
  std::vector<Value> values(std::size_t buffer, std::int64_t count) const {
    const Buffer& place = layout_.buffers[buffer];
    const std::int64_t at = place.offset - begin_;
    const auto size = static_cast<std::int64_t>(sizeof(Value));
    if (count > place.length / size || at < 0 || at > static_cast<std::int64_t>(facts_.size()) - count * size) {
      wrong("a column is shorter than its number of values");
    }
    std::vector<Value> out(static_cast<std::size_t>(count));
    if (count > 0) std::memcpy(out.data(), facts_.data() + at, static_cast<std::size_t>(count * size));
    return out;
  }

  // [groups + 1], from 0 to `size`.
  std::vector<std::int32_t> offsets(std::size_t buffer, std::int64_t groups, std::int64_t size) const {
    if (groups == 0 && layout_.buffers[buffer].length == 0) return {0};
    std::vector<std::int32_t> out = values<std::int32_t>(buffer, groups + 1);
    if (out.front() != 0 || out.back() != size || !std::ranges::is_sorted(out)) {
      wrong("the offsets of a list do not fit its values");
    }
    return out;
  }

  bool valid(const std::vector<std::uint8_t>& bits, std::size_t node, std::size_t k) const {
    return layout_.nodes[node].nulls == 0 || (bits[k / 8] >> (k % 8) & 1);
  }

  std::vector<std::uint8_t> bitmap(std::size_t buffer, std::size_t node) const {
    if (layout_.nodes[node].nulls == 0) return {};
    return values<std::uint8_t>(buffer, (layout_.nodes[node].length + 7) / 8);
  }

  std::int64_t length(std::size_t node) const { return layout_.nodes[node].length; }

 private:
  Bytes facts_;
  const BatchLayout& layout_;
  std::int64_t begin_;
};

void check_nodes(const BatchLayout& layout, std::int64_t expected_rows, std::int64_t sequence_length) {
  if (layout.rows != expected_rows) {
    wrong("has " + std::to_string(layout.rows) + " rows, expected " + std::to_string(expected_rows));
  }
  for (std::size_t k = 0; k < n_nodes; ++k) {
    const Node& node = layout.nodes[k];
    const bool nullable = std::ranges::find(may_be_null, k) != std::end(may_be_null);
    if (node.length < 0 || node.length > std::int64_t{1} << 31 || node.nulls < 0 || (node.nulls > 0 && !nullable)) {
      wrong("has null where the format has none");
    }
  }
  if (ids_place(layout).length != expected_rows * sequence_length * 4) wrong("has ids of another number of rows");
}

// The rows of a block, one after the other.
class Decoder {
 public:
  Decoder(const Columns& columns, std::int64_t rows, std::int64_t length, const Decision& decision,
          const std::vector<std::int32_t>& parents)
      : length_(length),
        decision_(decision),
        parents_(parents),
        row_runs_(columns.offsets(run_offsets, rows, columns.length(runs_node))),
        ends_(columns.values<std::int32_t>(run_end, columns.length(runs_node))),
        messages_(columns.values<std::int32_t>(run_message, columns.length(runs_node))),
        roles_(columns.values<std::uint8_t>(run_role, columns.length(runs_node))),
        parts_(columns.values<std::uint8_t>(run_part, columns.length(runs_node))),
        flags_(columns.values<std::uint8_t>(run_flags, columns.length(runs_node))),
        row_documents_(columns.offsets(document_offsets, rows, columns.length(documents_node))),
        document_ends_(columns.values<std::int32_t>(document_end, columns.length(documents_node))),
        turns_(columns.values<std::int32_t>(document_turn, columns.length(documents_node))),
        document_verdicts_(
            columns.offsets(verdict_offsets, columns.length(documents_node), columns.length(verdicts_node))),
        verdict_messages_(columns.values<std::int32_t>(verdict_message, columns.length(verdicts_node))),
        verdicts_(columns.values<std::uint8_t>(verdict_value, columns.length(verdicts_node))),
        row_weights_(columns.offsets(weight_offsets, rows, columns.length(weights_node))),
        weight_starts_(columns.values<std::int32_t>(weight_start, columns.length(weights_node))),
        weight_ends_(columns.values<std::int32_t>(weight_end, columns.length(weights_node))),
        weights_(columns.values<float>(weight_value, columns.length(weights_node))),
        n_loss_(columns.values<std::int32_t>(n_loss, rows)) {}

  void row(std::size_t r, Block& out) {
    run_ = static_cast<std::size_t>(row_runs_[r]);
    weight_ = static_cast<std::size_t>(row_weights_[r]);
    const auto runs_end = static_cast<std::size_t>(row_runs_[r + 1]);
    check_weights(r);
    std::int64_t n_loss = 0;
    std::int32_t start = 0;
    for (auto d = static_cast<std::size_t>(row_documents_[r]); d < static_cast<std::size_t>(row_documents_[r + 1]);
         ++d) {
      const std::int32_t end = document_ends_[d];
      if (end <= start || end > length_) wrong("row " + std::to_string(r) + ": document ends do not increase");
      const std::size_t first = run_;
      const bool continues = !parents_.empty() && parents_[d] > 0;
      if (continues) check_parent(r, d, out);
      n_loss += take_runs(r, runs_end, start, end);
      document(r, first, start, d, continues, out);
      out.document_ends.push_back(end);
      start = end;
    }
    if (start == 0) wrong("row " + std::to_string(r) + " holds no document");
    if (start < length_) {
      const std::size_t first = run_;
      take_runs(r, runs_end, start, static_cast<std::int32_t>(length_));
      const auto row_begin = static_cast<std::size_t>(out.run_offsets.back());
      for (std::size_t run = first; run < run_; ++run) {
        push({ends_[run], 0.0F, role::padding, part::none, false}, row_begin, out);
      }
    }
    if (run_ != runs_end) wrong("row " + std::to_string(r) + ": runs go on after the row");
    if (n_loss != n_loss_[r]) {
      wrong("row " + std::to_string(r) + ": " + std::to_string(n_loss) + " tokens have loss, n_loss says " +
            std::to_string(n_loss_[r]));
    }
    out.totals.push_back(totals_of(r, start, out));
    out.run_offsets.push_back(static_cast<std::int32_t>(out.runs.size()));
    out.document_offsets.push_back(static_cast<std::int32_t>(out.document_ends.size()));
  }

 private:
  // Of the row whose runs were pushed last.
  RowTotals totals_of(std::size_t r, std::int32_t documents_end, const Block& out) const {
    RowTotals sum{};
    sum.longest = static_cast<std::int32_t>(length_) - documents_end;
    std::int32_t start = 0;
    for (auto q = static_cast<std::size_t>(out.run_offsets.back()); q < out.runs.size(); ++q) {
      const Run& run = out.runs[q];
      if (run.loss) {
        sum.tokens += run.end - start;
        sum.weight += static_cast<double>(run.weight) * (run.end - start);
      }
      start = run.end;
    }
    start = 0;
    for (auto d = static_cast<std::size_t>(row_documents_[r]); d < static_cast<std::size_t>(row_documents_[r + 1]);
         ++d) {
      sum.pairs += out.branches[d] == branch::chosen;
      sum.rated += !out.desirable.empty() && out.desirable[d] >= 0;
      sum.shared |= !parents_.empty() && parents_[d] > 0;
      sum.longest = std::max(sum.longest, document_ends_[d] - start);
      start = document_ends_[d];
    }
    return sum;
  }

  void check_parent(std::size_t r, std::size_t d, const Block& out) const {
    const auto back = static_cast<std::size_t>(parents_[d]);
    const bool inside = back <= d - static_cast<std::size_t>(row_documents_[r]);
    const bool fits = inside && out.branches[d] >= branch::chosen && out.branches[d - back] == branch::prompt &&
                      out.pairs[d] == out.pairs[d - back];
    if (!fits) wrong("row " + std::to_string(r) + ": a branch does not continue a prompt of its pair");
  }

  // Moves on over the runs that tile [start, end); returns how many of their tokens have the stored loss flag.
  std::int64_t take_runs(std::size_t r, std::size_t runs_end, std::int32_t start, std::int32_t end) {
    std::int64_t n_loss = 0;
    std::int32_t at = start;
    const std::int32_t* const ends = ends_.data();
    std::size_t run = run_;
    for (; at < end; ++run) {
      if (run == runs_end || ends[run] <= at || ends[run] > end) {
        wrong("row " + std::to_string(r) + ": runs do not tile [" + std::to_string(start) + ", " + std::to_string(end) +
              ")");
      }
      if (flags_[run] & flag::loss) n_loss += ends[run] - at;
      at = ends[run];
    }
    run_ = run;
    return n_loss;
  }

  void check_weights(std::size_t r) const {
    std::int32_t at = 0;
    for (auto w = static_cast<std::size_t>(row_weights_[r]); w < static_cast<std::size_t>(row_weights_[r + 1]); ++w) {
      const bool ordered = weight_starts_[w] >= at && weight_ends_[w] > weight_starts_[w] && weight_ends_[w] <= length_;
      if (!ordered || !std::isfinite(weights_[w]) || weights_[w] < 0) {
        wrong("row " + std::to_string(r) + ": a weight range is out of order or no weight");
      }
      at = weight_ends_[w];
    }
  }

  // `continues`: the last token of its prompt predicts its first token.
  void document(std::size_t r, std::size_t first, std::int32_t start, std::size_t d, bool continues, Block& out) {
    const std::size_t count = run_ - first;
    const auto turns = static_cast<std::size_t>(document_verdicts_[d]);
    const auto n_turns = static_cast<std::size_t>(document_verdicts_[d + 1]) - turns;
    const FactsView facts{std::span(roles_).subspan(first, count),
                          std::span(parts_).subspan(first, count),
                          std::span(flags_).subspan(first, count),
                          std::span(messages_).subspan(first, count),
                          {}};
    if (decision_.policy) {
      decide(*decision_.policy, facts,
             {std::span(verdict_messages_).subspan(turns, n_turns), std::span(verdicts_).subspan(turns, n_turns),
              turns_[d]},
             decided_);
    } else {
      set_kinds(facts, decided_.kind);
    }
    // Of one's own: stores of bytes, as all of these are, would have each read again for every run.
    const std::span<const std::uint8_t> roles = facts.roles, parts = facts.parts, flags = facts.flags,
                                        kinds = decided_.kind, allowed = decided_.loss;
    const std::span<const std::int32_t> ends = std::span(ends_).subspan(first, count);
    const bool anew = decision_.policy.has_value(), weighted = row_weights_[r] < row_weights_[r + 1];
    const auto row_begin = static_cast<std::size_t>(out.run_offsets.back());
    std::int32_t at = start;
    for (std::size_t k = 0; k < count; ++k) {
      const bool loss = anew ? allowed[k] != 0 : (flags[k] & flag::loss) != 0;
      if (roles[k] == role::padding || kinds[k] > part::last) {
        wrong("row " + std::to_string(r) + ": padding inside a document");
      }
      const float factor = decision_.weights[roles[k] * std::size_t{8} + kinds[k]];
      if (loss && at == start && !continues) {  // nothing before it predicts it
        push({++at, 0.0F, roles[k], parts[k], false}, row_begin, out);
      }
      while (at < ends[k]) {
        std::int32_t stop = ends[k];
        const float weight = weighted ? weight_at(r, at, stop) * factor : factor;
        push({stop, loss ? weight : 0.0F, roles[k], parts[k], loss && weight > 0}, row_begin, out);
        at = stop;
      }
    }
  }

  // The source weight of token `at`, and `stop` moved back to where another one begins. `at` never descends in a row.
  float weight_at(std::size_t r, std::int32_t at, std::int32_t& stop) {
    const auto last = static_cast<std::size_t>(row_weights_[r + 1]);
    while (weight_ < last && weight_ends_[weight_] <= at) ++weight_;
    if (weight_ == last) return 1.0F;
    if (weight_starts_[weight_] > at) {
      stop = std::min(stop, weight_starts_[weight_]);
      return 1.0F;
    }
    stop = std::min(stop, weight_ends_[weight_]);
    return weights_[weight_];
  }

  // row_begin: where the runs of its row begin.
  static void push(const Run& run, std::size_t row_begin, Block& out) {
    if (out.runs.size() > row_begin) {
      Run& last = out.runs.back();
      if (last.role == run.role && last.part == run.part && last.weight == run.weight && last.loss == run.loss) {
        last.end = run.end;
        return;
      }
    }
    out.runs.push_back(run);
  }

  std::int64_t length_;
  const Decision& decision_;
  const std::vector<std::int32_t>& parents_;
  std::vector<std::int32_t> row_runs_, ends_, messages_;
  std::vector<std::uint8_t> roles_, parts_, flags_;
  std::vector<std::int32_t> row_documents_, document_ends_, turns_, document_verdicts_, verdict_messages_;
  std::vector<std::uint8_t> verdicts_;
  std::vector<std::int32_t> row_weights_, weight_starts_, weight_ends_;
  std::vector<float> weights_;
  std::vector<std::int32_t> n_loss_;
  std::size_t run_ = 0, weight_ = 0;
  Decided decided_;  // of the document at hand
};

}  // namespace

void RowTotals::add(const RowTotals& other) {
  tokens += other.tokens;
  pairs += other.pairs;
  rated += other.rated;
  weight += other.weight;
  longest = std::max(longest, other.longest);
  shared |= other.shared;
}

std::int64_t Block::bytes() const {
  return static_cast<std::int64_t>(sizeof(Block) + ids_hashes.capacity() * 8 + run_offsets.capacity() * 8 +
                                   runs.capacity() * sizeof(Run) + document_ends.capacity() * 4 + branches.capacity() +
                                   pairs.capacity() * 8 + parents.capacity() * 4 + scores.capacity() * 4 +
                                   desirable.capacity() + totals.capacity() * sizeof(RowTotals));
}

RowFacts Block::row(std::size_t number) const {
  const auto part = [&](const auto& values, const std::vector<std::int32_t>& offsets) {
    return std::span(values).subspan(static_cast<std::size_t>(offsets[number]),
                                     static_cast<std::size_t>(offsets[number + 1] - offsets[number]));
  };
  return {part(runs, run_offsets), part(document_ends, document_offsets),
          parents.empty() ? std::span<const std::int32_t>() : part(parents, document_offsets)};
}

Block decode_block(Bytes facts, const BatchLayout& layout, const BatchPlace& place, std::int64_t expected_rows,
                   std::int64_t sequence_length, const Decision& decision) {
  const Buffer ids = ids_place(layout);
  check_nodes(layout, expected_rows, sequence_length);
  Block out{};
  out.ids_offset = place.offset + place.metadata + ids.offset;
  if (out.ids_offset % 4 != 0) wrong("has ids that are not aligned");
  const Columns columns(facts, layout, ids.offset + ids.length);
  out.ids_hashes = columns.values<std::uint64_t>(ids_xxh3, expected_rows);
  const std::int64_t documents = columns.length(documents_node);
  out.branches = columns.values<std::uint8_t>(branch_value, documents);
  const auto bitmap_of = [&](std::size_t node, std::size_t buffer) {
    if (columns.length(node) != documents) wrong("the columns of documents differ in length");
    return columns.bitmap(buffer, node);
  };
  const std::vector<std::uint8_t> has_pair = bitmap_of(pair_node, pair_valid),
                                  has_parent = bitmap_of(parent_node, parent_valid),
                                  has_score = bitmap_of(score_node, score_valid),
                                  has_label = bitmap_of(label_node, label_valid);
  if (layout.nodes[pair_node].nulls < documents) {
    out.pairs = columns.values<std::int64_t>(pair_value, documents);
    for (std::size_t d = 0; d < out.pairs.size(); ++d) {
      if (!columns.valid(has_pair, pair_node, d)) out.pairs[d] = -1;
    }
  }
  if (layout.nodes[parent_node].nulls < documents) {
    if (out.pairs.empty()) wrong("a document has a parent and no pair");
    out.parents = columns.values<std::int32_t>(parent_value, documents);
    for (std::size_t d = 0; d < out.parents.size(); ++d) {
      if (!columns.valid(has_parent, parent_node, d)) out.parents[d] = 0;
      if (out.parents[d] < 0) wrong("a document's parent stands after it");
    }
  }
  if (layout.nodes[score_node].nulls < documents) {
    out.scores = columns.values<float>(score_value, documents);
    for (std::size_t d = 0; d < out.scores.size(); ++d) {
      if (!columns.valid(has_score, score_node, d)) {
        out.scores[d] = std::numeric_limits<float>::quiet_NaN();
      } else if (!std::isfinite(out.scores[d])) {
        wrong("a document's score is not finite");
      }
    }
  }
  if (layout.nodes[label_node].nulls < documents) {
    const auto bits = columns.values<std::uint8_t>(label_value, (documents + 7) / 8);
    out.desirable.resize(static_cast<std::size_t>(documents), -1);
    for (std::size_t d = 0; d < out.desirable.size(); ++d) {
      if (columns.valid(has_label, label_node, d)) out.desirable[d] = bits[d / 8] >> (d % 8) & 1;
    }
  }
  out.run_offsets.reserve(static_cast<std::size_t>(expected_rows) + 1);
  out.totals.reserve(static_cast<std::size_t>(expected_rows));
  out.document_offsets.reserve(static_cast<std::size_t>(expected_rows) + 1);
  out.run_offsets.push_back(0);
  out.document_offsets.push_back(0);
  Decoder decoder(columns, expected_rows, sequence_length, decision,
                  out.parents);  // all columns are as long as they say
  out.runs.reserve(static_cast<std::size_t>(columns.length(runs_node) + documents));
  out.document_ends.reserve(static_cast<std::size_t>(documents));
  for (std::int64_t r = 0; r < expected_rows; ++r) decoder.row(static_cast<std::size_t>(r), out);
  out.runs.shrink_to_fit();
  out.document_ends.shrink_to_fit();
  return out;
}

}  // namespace maskpipe
