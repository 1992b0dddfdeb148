#include "check.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "facts.h"

namespace maskpipe {
namespace {

// One row, and the violation found so far with the lowest position.
struct RowCheck {
  std::int64_t row;
  std::int64_t length;
  std::optional<Violation> first;

  void found(std::int64_t position, const char* code, std::string message) {
    if (!first || position < first->position) first = Violation{row, position, code, std::move(message)};
  }

  // Returns the documents before the first wrong end.
  std::span<const std::int32_t> documents(std::span<const std::int32_t> ends) {
    std::int64_t previous = 0;
    for (std::size_t document = 0; document < ends.size(); ++document) {
      const std::int64_t end = ends[document];
      if (end <= previous || end > length) {
        found(previous, "document_ends",
              "a document that begins at " + std::to_string(previous) + " ends at " + std::to_string(end) +
                  "; the row has " + std::to_string(length) + " tokens");
        return ends.first(document);
      }
      previous = end;
    }
    return ends;
  }

  // Returns how many tokens have the loss flag, as far as the ends of runs make sense.
  std::int64_t runs(const RunsView& all, std::span<const std::int32_t> document_ends) {
    const std::int64_t documents_end = document_ends.empty() ? 0 : document_ends.back();
    auto document = document_ends.begin();  // the document that holds `start`
    std::int64_t document_start = 0;
    std::int64_t start = 0;
    std::int64_t n_loss = 0;
    const auto r = static_cast<std::size_t>(row);
    for (auto run = static_cast<std::size_t>(all.offsets[r]); run < static_cast<std::size_t>(all.offsets[r + 1]);
         ++run) {
      const std::int64_t end = all.ends[run];
      if (end <= start || end > length) {
        found(start, "run_ends",
              "a run that begins at " + std::to_string(start) + " ends at " + std::to_string(end) + "; the row has " +
                  std::to_string(length) + " tokens");
        return n_loss;
      }
      values(start, all.roles[run], all.parts[run], all.flags[run], all.messages[run]);
      while (document != document_ends.end() && *document <= start) document_start = *document++;
      if (document != document_ends.end() && end > *document) {
        found(*document, "run_crosses_document",
              "a run of tokens [" + std::to_string(start) + ", " + std::to_string(end) +
                  ") goes on over the end of a document at " + std::to_string(*document));
      }
      if (start < documents_end) {
        inside(start, all.roles[run], all.parts[run]);
        if ((all.flags[run] & flag::loss) && start == document_start) {
          found(start, "loss_on_first_token",
                "the first token of a document has loss, but nothing before it predicts it");
        }
      } else {
        outside(start, all.roles[run], all.parts[run], all.flags[run], all.messages[run]);
      }
      if (all.flags[run] & flag::loss) n_loss += end - start;
      start = end;
    }
    if (start != length) {
      found(start, "run_ends",
            "the runs end at " + std::to_string(start) + "; the row has " + std::to_string(length) + " tokens");
    }
    return n_loss;
  }

  void values(std::int64_t at, std::uint8_t role_value, std::uint8_t part_value, std::uint8_t flags,
              std::int32_t message) {
    if (role_value > role::last && role_value != role::unknown)
      found(at, "role", "role " + std::to_string(role_value) + " is not known");
    if (part_value > part::last) found(at, "part", "part " + std::to_string(part_value) + " is not known");
    if (flags & ~flag::all) found(at, "flags", "flags " + std::to_string(flags) + " have an unknown bit");
    if (message < -1) found(at, "message", "message " + std::to_string(message) + " is below -1");
  }

  void inside(std::int64_t at, std::uint8_t role_value, std::uint8_t part_value) {
    if (role_value == role::padding) found(at, "padding_in_document", "role padding inside a document");
    if (part_value == part::none && role_value != role::unknown)
      found(at, "padding_in_document", "part none inside a document");
  }

  void outside(std::int64_t at, std::uint8_t role_value, std::uint8_t part_value, std::uint8_t flags,
               std::int32_t message) {
    if (role_value != role::padding) {
      found(at, "tokens_after_documents", "role " + std::to_string(role_value) + " after the end of the last document");
    } else if (part_value != part::none || flags != 0 || message != -1) {
      found(at, "padding_facts",
            "padding has part " + std::to_string(part_value) + ", flags " + std::to_string(flags) + ", message " +
                std::to_string(message) + "; it must have 0, 0, -1");
    }
  }

  void ids(std::span<const std::int32_t> values, std::int64_t vocab_size) {
    const auto wrong = std::ranges::find_if(values, [&](std::int32_t id) { return id < 0 || id >= vocab_size; });
    if (wrong != values.end()) {
      found(wrong - values.begin(), "input_id",
            "id " + std::to_string(*wrong) + " is outside the vocabulary of " + std::to_string(vocab_size));
    }
  }
};

void check_range(std::int64_t value, const std::string& name) {
  if (value < 1 || value > std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument(name + " must be in [1, 2147483647], got " + std::to_string(value));
  }
}

}  // namespace

std::optional<Violation> check_rows(const RowsView& rows, std::int64_t sequence_length, std::int64_t vocab_size) {
  check_range(sequence_length, "sequence_length");
  check_range(vocab_size, "vocab_size");
  check_shapes(rows.runs, "row_run_offsets");
  check_offsets(rows.row_document_offsets, rows.document_ends.size(), "row_document_offsets");
  const std::size_t count = rows.n_loss.size();
  const auto length = static_cast<std::size_t>(sequence_length);
  if (rows.runs.offsets.size() != count + 1 || rows.row_document_offsets.size() != count + 1 ||
      rows.input_ids.size() % length != 0 || rows.input_ids.size() / length != count) {
    throw std::invalid_argument("n_loss speaks of " + std::to_string(count) + " rows, row_run_offsets of " +
                                std::to_string(rows.runs.offsets.size() - 1) + ", row_document_offsets of " +
                                std::to_string(rows.row_document_offsets.size() - 1) + ", and input_ids holds " +
                                std::to_string(rows.input_ids.size()) + " tokens of rows of " +
                                std::to_string(sequence_length));
  }
  for (std::size_t row = 0; row < count; ++row) {
    const auto first = static_cast<std::size_t>(rows.row_document_offsets[row]);
    const auto document_ends =
        rows.document_ends.subspan(first, static_cast<std::size_t>(rows.row_document_offsets[row + 1]) - first);
    RowCheck check{static_cast<std::int64_t>(row), sequence_length, std::nullopt};
    const std::int64_t n_loss = check.runs(rows.runs, check.documents(document_ends));
    check.ids(rows.input_ids.subspan(row * length, length), vocab_size);
    if (n_loss != rows.n_loss[row]) {
      check.found(sequence_length, "n_loss",
                  "n_loss is " + std::to_string(rows.n_loss[row]) + ", but " + std::to_string(n_loss) +
                      " tokens have the loss flag");
    }
    if (check.first) return check.first;
  }
  return std::nullopt;
}

}  // namespace maskpipe
