#include "audit.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "facts.h"
#include "hash.h"

namespace maskpipe {
namespace {

constexpr std::size_t n_parts = part::last + 1;

bool known_role(std::uint8_t value) { return value <= role::last || value == role::unknown; }
std::size_t role_index(std::uint8_t value) { return value == role::unknown ? Audit::roles - 1 : value; }
bool own_text(std::uint8_t value) { return value != part::none && value != part::scaffold && value != part::stop; }

// A stretch of sampled assistant tokens of one message.
struct Turn {
  std::int32_t message, start, end;
  std::size_t first_run, last_run;
  std::int32_t loss = 0, first_loss = -1, last_loss = -1;  // tokens; positions
  std::int32_t stop_start = -1, stop_end = -1;             // the first stop in it
};

void check_view(const AuditView& view, std::int64_t length) {
  check_shapes(view.rows.runs, "row_run_offsets");
  const std::size_t documents = view.rows.document_ends.size(), rows = view.rows.n_loss.size();
  check_offsets(view.rows.row_document_offsets, documents, "row_document_offsets");
  check_offsets(view.verdict_offsets, view.verdicts.size(), "verdict_offsets");
  check_offsets(view.weight_offsets, view.weights.size(), "weight_offsets");
  const auto demand = [](bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(std::string(what) + " have another length than they should");
  };
  demand(view.rows.input_ids.size() / static_cast<std::size_t>(length) == rows &&
             view.rows.input_ids.size() % static_cast<std::size_t>(length) == 0,
         "input_ids");
  demand(view.rows.runs.offsets.size() == rows + 1, "row_run_offsets");
  demand(view.rows.row_document_offsets.size() == rows + 1, "row_document_offsets");
  demand(view.weight_offsets.size() == rows + 1, "weight_offsets");
  demand(view.verdict_offsets.size() == documents + 1, "verdict_offsets");
  demand(view.sources.size() == documents && view.records.size() == documents && view.turns.size() == documents &&
             view.starts.size() == documents && view.lengths.size() == documents && view.pairs.size() == documents &&
             view.branches.size() == documents && view.parents.size() == documents,
         "sources, records, turns, starts, lengths, pairs, branches or parents");
  demand(view.verdict_messages.size() == view.verdicts.size(), "verdict_messages");
  demand(view.weight_starts.size() == view.weights.size() && view.weight_ends.size() == view.weights.size(),
         "weight_starts or weight_ends");
}

}  // namespace

// One row at a time; scratch is kept between rows.
class RowAudit {
 public:
  RowAudit(Audit& audit, const AuditView& view, std::int64_t first_row, AuditedRows& out)
      : audit_(audit), rules_(audit.rules_), view_(view), runs_(view.rows.runs), first_row_(first_row), out_(out) {}

  // After the last row.
  void finish() {
    for (std::size_t script = 0; script < audit_.scripts_.size(); ++script) {
      const auto of = [&](std::size_t loss) {
        return std::accumulate(scripts_[loss].begin(), scripts_[loss].end(), std::int64_t{0},
                               [&](std::int64_t sum, const auto& table) { return sum + table[script]; });
      };
      audit_.scripts_[script].tokens += of(0) + of(1);
      audit_.scripts_[script].loss += of(1);
    }
  }

  void row(std::size_t r) {
    row_ = first_row_ + static_cast<std::int64_t>(r);
    document_ = -1;
    const auto length = static_cast<std::int32_t>(rules_.sequence_length);
    ids_ = view_.rows.input_ids.subspan(r * static_cast<std::size_t>(length), static_cast<std::size_t>(length));
    const bool ids_fit = check_ids();
    const auto run = static_cast<std::size_t>(runs_.offsets[r]),
               last_run = static_cast<std::size_t>(runs_.offsets[r + 1]);
    const auto document = static_cast<std::size_t>(view_.rows.row_document_offsets[r]),
               last_document = static_cast<std::size_t>(view_.rows.row_document_offsets[r + 1]);
    if (!holds_together(run, last_run, document, last_document)) return;
    weight_ = static_cast<std::size_t>(view_.weight_offsets[r]);
    last_weight_ = static_cast<std::size_t>(view_.weight_offsets[r + 1]);
    weights_fit_ = check_weights();
    std::int64_t loss = 0;
    std::size_t at = run;
    std::int32_t start = 0;
    for (std::size_t d = document; d < last_document; ++d) {
      document_ = static_cast<std::int32_t>(d - document);
      const std::size_t first = at;
      const std::int32_t end = view_.rows.document_ends[d];
      while (at < last_run && runs_.ends[at] <= end) ++at;
      loss += one_document(d, first, at, start, end, ids_fit);
      start = end;
    }
    check_pairs(document, last_document);
    document_ = -1;
    loss += padding(at, last_run, start);
    if (loss != view_.rows.n_loss[r]) found(Defect::n_loss, 0, length);
  }

 private:
  Audit& audit_;
  const AuditRules& rules_;
  const AuditView& view_;
  const RunsView& runs_;
  std::int64_t first_row_;
  AuditedRows& out_;
  std::int64_t row_ = 0;
  std::int32_t document_ = -1;
  std::span<const std::int32_t> ids_;
  std::size_t weight_ = 0, last_weight_ = 0;
  bool weights_fit_ = true;
  std::vector<Turn> turns_;
  std::vector<std::pair<std::int32_t, std::int32_t>> zero_;                // ranges of weight 0 in the document
  std::array<std::array<std::array<std::int64_t, 256>, 4>, 2> scripts_{};  // [loss][four of each]
  Decided decided_;
  std::vector<std::int32_t> open_;  // [pairs] opened and not closed

  void found(Defect defect, std::int32_t start, std::int32_t end, std::int64_t count = 1) {
    const auto which = static_cast<std::size_t>(defect);
    audit_.counts_[which] += count;
    if (audit_.kept_[which] >= rules_.max_places) return;
    ++audit_.kept_[which];
    audit_.places_.push_back({defect, row_, start, end, document_});
  }
  void found_tokens(Defect defect, std::int32_t start, std::int32_t end) {
    if (end > start) found(defect, start, end, end - start);
  }

  std::int32_t run_start(std::size_t run, std::size_t first, std::int32_t start) const {
    return run == first ? start : runs_.ends[run - 1];
  }
  bool has(std::size_t run, std::uint8_t bit) const { return (runs_.flags[run] & bit) != 0; }

  bool check_ids() {
    const auto last = static_cast<std::uint32_t>(std::min<std::int64_t>(rules_.vocab_size - 1, INT32_MAX));
    std::uint32_t outside_at_all = 0;  // its highest bit: an id is negative, or the last one less it
    for (const std::int32_t id : ids_) {
      const auto value = static_cast<std::uint32_t>(id);
      outside_at_all |= value | (last - value);
    }
    if (!(outside_at_all >> 31)) return true;
    const auto outside = [&](std::int32_t id) { return id < 0 || id >= rules_.vocab_size; };
    for (std::size_t k = 0; k < ids_.size(); ++k) {
      if (!outside(ids_[k])) continue;
      const std::size_t begin = k;
      while (k < ids_.size() && outside(ids_[k])) ++k;
      found_tokens(Defect::id_outside, static_cast<std::int32_t>(begin), static_cast<std::int32_t>(k));
    }
    return false;
  }

  bool holds_together(std::size_t run, std::size_t last_run, std::size_t document, std::size_t last_document) {
    const auto length = static_cast<std::int32_t>(rules_.sequence_length);
    std::int32_t at = 0;
    const auto wrong = [&](std::int32_t where) {
      found(Defect::row_malformed, std::min(where, length), length);
      return false;
    };
    if (document == last_document) return wrong(0);
    for (std::size_t d = document; d < last_document; ++d) {
      if (view_.rows.document_ends[d] <= at || view_.rows.document_ends[d] > length) return wrong(at);
      at = view_.rows.document_ends[d];
    }
    at = 0;
    for (; run < last_run; ++run) {
      const std::int32_t end = runs_.ends[run];
      if (end <= at || end > length) return wrong(at);
      if (document < last_document && end > view_.rows.document_ends[document]) return wrong(at);
      if (document < last_document && end == view_.rows.document_ends[document]) ++document;
      const bool values = known_role(runs_.roles[run]) && runs_.parts[run] <= part::last &&
                          !(runs_.flags[run] & ~flag::all) && runs_.messages[run] >= -1;
      if (!values) return wrong(at);
      at = end;
    }
    return at == length || wrong(at);
  }

  bool check_weights() {
    std::int32_t at = 0;
    for (std::size_t w = weight_; w < last_weight_; ++w) {
      const bool fits = view_.weight_starts[w] >= at && view_.weight_ends[w] > view_.weight_starts[w] &&
                        view_.weight_ends[w] <= rules_.sequence_length && std::isfinite(view_.weights[w]) &&
                        view_.weights[w] >= 0 && view_.weights[w] != 1;
      if (!fits) {
        found(Defect::weights_malformed, at, static_cast<std::int32_t>(rules_.sequence_length));
        return false;
      }
      at = view_.weight_ends[w];
    }
    return true;
  }

  // Both answers of a pair stand in one row, and differ.
  void check_pairs(std::size_t document, std::size_t last_document) {
    const auto start_of = [&](std::size_t d) { return d == document ? 0 : view_.rows.document_ends[d - 1]; };
    const auto ids_of = [&](std::size_t d) {
      return ids_.subspan(static_cast<std::size_t>(start_of(d)),
                          static_cast<std::size_t>(view_.rows.document_ends[d] - start_of(d)));
    };
    for (std::size_t d = document; d < last_document; ++d) {
      const std::uint8_t is = view_.branches[d];
      if (is != branch::chosen && is != branch::rejected) continue;
      const std::uint8_t wanted = is == branch::chosen ? branch::rejected : branch::chosen;
      std::size_t other = document;
      while (other < last_document && (view_.pairs[other] != view_.pairs[d] || view_.branches[other] != wanted))
        ++other;
      document_ = static_cast<std::int32_t>(d - document);
      if (other == last_document) {
        found(Defect::pair_incomplete, start_of(d), view_.rows.document_ends[d]);
      } else if (is == branch::chosen && std::ranges::equal(ids_of(d), ids_of(other))) {
        found(Defect::pair_collapsed, start_of(d), view_.rows.document_ends[d]);
      }
    }
  }

  std::int64_t padding(std::size_t run, std::size_t last_run, std::int32_t start) {
    std::int64_t loss = 0;
    for (std::int32_t at = start; run < last_run; at = runs_.ends[run], ++run) {
      const std::int32_t end = runs_.ends[run];
      tally(audit_.kinds_[role_index(runs_.roles[run]) * n_parts + runs_.parts[run]], run, end - at);
      if (has(run, flag::loss)) {
        loss += end - at;
        found_tokens(Defect::padding_trained, at, end);
      }
      const bool facts = runs_.roles[run] == role::padding && runs_.parts[run] == part::none &&
                         !(runs_.flags[run] & ~flag::loss) && runs_.messages[run] == -1;
      if (!facts) {
        found_tokens(Defect::padding_wrong, at, end);
        continue;
      }
      for (std::int32_t k = at; k < end; ++k) {
        if (id(k) == rules_.pad_id) continue;
        const std::int32_t begin = k;
        while (k < end && id(k) != rules_.pad_id) ++k;
        found_tokens(Defect::padding_wrong, begin, k);
      }
    }
    return loss;
  }

  std::int32_t id(std::int32_t position) const { return ids_[static_cast<std::size_t>(position)]; }
  std::uint16_t known(std::int32_t position) const { return rules_.ids[static_cast<std::size_t>(id(position))]; }

  void tally(Tally& out, std::size_t run, std::int64_t tokens) const {
    out.tokens += tokens;
    if (has(run, flag::sampled)) out.sampled += tokens;
    if (has(run, flag::loss)) out.loss += tokens;
  }

  // Returns how many tokens have loss.
  std::int64_t one_document(std::size_t d, std::size_t first, std::size_t last, std::int32_t start, std::int32_t end,
                            bool ids_fit) {
    const std::size_t count = last - first;
    const FactsView facts{runs_.roles.subspan(first, count),
                          runs_.parts.subspan(first, count),
                          runs_.flags.subspan(first, count),
                          runs_.messages.subspan(first, count),
                          {}};
    const auto verdict = static_cast<std::size_t>(view_.verdict_offsets[d]);
    const auto n_verdicts = static_cast<std::size_t>(view_.verdict_offsets[d + 1]) - verdict;
    const Turns known_turns{view_.verdict_messages.subspan(verdict, n_verdicts),
                            view_.verdicts.subspan(verdict, n_verdicts), view_.turns[d]};
    decide(rules_.policy, facts, known_turns, decided_);
    zero_ranges(start, end);
    const std::uint16_t any = ids_fit ? look_at_ids(first, last, start) : 0;
    find_turns(first, last, start, known_turns.own);
    std::int64_t loss = 0;
    for (std::size_t run = first; run < last; ++run) {
      const std::int32_t at = run_start(run, first, start);
      if (has(run, flag::loss)) loss += runs_.ends[run] - at;
      one_run(run, at, start, first, decided_.loss[run - first] != 0, known_turns);
    }
    for (const Turn& turn : turns_) {
      one_turn(turn, last, start, end, known_turns, ids_fit);
      if (turn.loss > 0 && ids_fit && view_.parents[d] == 0) check_marks(turn, first, last, start, any);
    }
    unsampled_turns(first, last, start, known_turns);
    behind_own_turn(last, known_turns.own);
    const bool text = runs_.roles[first] == role::text;
    const bool piece = view_.starts[d] != 0 || end - start != view_.lengths[d];
    if (piece && !text && !rules_.may_cut) found(Defect::chat_cut, start, end);
    if (end - start == 1) {
      found(Defect::single_token, start, end);
    } else if (loss == 0 && view_.branches[d] != branch::prompt) {
      found(Defect::nothing_trained, start, end);
    }
    if (ids_fit && view_.starts[d] == 0 && view_.parents[d] == 0) {
      check_bos(start, end, text ? rules_.text : rules_.chat);
    }
    report(d, first, last, start, end, loss, ids_fit);
    return loss;
  }

  void zero_ranges(std::int32_t start, std::int32_t end) {
    zero_.clear();
    if (!weights_fit_) return;
    while (weight_ < last_weight_ && view_.weight_ends[weight_] <= start) ++weight_;
    for (std::size_t w = weight_; w < last_weight_ && view_.weight_starts[w] < end; ++w) {
      if (view_.weights[w] == 0) {
        zero_.emplace_back(std::max(start, view_.weight_starts[w]), std::min(end, view_.weight_ends[w]));
      }
    }
  }

  // Calls `inside` for the ranges of [start, end) of weight 0, and `outside` for the others.
  template <typename Inside, typename Outside>
  void by_weight(std::int32_t start, std::int32_t end, Inside inside, Outside outside) const {
    for (const auto& [from, to] : zero_) {
      if (to <= start) continue;
      if (from >= end) break;
      if (from > start) outside(start, from);
      inside(std::max(from, start), std::min(to, end));
      start = std::min(to, end);
    }
    if (start < end) outside(start, end);
  }

  void find_turns(std::size_t first, std::size_t last, std::int32_t start, std::int32_t own) {
    turns_.clear();
    for (std::size_t run = first; run < last; ++run) {
      if (!has(run, flag::sampled)) continue;
      const std::int32_t at = run_start(run, first, start), end = runs_.ends[run];
      if (runs_.roles[run] != role::assistant) {
        if (runs_.roles[run] != role::text) found_tokens(Defect::sampled_elsewhere, at, end);
        continue;
      }
      const std::int32_t message = runs_.messages[run];
      if (own >= 0 && message != own) found_tokens(Defect::sampled_elsewhere, at, end);
      const bool goes_on = !turns_.empty() && turns_.back().message == message;
      if (goes_on) {
        if (turns_.back().end != at) found_tokens(Defect::hole, turns_.back().end, at);
      } else {
        if (!turns_.empty() && message < turns_.back().message) found(Defect::turn_order, at, end);
        turns_.push_back({message, at, at, run, run});
      }
      Turn& turn = turns_.back();
      turn.end = end;
      turn.last_run = run;
      if (turn.stop_end >= 0) {
        found_tokens(Defect::sampled_elsewhere, at, end);
      } else if (runs_.parts[run] == part::stop) {
        turn.stop_start = at;
        turn.stop_end = end;
      }
      if (has(run, flag::loss)) {
        if (turn.loss == 0) turn.first_loss = at;
        turn.loss += end - at;
        turn.last_loss = end - 1;
      }
    }
  }

  void one_run(std::size_t run, std::int32_t at, std::int32_t start, std::size_t first, bool decided,
               const Turns& turns) {
    const std::int32_t end = runs_.ends[run];
    const std::int64_t tokens = end - at;
    tally(audit_.kinds_[role_index(runs_.roles[run]) * n_parts + runs_.parts[run]], run, tokens);
    const std::int32_t message = runs_.messages[run];
    tally(audit_.messages_[std::min<std::size_t>(static_cast<std::size_t>(message + 1), Audit::messages - 1)], run,
          tokens);
    const bool no_role = runs_.roles[run] == role::padding || runs_.roles[run] == role::unknown;
    if (no_role || runs_.parts[run] == part::none) found_tokens(Defect::role_missing, at, end);
    if (run > first && runs_.roles[run] == runs_.roles[run - 1] && runs_.parts[run] == runs_.parts[run - 1] &&
        runs_.flags[run] == runs_.flags[run - 1] && message == runs_.messages[run - 1]) {
      found(Defect::run_repeats, at, end);
    }
    if (has(run, flag::loss)) {
      if (at == start) found(Defect::first_trained, at, at + 1);
      const std::int32_t from = at == start ? at + 1 : at;
      if (decided) {
        by_weight(from, end, [&](auto a, auto b) { found_tokens(Defect::weight_0_trained, a, b); }, [](auto, auto) {});
      } else {
        found_tokens(why_trained(run, at, turns), from, end);
      }
    } else if (decided) {
      by_weight(
          at == start ? at + 1 : at, end, [](auto, auto) {},
          [&](std::int32_t a, std::int32_t b) {
            if (runs_.parts[run] == part::stop) {
              found(Defect::stop_not_trained, a, b);
            } else {
              found_tokens(Defect::not_trained, a, b);
            }
          });
    }
  }

  // Which defect it is that the tokens of a run have loss, which the policy does not give them.
  Defect why_trained(std::size_t run, std::int32_t at, const Turns& turns) const {
    if (has(run, flag::straddles)) return Defect::straddler_trained;
    if (has(run, flag::empty_reasoning) && !rules_.policy.rule.empty_reasoning) return Defect::empty_reasoning_trained;
    if (runs_.roles[run] != role::assistant) return Defect::other_trained;
    const std::int32_t message = runs_.messages[run];
    if (turns.own >= 0 && message != turns.own) return Defect::not_chosen_trained;
    const auto where = std::ranges::find(turns.messages, message);
    const auto number = static_cast<std::size_t>(where - turns.messages.begin());
    if (where == turns.messages.end() || turns.verdicts[number] & verdict::refused) return Defect::refused_trained;
    if (!chosen(rules_.policy, number, turns.messages.size())) return Defect::not_chosen_trained;
    const bool rewritten = turns.verdicts[number] & verdict::history_differs;
    if (turns.own < 0 && rewritten && !rules_.policy.accept_rewritten) return Defect::history_trained;
    if (has(run, flag::sampled)) return Defect::not_chosen_trained;
    for (const Turn& turn : turns_) {
      if (turn.message == message && at > turn.start) return Defect::after_stop_trained;
    }
    return Defect::header_trained;
  }

  void one_turn(const Turn& turn, std::size_t last, std::int32_t start, std::int32_t end, const Turns& turns,
                bool ids_fit) {
    check_beginning(turn, start, end, ids_fit);
    if (turn.loss == 0) return;
    const auto where = std::ranges::find(turns.messages, turn.message);
    const bool no_stop = where != turns.messages.end() &&
                         turns.verdicts[static_cast<std::size_t>(where - turns.messages.begin())] & verdict::no_stop;
    const bool stops = turn.stop_end >= 0;
    if (!stops) {
      const std::size_t next = turn.last_run + 1;
      const bool straddles = next < last && has(next, flag::straddles);
      found(no_stop || straddles ? Defect::turn_without_stop : Defect::stop_not_trained, turn.start, turn.end);
    } else if (ids_fit) {
      const bool more = turn.stop_end - turn.stop_start > 1 && known(turn.stop_start) & id_class::stop;
      if (more) found(Defect::stop_doubled, turn.stop_start, turn.stop_end);
      if (rules_.stops_known && !(known(turn.stop_end - 1) & id_class::stop)) {
        found(Defect::stop_unknown, turn.stop_start, turn.stop_end);
      }
    }
    out_.turn_first.push_back(id(turn.first_loss));
    out_.turn_last.push_back(id(turn.last_loss));
    out_.turn_stop.push_back(stops ? id(turn.stop_end - 1) : -1);
    out_.turn_stop_trained.push_back(stops && turn.last_loss >= turn.stop_end - 1);
  }

  bool stands_at(std::span<const std::int32_t> header, std::int32_t at, std::int32_t start, std::int32_t end) const {
    const auto size = static_cast<std::int32_t>(header.size());
    return at >= start && at + size <= end &&
           std::ranges::equal(header, ids_.subspan(static_cast<std::size_t>(at), header.size()));
  }

  // What is sampled must begin where the header of the turn ends.
  void check_beginning(const Turn& turn, std::int32_t start, std::int32_t end, bool ids_fit) {
    if (rules_.headers.empty() || !ids_fit || has(turn.first_run, flag::empty_reasoning)) return;
    const auto ends_at = [&](std::int32_t at) {
      return std::ranges::any_of(rules_.headers, [&](const std::vector<std::int32_t>& header) {
        return stands_at(header, at - static_cast<std::int32_t>(header.size()), start, end);
      });
    };
    if (ends_at(turn.start)) return;
    for (const std::vector<std::int32_t>& header : rules_.headers) {
      const auto size = static_cast<std::int32_t>(header.size());
      for (std::int32_t inside = 1; inside <= size; ++inside) {
        if (stands_at(header, turn.start - (size - inside), start, end)) {
          found_tokens(Defect::header_sampled, turn.start, turn.start + inside);
          return;
        }
      }
    }
    std::int32_t at = turn.start;
    for (std::size_t run = turn.first_run; run-- > 0 && at > start;) {
      const bool own = runs_.ends[run] == at && runs_.roles[run] == role::assistant &&
                       runs_.messages[run] == turn.message && own_text(runs_.parts[run]) &&
                       !(runs_.flags[run] & (flag::straddles | flag::sampled));
      if (!own) break;
      const std::int32_t from = run == 0 || runs_.ends[run - 1] >= at ? 0 : runs_.ends[run - 1];
      for (; at > std::max(from, start);) {
        if (ends_at(--at)) {
          found_tokens(Defect::start_not_sampled, at, turn.start);
          return;
        }
      }
    }
  }

  void unsampled_turns(std::size_t first, std::size_t last, std::int32_t start, const Turns& turns) {
    for (std::size_t number = 0; number < turns.messages.size(); ++number) {
      const std::int32_t message = turns.messages[number];
      if (turns.own >= 0 && message != turns.own) continue;
      if (turns.verdicts[number] & (verdict::history_differs | verdict::refused)) continue;
      if (std::ranges::any_of(turns_, [&](const Turn& turn) { return turn.message == message; })) continue;
      for (std::size_t run = first; run < last; ++run) {
        if (runs_.messages[run] == message && runs_.roles[run] == role::assistant && own_text(runs_.parts[run]) &&
            !has(run, flag::straddles)) {
          found(Defect::turn_not_sampled, run_start(run, first, start), runs_.ends[run]);
          break;
        }
      }
    }
  }

  void behind_own_turn(std::size_t last, std::int32_t own) {
    if (own < 0 || turns_.empty() || turns_.back().message != own) return;
    for (std::size_t run = turns_.back().last_run + 1; run < last; ++run) {
      if (runs_.parts[run] != part::scaffold && !has(run, flag::straddles)) {
        found(Defect::text_after_own_turn, turns_.back().end, runs_.ends[last - 1]);
        return;
      }
    }
  }

  void check_bos(std::int32_t start, std::int32_t end, const Bos& bos) {
    if (bos.least < 0) return;
    std::int32_t at = start;
    while (at < end && known(at) & id_class::bos) ++at;
    if (at - start < bos.least) found(Defect::bos_missing, start, start + 1);
    if (at - start > bos.most) found(Defect::bos_doubled, start, at);
  }

  // Returns what is known of any of the document's ids.
  std::uint16_t look_at_ids(std::size_t first, std::size_t last, std::int32_t start) {
    const std::uint16_t* const table = rules_.ids.data();
    std::uint16_t all = 0;
    std::int32_t at = start;
    for (std::size_t run = first; run < last; at = runs_.ends[run], ++run) {
      const std::int32_t stop = runs_.ends[run];
      std::uint16_t any = 0;
      auto& scripts = scripts_[has(run, flag::loss)];
      const std::int32_t* id = ids_.data() + at;
      const std::int32_t* const end = ids_.data() + stop;
      for (; end - id >= 4;
           id += 4) {  // neighbours mostly are of one script, and in one table would wait for each other
        const std::uint16_t one = table[id[0]], two = table[id[1]], three = table[id[2]], four = table[id[3]];
        any |= one | two | three | four;
        ++scripts[0][one >> 8];
        ++scripts[1][two >> 8];
        ++scripts[2][three >> 8];
        ++scripts[3][four >> 8];
      }
      for (std::size_t k = 0; id < end; ++id, ++k) {
        any |= table[*id];
        ++scripts[k][table[*id] >> 8];
      }
      all |= any;
      if (any & id_class::unknown)
        each(at, stop, Defect::unknown_token, [&](std::int32_t k) { return (known(k) & id_class::unknown) != 0; });
      if (any & id_class::control && own_text(runs_.parts[run]) && !has(run, flag::empty_reasoning)) {
        const unsigned bit = 1U << role_index(runs_.roles[run]);
        each(at, stop, Defect::control_in_content, [&](std::int32_t k) {
          return known(k) & id_class::control && !(rules_.allowed[static_cast<std::size_t>(this->id(k))] & bit);
        });
      }
    }
    return all;
  }

  template <typename Is>
  void each(std::int32_t start, std::int32_t end, Defect defect, Is is) {
    for (std::int32_t k = start; k < end; ++k) {
      if (!is(k)) continue;
      const std::int32_t begin = k;
      while (k < end && is(k)) ++k;
      found_tokens(defect, begin, k);
    }
  }

  // Marks that open and close, in the text of a turn, its header and the end of the prompt before it.
  // `any`: what is known of any id of the document.
  void check_marks(const Turn& turn, std::size_t first, std::size_t last, std::int32_t start, std::uint16_t any) {
    if (rules_.mark_bounds.size() < 2) return;
    open_.assign(rules_.mark_bounds.size(), 0);
    if (any & id_class::mark) count_marks(turn, first, last, start);
    for (std::size_t pair = 1; pair < open_.size(); ++pair) {
      const auto& [least, most] = rules_.mark_bounds[pair];
      if (open_[pair] < least || open_[pair] > most) {
        found(Defect::marks_unbalanced, turn.start, turn.end);
        return;
      }
    }
  }

  void count_marks(const Turn& turn, std::size_t first, std::size_t last, std::int32_t start) {
    const auto own = [&](std::size_t run) {
      return runs_.roles[run] == role::assistant && runs_.messages[run] == turn.message;
    };
    std::size_t from = turn.first_run, to = turn.last_run + 1;
    while (from > first && own(from - 1)) --from;
    if (from > first && runs_.roles[from - 1] == role::template_text) --from;
    while (to < last && own(to)) ++to;
    for (std::int32_t k = run_start(from, first, start); k < runs_.ends[to - 1]; ++k) {
      if (!(known(k) & id_class::mark)) continue;
      const int pair = rules_.marks[static_cast<std::size_t>(id(k))];
      open_[static_cast<std::size_t>(std::abs(pair))] += pair > 0 ? 1 : -1;
    }
  }

  void report(std::size_t d, std::size_t first, std::size_t last, std::int32_t start, std::int32_t end,
              std::int64_t loss, bool ids_fit) {
    const auto source = static_cast<std::size_t>(std::max(view_.sources[d], 0));
    if (view_.sources[d] >= 0 && source < audit_.sources_.size()) {
      Tally& tally = audit_.sources_[source];
      tally.tokens += end - start;
      tally.loss += loss;
      for (std::size_t run = first; run < last; ++run) {
        if (has(run, flag::sampled)) tally.sampled += runs_.ends[run] - run_start(run, first, start);
      }
    }
    const auto trained = std::ranges::count_if(turns_, [](const Turn& turn) { return turn.loss > 0; });
    out_.document_tokens.push_back(end - start);
    out_.document_loss.push_back(static_cast<std::int32_t>(loss));
    out_.document_turns.push_back(static_cast<std::int32_t>(trained));
    if (trained == 0 && loss > 0) text_turn(first, last, start, ids_fit);
    out_.document_hash.push_back(
        xxh3(ids_.data() + start, static_cast<std::size_t>(end - start) * sizeof(std::int32_t)));
    std::int64_t messages = -1;  // tells conversations of one record apart
    for (std::size_t run = first; run < last; ++run) messages = std::max<std::int64_t>(messages, runs_.messages[run]);
    const std::array<std::int64_t, 7> origin{view_.sources[d], view_.records[d],  view_.turns[d], view_.starts[d],
                                             messages,         view_.branches[d], view_.pairs[d]};
    out_.document_origin.push_back(xxh3(origin.data(), sizeof(origin)));
    out_.document_row.push_back(row_);
  }

  // First and last trained tokens of a document whose trained tokens are in no turn.
  void text_turn(std::size_t first, std::size_t last, std::int32_t start, bool ids_fit) {
    if (!ids_fit) return;
    std::int32_t from = -1, to = -1;
    for (std::size_t run = first; run < last; ++run) {
      if (!has(run, flag::loss)) continue;
      if (from < 0) from = run_start(run, first, start);
      to = runs_.ends[run] - 1;
    }
    out_.turn_first.push_back(id(from));
    out_.turn_last.push_back(id(to));
    out_.turn_stop.push_back(-2);
    out_.turn_stop_trained.push_back(0);
  }
};

Audit::Audit(AuditRules rules) : rules_(std::move(rules)), kinds_(roles * n_parts), messages_(messages), scripts_(256) {
  const auto size = static_cast<std::size_t>(rules_.vocab_size);
  if (rules_.vocab_size < 1 || rules_.sequence_length < 1) throw std::invalid_argument("sizes must be at least 1");
  if (rules_.ids.size() != size || rules_.allowed.size() != size || rules_.marks.size() != size) {
    throw std::invalid_argument("ids, allowed and marks must have vocab_size entries");
  }
  const auto pairs = static_cast<int>(rules_.mark_bounds.size());
  if (std::ranges::any_of(rules_.marks, [&](int pair) { return std::abs(pair) >= std::max(pairs, 1); })) {
    throw std::invalid_argument("mark_bounds must have an entry for each pair of marks");
  }
  if (std::ranges::any_of(rules_.headers, [](const auto& header) { return header.empty(); })) {
    throw std::invalid_argument("a header is empty");
  }
}

AuditedRows Audit::add(const AuditView& view, std::int64_t first_row) {
  check_view(view, rules_.sequence_length);
  std::int32_t highest = -1;
  for (const std::int32_t source : view.sources) highest = std::max(highest, source);
  if (highest >= 1 << 24) throw std::invalid_argument("a source has a number above 2^24");
  if (highest >= 0 && static_cast<std::size_t>(highest) >= sources_.size()) {
    sources_.resize(static_cast<std::size_t>(highest) + 1);
  }
  AuditedRows out;
  out.reserve(view.sources.size(), view.verdicts.size());
  RowAudit audit(*this, view, first_row, out);
  for (std::size_t row = 0; row < view.rows.n_loss.size(); ++row) audit.row(row);
  audit.finish();
  return out;
}

}  // namespace maskpipe
