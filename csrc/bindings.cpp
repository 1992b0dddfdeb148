// The module: check shapes, release the GIL, call, wrap. Meaning lives in the headers.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "align.h"
#include "arguments.h"
#include "audit.h"
#include "bind_engine.h"
#include "bind_records.h"
#include "bind_scan.h"
#include "check.h"
#include "layout.h"
#include "loss.h"
#include "order.h"
#include "pack.h"
#include "reader.h"
#include "runs.h"
#include "slots.h"
#include "spans.h"
#include "stream.h"
#include "turns.h"

namespace py = pybind11;
using namespace py::literals;

namespace {

using maskpipe::integer;
using maskpipe::integer32;
using maskpipe::named_tuple;
using maskpipe::owned;
using maskpipe::to_numpy;
using maskpipe::view;
using maskpipe::without_gil;
using maskpipe::writable;

void bind_pack(py::module_& m) {
  const auto to_tuple = [](maskpipe::Packing&& packing) {
    return py::make_tuple(to_numpy(std::move(packing.order)), to_numpy(std::move(packing.offsets)));
  };
  m.def(
      "best_fit",
      [to_tuple](const py::object& lengths, const py::object& capacity) {
        const auto in = view<std::int32_t>(lengths, "lengths");
        const std::int64_t most = integer(capacity, "capacity");
        return to_tuple(without_gil([&] { return maskpipe::best_fit(in, most); }));
      },
      "lengths"_a, "capacity"_a);
  m.def(
      "first_fit",
      [to_tuple](const py::object& lengths, const py::object& capacity) {
        const auto in = view<std::int32_t>(lengths, "lengths");
        const std::int64_t most = integer(capacity, "capacity");
        return to_tuple(without_gil([&] { return maskpipe::first_fit(in, most); }));
      },
      "lengths"_a, "capacity"_a);
}

maskpipe::RunsView runs_view(const py::object& ends, const py::object& roles, const py::object& parts,
                             const py::object& flags, const py::object& messages, const py::object& offsets,
                             const char* offsets_name) {
  return {view<std::int32_t>(ends, "run_ends"),         view<std::uint8_t>(roles, "run_roles"),
          view<std::uint8_t>(parts, "run_parts"),       view<std::uint8_t>(flags, "run_flags"),
          view<std::int32_t>(messages, "run_messages"), view<std::int64_t>(offsets, offsets_name)};
}

void bind_runs(py::module_& m) {
  const py::object runs_type =
      named_tuple(m, "Runs", "run_ends run_roles run_parts run_flags run_messages run_offsets");
  m.def(
      "encode_runs",
      [runs_type](const py::object& roles, const py::object& parts, const py::object& flags, const py::object& messages,
                  const py::object& offsets) {
        const auto role_ids = view<std::uint8_t>(roles, "roles");
        const auto part_ids = view<std::uint8_t>(parts, "parts");
        const auto flag_bits = view<std::uint8_t>(flags, "flags");
        const auto message_ids = view<std::int32_t>(messages, "messages");
        const auto document_offsets = view<std::int64_t>(offsets, "offsets");
        maskpipe::Runs runs = without_gil(
            [&] { return maskpipe::encode_runs(role_ids, part_ids, flag_bits, message_ids, document_offsets); });
        return runs_type(to_numpy(std::move(runs.ends)), to_numpy(std::move(runs.roles)),
                         to_numpy(std::move(runs.parts)), to_numpy(std::move(runs.flags)),
                         to_numpy(std::move(runs.messages)), to_numpy(std::move(runs.offsets)));
      },
      "roles"_a, "parts"_a, "flags"_a, "messages"_a, "offsets"_a);
  m.def(
      "expand_runs",
      [](const py::object& run_ends, const py::object& values, const py::object& run_offsets,
         const py::object& lengths) -> py::object {
        const auto ends = view<std::int32_t>(run_ends, "run_ends");
        const auto offsets = view<std::int64_t>(run_offsets, "run_offsets");
        const bool ragged = py::isinstance<py::array>(lengths) && py::reinterpret_borrow<py::array>(lengths).ndim() > 0;
        const std::int64_t one = ragged ? 0 : integer(lengths, "lengths");
        const auto each = ragged ? view<std::int64_t>(lengths, "lengths") : std::span(&one, 1);
        if (py::isinstance<py::array_t<std::uint8_t>>(values)) {
          const auto bytes = view<std::uint8_t>(values, "values");
          return to_numpy(without_gil([&] { return maskpipe::expand_runs(ends, bytes, offsets, each); }));
        }
        if (py::isinstance<py::array_t<std::int32_t>>(values)) {
          const auto numbers = view<std::int32_t>(values, "values");
          return to_numpy(without_gil([&] { return maskpipe::expand_runs(ends, numbers, offsets, each); }));
        }
        throw py::type_error("values must be a numpy array of uint8 or int32");
      },
      "run_ends"_a, "values"_a, "run_offsets"_a, "lengths"_a);
}

void bind_layout(py::module_& m) {
  const py::object rows_type = named_tuple(
      m, "Rows", "input_ids run_ends run_roles run_parts run_flags run_messages row_run_offsets n_loss piece_ends");
  m.def(
      "lay_out",
      [rows_type](const py::object& ids, const py::object& id_offsets, const py::object& run_ends,
                  const py::object& run_roles, const py::object& run_parts, const py::object& run_flags,
                  const py::object& run_messages, const py::object& run_offsets, const py::object& piece_documents,
                  const py::object& piece_starts, const py::object& piece_stops, const py::object& row_offsets,
                  const py::object& sequence_length, const py::object& pad_id) {
        const maskpipe::DocumentsView documents{
            view<std::int32_t>(ids, "ids"), view<std::int64_t>(id_offsets, "id_offsets"),
            runs_view(run_ends, run_roles, run_parts, run_flags, run_messages, run_offsets, "run_offsets")};
        const maskpipe::PiecesView pieces{
            view<std::int64_t>(piece_documents, "piece_documents"), view<std::int32_t>(piece_starts, "piece_starts"),
            view<std::int32_t>(piece_stops, "piece_stops"), view<std::int64_t>(row_offsets, "row_offsets")};
        const std::int64_t length = integer(sequence_length, "sequence_length");
        const std::int32_t pad = integer32(pad_id, "pad_id");
        maskpipe::Rows rows = without_gil([&] { return maskpipe::lay_out(documents, pieces, length, pad); });
        return rows_type(to_numpy(std::move(rows.input_ids)), to_numpy(std::move(rows.runs.ends)),
                         to_numpy(std::move(rows.runs.roles)), to_numpy(std::move(rows.runs.parts)),
                         to_numpy(std::move(rows.runs.flags)), to_numpy(std::move(rows.runs.messages)),
                         to_numpy(std::move(rows.runs.offsets)), to_numpy(std::move(rows.n_loss)),
                         to_numpy(std::move(rows.piece_ends)));
      },
      "ids"_a, "id_offsets"_a, "run_ends"_a, "run_roles"_a, "run_parts"_a, "run_flags"_a, "run_messages"_a,
      "run_offsets"_a, "piece_documents"_a, "piece_starts"_a, "piece_stops"_a, "row_offsets"_a, "sequence_length"_a,
      "pad_id"_a);
}

void bind_check(py::module_& m) {
  const py::object violation_type = named_tuple(m, "Violation", "row position code message");
  m.def(
      "check_rows",
      [violation_type](const py::object& input_ids, const py::object& run_ends, const py::object& run_roles,
                       const py::object& run_parts, const py::object& run_flags, const py::object& run_messages,
                       const py::object& row_run_offsets, const py::object& document_ends,
                       const py::object& row_document_offsets, const py::object& n_loss,
                       const py::object& sequence_length, const py::object& vocab_size) -> py::object {
        const maskpipe::RowsView rows{
            view<std::int32_t>(input_ids, "input_ids"),
            runs_view(run_ends, run_roles, run_parts, run_flags, run_messages, row_run_offsets, "row_run_offsets"),
            view<std::int32_t>(document_ends, "document_ends"),
            view<std::int64_t>(row_document_offsets, "row_document_offsets"), view<std::int32_t>(n_loss, "n_loss")};
        const std::int64_t length = integer(sequence_length, "sequence_length");
        const std::int64_t vocabulary = integer(vocab_size, "vocab_size");
        const std::optional<maskpipe::Violation> violation =
            without_gil([&] { return maskpipe::check_rows(rows, length, vocabulary); });
        if (!violation) return py::none();
        return violation_type(violation->row, violation->position, violation->code, violation->message);
      },
      "input_ids"_a, "run_ends"_a, "run_roles"_a, "run_parts"_a, "run_flags"_a, "run_messages"_a, "row_run_offsets"_a,
      "document_ends"_a, "row_document_offsets"_a, "n_loss"_a, "sequence_length"_a, "vocab_size"_a);
}

void bind_align(py::module_& m) {
  py::class_<maskpipe::Strings>(m, "Strings")
      .def(py::init([](const std::vector<py::bytes>& strings) {
             return std::make_unique<maskpipe::Strings>(std::vector<std::string>(strings.begin(), strings.end()));
           }),
           "strings"_a)
      .def(
          "find",
          [](const maskpipe::Strings& self, const py::bytes& text) {
            const std::string_view in = text;
            maskpipe::Strings::Hits hits = without_gil([&] { return self.find(in); });
            return py::make_tuple(to_numpy(std::move(hits.starts)), to_numpy(std::move(hits.strings)));
          },
          "text"_a);
  py::class_<maskpipe::TokenTable>(m, "TokenTable")
      .def(py::init([](const py::object& offsets, const py::object& bytes, const py::object& control) {
             const auto copy = [](auto values) { return std::vector(values.begin(), values.end()); };
             return std::make_unique<maskpipe::TokenTable>(copy(view<std::int64_t>(offsets, "offsets")),
                                                           copy(view<std::uint8_t>(bytes, "bytes")),
                                                           copy(view<std::uint8_t>(control, "control")));
           }),
           "offsets"_a, "bytes"_a, "control"_a);
  const py::object ends_type = named_tuple(m, "TokenEnds", "ends occurrence_tokens stray failed marks in_step");
  m.def(
      "token_ends",
      [ends_type](const py::object& ids, const maskpipe::TokenTable& table, const py::bytes& text,
                  const py::object& starts, const py::object& ends, const py::object& occurrence_ids,
                  const py::object& known_tokens, bool prefix_space, const py::bytes& space_mark) {
        const auto tokens = view<std::int32_t>(ids, "ids");
        const maskpipe::Occurrences occurrences{view<std::int64_t>(starts, "starts"), view<std::int64_t>(ends, "ends"),
                                                view<std::int32_t>(occurrence_ids, "occurrence_ids"),
                                                view<std::int32_t>(known_tokens, "known_tokens")};
        const std::string_view in = text, mark = space_mark;
        maskpipe::TokenEnds out =
            without_gil([&] { return maskpipe::token_ends(tokens, table, in, occurrences, prefix_space, mark); });
        return ends_type(to_numpy(std::move(out.ends)), to_numpy(std::move(out.occurrence_tokens)),
                         to_numpy(std::move(out.stray)), to_numpy(std::move(out.failed)), out.marks, out.in_step);
      },
      "ids"_a, "table"_a, "text"_a, "starts"_a, "ends"_a, "occurrence_ids"_a, "known_tokens"_a, "prefix_space"_a,
      "space_mark"_a);
  const py::object plain_type = named_tuple(m, "Plain", "ends marks cuts window_starts window_tokens");
  m.def(
      "align_plain",
      [plain_type](const py::object& ids, const maskpipe::TokenTable& table, const py::bytes& text,
                   const maskpipe::Strings& strings, const py::object& string_ids, const py::object& kinds,
                   const py::object& owned_starts, const py::object& owned_ends, const py::object& cuts,
                   bool prefix_space, const py::bytes& space_mark) -> py::object {
        const auto tokens = view<std::int32_t>(ids, "ids");
        const auto named = view<std::int32_t>(string_ids, "string_ids");
        const auto kind = view<std::uint8_t>(kinds, "kinds");
        const auto starts = view<std::int64_t>(owned_starts, "owned_starts");
        const auto ends = view<std::int64_t>(owned_ends, "owned_ends");
        const auto places = view<std::int64_t>(cuts, "cuts");
        const std::string_view in = text, mark = space_mark;
        maskpipe::Plain out = without_gil([&] {
          return maskpipe::align_plain(tokens, table, in, strings, named, kind, starts, ends, places, prefix_space,
                                       mark);
        });
        if (!out.plain) return py::none();
        return plain_type(to_numpy(std::move(out.ends)), out.marks, py::cast(out.cuts), py::cast(out.window_starts),
                          py::cast(out.window_tokens));
      },
      "ids"_a, "table"_a, "text"_a, "strings"_a, "string_ids"_a, "kinds"_a, "owned_starts"_a, "owned_ends"_a, "cuts"_a,
      "prefix_space"_a, "space_mark"_a);
  m.def(
      "align_facts",
      [](const py::object& token_ends, const py::object& span_ends) {
        const auto tokens = view<std::int64_t>(token_ends, "token_ends");
        const auto spans = view<std::int64_t>(span_ends, "span_ends");
        maskpipe::Touched out = without_gil([&] { return maskpipe::align_facts(tokens, spans); });
        return py::make_tuple(to_numpy(std::move(out.first)), to_numpy(std::move(out.last)));
      },
      "token_ends"_a, "span_ends"_a);
  m.def(
      "char_to_byte",
      [](const py::bytes& text, const py::object& positions) {
        const std::string_view in = text;
        const auto characters = view<std::int64_t>(positions, "positions");
        return to_numpy(without_gil([&] { return maskpipe::char_to_byte(in, characters); }));
      },
      "text"_a, "positions"_a);
}

void bind_spans(py::module_& m) {
  using maskpipe::SpanTable;
  const auto column = [](const auto& values) {  // a copy: the table may go first
    auto copy = values;
    return to_numpy(std::move(copy));
  };
  const py::object columns_type = named_tuple(m, "SpanColumns", "ends roles parts messages flags");
  py::class_<SpanTable>(m, "SpanTable")
      .def(py::init([](const std::vector<maskpipe::Origin>& origins, const std::vector<maskpipe::Leaf>& leaves,
                       const std::vector<std::int64_t>& roles, const std::vector<maskpipe::TurnPlace>& turns,
                       const py::bytes& text) {
             const std::string_view in = text;
             return without_gil([&] { return maskpipe::make_spans(origins, leaves, roles, turns, in); });
           }),
           "origins"_a, "leaves"_a, "roles"_a, "turns"_a, "text"_a)
      .def("columns",
           [columns_type, column](const SpanTable& self) {
             return columns_type(column(self.ends), column(self.roles), column(self.parts), column(self.messages),
                                 column(self.flags));
           })
      .def("content", [column](const SpanTable& self) {
        return py::make_tuple(column(self.content_starts), column(self.content_ends), column(self.content_roles));
      });
  const py::object facts_type = named_tuple(m, "TokenFacts", "roles parts flags messages straddling straddling_parts");
  m.def(
      "token_facts",
      [facts_type](const py::object& token_ends, const SpanTable& spans, const py::object& cut_before) {
        const auto ends = view<std::int64_t>(token_ends, "token_ends");
        const auto cuts = view<std::int32_t>(cut_before, "cut_before");
        maskpipe::TokenFacts out = without_gil([&] { return maskpipe::token_facts(ends, spans, cuts); });
        return facts_type(to_numpy(std::move(out.roles)), to_numpy(std::move(out.parts)),
                          to_numpy(std::move(out.flags)), to_numpy(std::move(out.messages)), out.straddling,
                          out.straddling_parts);
      },
      "token_ends"_a, "spans"_a, "cut_before"_a);
}

maskpipe::FactsView facts_view(const py::object& roles, const py::object& parts, const py::object& flags,
                               const py::object& messages, const py::object& weights) {
  return {view<std::uint8_t>(roles, "roles"), view<std::uint8_t>(parts, "parts"), view<std::uint8_t>(flags, "flags"),
          view<std::int32_t>(messages, "messages"),
          weights.is_none() ? std::span<const float>() : view<float>(weights, "weights")};
}

void bind_loss(py::module_& m) {
  py::class_<maskpipe::LossRule>(m, "LossRule")
      .def(py::init([](std::vector<maskpipe::Selector> selectors, bool everything, bool empty_reasoning) {
             return maskpipe::LossRule{std::move(selectors), everything, empty_reasoning};
           }),
           "selectors"_a, "everything"_a, "empty_reasoning"_a);
  m.def(
      "kinds",
      [](const py::object& parts, const py::object& flags, const py::object& messages) {
        const maskpipe::FactsView facts = facts_view(parts, parts, flags, messages, py::none());
        return to_numpy(without_gil([&] { return maskpipe::kinds(facts); }));
      },
      "parts"_a, "flags"_a, "messages"_a);
  m.def(
      "mark_loss",
      [](const maskpipe::LossRule& rule, const py::object& roles, const py::object& parts, const py::object& flags,
         const py::object& messages, const py::object& weights, bool none, const py::object& own,
         const std::vector<std::int64_t>& trainable) {
        const maskpipe::FactsView facts = facts_view(roles, parts, flags, messages, weights);
        const maskpipe::Trainable which{none, integer(own, "own"), trainable};
        return to_numpy(without_gil([&] { return maskpipe::mark_loss(rule, facts, which); }));
      },
      "rule"_a, "roles"_a, "parts"_a, "flags"_a, "messages"_a, "weights"_a, "none"_a, "own"_a, "trainable"_a);
}

void bind_turns(py::module_& m) {
  const py::object located_type =
      named_tuple(m, "Located", "roles marks states bos from_start turns openings beginnings");
  m.def(
      "locate_turns",
      [located_type](const py::object& ids, const py::object& starts, const py::object& ends, const py::object& joints,
                     const py::object& joint_roles, const py::object& joint_marks, const py::object& joint_offsets,
                     const py::object& from, const py::object& to, const py::object& needed, const py::object& control,
                     const py::object& allowed, const py::object& bos, const py::object& empty,
                     const py::object& empty_offsets) {
        const auto tokens = view<std::int32_t>(ids, "ids");
        const auto begins = view<std::int64_t>(starts, "starts"), stops = view<std::int64_t>(ends, "ends");
        const maskpipe::Joints known{view<std::int32_t>(joints, "joints"),
                                     view<std::uint8_t>(joint_roles, "joint_roles"),
                                     view<std::uint8_t>(joint_marks, "joint_marks"),
                                     view<std::int64_t>(joint_offsets, "joint_offsets"),
                                     view<std::uint8_t>(from, "from_roles"),
                                     view<std::uint8_t>(to, "to_roles"),
                                     view<std::int32_t>(needed, "needed")};
        const maskpipe::TokenKinds kinds{view<std::uint8_t>(control, "control"),
                                         view<std::uint16_t>(allowed, "allowed")};
        const auto blocks = view<std::int32_t>(empty, "empty");
        const auto block_offsets = view<std::int64_t>(empty_offsets, "empty_offsets");
        const auto bos_id = static_cast<std::int32_t>(integer(bos, "bos"));
        maskpipe::Located out = without_gil(
            [&] { return maskpipe::locate_turns(tokens, begins, stops, known, kinds, bos_id, blocks, block_offsets); });
        return located_type(to_numpy(std::move(out.roles)), to_numpy(std::move(out.marks)),
                            to_numpy(std::move(out.states)), to_numpy(std::move(out.bos)),
                            to_numpy(std::move(out.from_start)), to_numpy(std::move(out.turns)),
                            to_numpy(std::move(out.openings)), to_numpy(std::move(out.beginnings)));
      },
      "ids"_a, "starts"_a, "ends"_a, "joints"_a, "joint_roles"_a, "joint_marks"_a, "joint_offsets"_a, "from_roles"_a,
      "to_roles"_a, "needed"_a, "control"_a, "allowed"_a, "bos"_a, "empty"_a, "empty_offsets"_a);
}

std::vector<maskpipe::EpochShape> epoch_shapes(const py::object& rows, const py::object& blocks,
                                               const py::object& windows, bool shuffle) {
  const auto n_rows = view<std::int64_t>(rows, "rows"), block = view<std::int64_t>(blocks, "blocks"),
             window = view<std::int64_t>(windows, "windows");
  if (block.size() != n_rows.size() || window.size() != n_rows.size()) {
    throw py::value_error("blocks and windows must have one value per source");
  }
  std::vector<maskpipe::EpochShape> out;
  for (std::size_t s = 0; s < n_rows.size(); ++s) {
    out.push_back({static_cast<std::uint64_t>(n_rows[s]), shuffle, static_cast<std::uint64_t>(block[s]),
                   static_cast<std::uint64_t>(window[s])});
  }
  return out;
}

std::vector<maskpipe::Key> keys_of(const py::object& keys) {
  const auto words = view<std::uint64_t>(keys, "keys");
  if (words.size() % 4 != 0) throw py::value_error("keys must have four words per source");
  std::vector<maskpipe::Key> out;
  for (std::size_t k = 0; k < words.size(); k += 4) {
    out.push_back({words[k], words[k + 1], words[k + 2], words[k + 3]});
  }
  return out;
}

void bind_order(py::module_& m) {
  m.def(
      "rows_at",
      [](const py::object& rows, const py::object& blocks, const py::object& windows, bool shuffle,
         const py::object& keys, const py::object& sources, const py::object& counts) {
        const auto shapes = epoch_shapes(rows, blocks, windows, shuffle);
        const auto epoch_keys = keys_of(keys);
        const auto of = view<std::int32_t>(sources, "sources");
        const auto at = view<std::int64_t>(counts, "counts");
        return to_numpy(without_gil([&] { return maskpipe::rows_at(shapes, epoch_keys, of, at); }));
      },
      "rows"_a, "blocks"_a, "windows"_a, "shuffle"_a, "keys"_a, "sources"_a, "counts"_a);
  const py::object interleaved_type = named_tuple(m, "Interleaved", "sources counts_before credits counts");
  m.def(
      "interleave",
      [interleaved_type](const py::object& rates, const py::object& credits, const py::object& counts,
                         const py::object& positions) {
        const auto rate = view<std::int64_t>(rates, "rates");
        std::vector<std::int64_t> credit = owned(view<std::int64_t>(credits, "credits"));
        std::vector<std::int64_t> count = owned(view<std::int64_t>(counts, "counts"));
        const std::int64_t n = integer(positions, "positions");
        std::vector<std::int64_t> before;
        std::vector<std::int32_t> out =
            without_gil([&] { return maskpipe::interleave(rate, credit, count, n, before); });
        return interleaved_type(to_numpy(std::move(out)), to_numpy(std::move(before)), to_numpy(std::move(credit)),
                                to_numpy(std::move(count)));
      },
      "rates"_a, "credits"_a, "counts"_a, "positions"_a);
}

// Keeps a slot for as long as Python has an array over it.
py::capsule keeper(maskpipe::Slot&& slot) {
  auto kept = std::make_unique<maskpipe::Slot>(std::move(slot));
  py::capsule out(kept.get(), [](void* held) { delete static_cast<maskpipe::Slot*>(held); });
  kept.release();
  return out;
}

// A piece of memory that Python gave; its array may go only with the GIL.
maskpipe::Slot slot_of(const py::object& memory, std::size_t size) {
  std::uint8_t* at = writable<std::uint8_t>(memory, "memory", size);
  if (at == nullptr) throw py::type_error("memory must be a numpy array of uint8, got None");
  auto owner = std::shared_ptr<py::object>(new py::object(memory), [](py::object* held) {
    const py::gil_scoped_acquire gil;
    delete held;
  });
  return {at, std::move(owner)};
}

// What Python gets of a batch. Arrays over the slot keep the slot, not this.
struct PyDelivered {
  std::shared_ptr<maskpipe::Reader> reader;
  maskpipe::Delivered batch;
  maskpipe::ColumnPlaces places;
  py::object keep;  // of the slot, once an array has it
  std::optional<maskpipe::Segments> segments;
  std::optional<maskpipe::BatchRuns> runs;

  template <typename Value>
  py::object dense(std::int64_t place) {
    if (place < 0) return py::none();
    if (!keep) keep = keeper(maskpipe::Slot(batch.slot));
    const auto rows = static_cast<py::ssize_t>(batch.job->rows().rows.size());
    const auto length = static_cast<py::ssize_t>(reader->sequence_length());
    const auto size = static_cast<py::ssize_t>(sizeof(Value));
    return py::array(py::dtype::of<Value>(), {rows, length}, {length * size, size}, batch.slot.memory + place, keep);
  }

  py::object column(std::string_view name) {
    if (name == "ids32") return dense<std::int32_t>(places.ids32);
    if (name == "input_ids") return dense<std::int64_t>(places.ids);
    if (name == "labels") return dense<std::int64_t>(places.labels);
    if (name == "targets") return dense<std::int64_t>(places.targets);
    if (name == "position_ids") return dense<std::int64_t>(places.positions);
    if (name == "segment_ids") return dense<std::int32_t>(places.segments);
    if (name == "loss_weights") return dense<float>(places.weights);
    if (name == "role_ids") return dense<std::uint8_t>(places.roles);
    if (name == "sources") return to_numpy(owned(std::span<const std::int32_t>(batch.job->rows().sources)));
    if (name == "rows") return to_numpy(owned(std::span<const std::int64_t>(batch.job->rows().rows)));
    if (name.starts_with("run_")) {
      if (!runs) runs = reader->runs(*batch.job);
      if (name == "run_ends") return to_numpy(std::move(runs->ends));
      if (name == "run_roles") return to_numpy(std::move(runs->roles));
      if (name == "run_parts") return to_numpy(std::move(runs->parts));
      if (name == "run_loss") return to_numpy(std::move(runs->loss));
      if (name == "run_weights") return to_numpy(std::move(runs->weights));
      throw py::key_error(std::string(name));
    }
    if (!segments) segments = reader->segments(*batch.job);
    if (name == "cu_seqlens") return to_numpy(std::move(segments->cu_seqlens));
    if (name == "segment_numbers") return to_numpy(std::move(segments->numbers));
    if (name == "branches") return to_numpy(std::move(segments->branches));
    if (name == "pairs") return to_numpy(std::move(segments->pairs));
    if (name == "parents") return to_numpy(std::move(segments->parents));
    if (name == "scores") return to_numpy(std::move(segments->scores));
    if (name == "desirable") return to_numpy(std::move(segments->desirable));
    throw py::key_error(std::string(name));
  }
};

struct PyStream {
  std::size_t slot_size;
  maskpipe::ColumnPlaces places;
  maskpipe::Stream stream;
};

py::tuple to_tuple(const std::vector<std::int64_t>& values) {
  py::tuple out(values.size());
  for (std::size_t k = 0; k < values.size(); ++k) out[k] = values[k];
  return out;
}

py::tuple to_tuple(const maskpipe::Place& place) {
  return py::make_tuple(to_tuple(place.counts), to_tuple(place.credits), place.position, place.within);
}

maskpipe::Place place_of(const py::object& place) {
  const auto fields = place.cast<py::tuple>();
  if (fields.size() != 4) throw py::value_error("a place has counts, credits, position and within");
  return {fields[0].cast<std::vector<std::int64_t>>(), fields[1].cast<std::vector<std::int64_t>>(),
          integer(fields[2], "position"), integer(fields[3], "within")};
}

maskpipe::Policy to_policy(const py::object& policy) {
  const auto fields = policy.cast<py::tuple>();
  return {fields[0].cast<maskpipe::LossRule>(), fields[1].cast<std::optional<std::vector<std::int32_t>>>(),
          fields[2].cast<bool>()};
}

maskpipe::Decision decision(const py::object& policy, const py::object& weights) {
  maskpipe::Decision out{};
  const auto table = view<float>(weights, "weights");
  if (table.size() != out.weights.size()) throw py::value_error("weights must have 256 * 8 values");
  std::ranges::copy(table, out.weights.begin());
  if (!policy.is_none()) out.policy = to_policy(policy);
  return out;
}

void bind_reader(py::module_& m) {
  py::class_<maskpipe::Pool, std::shared_ptr<maskpipe::Pool>>(m, "Pool")
      .def(py::init([](const py::object& size) {
             const std::int64_t bytes = integer(size, "size");
             if (bytes < 1) throw py::value_error("size must be at least 1");
             return std::make_shared<maskpipe::Pool>(static_cast<std::size_t>(bytes));
           }),
           "size"_a)
      .def("take", [](maskpipe::Pool& pool) {
        maskpipe::Slot slot = pool.take();
        std::uint8_t* const memory = slot.memory;
        return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(pool.size()), memory, keeper(std::move(slot)));
      });
  py::class_<maskpipe::Reader, std::shared_ptr<maskpipe::Reader>>(m, "Reader")
      .def(py::init([](const py::list& sources, const py::object& sequence_length, const py::object& threads,
                       const std::string& verify, const std::string& io, bool random_access,
                       const py::object& cache_bytes, const py::object& open_files, const py::object& policy,
                       const py::object& weights) {
             std::vector<maskpipe::SourceShards> shards;
             for (const py::handle handle : sources) {
               const auto fields = handle.cast<py::tuple>();
               shards.push_back({fields[0].cast<std::string>(), fields[1].cast<std::vector<std::string>>(),
                                 owned(view<std::int64_t>(fields[2], "sizes")),
                                 owned(view<std::int64_t>(fields[3], "rows")),
                                 fields[4].cast<std::vector<std::string>>(), integer(fields[5], "batch_rows"),
                                 integer32(fields[6], "pad_id")});
             }
             if (verify != "every_read" && verify != "first_touch" && verify != "off") {
               throw py::value_error("verify must be every_read, first_touch or off, got " + verify);
             }
             if (io != "pread" && io != "mmap") throw py::value_error("io must be pread or mmap, got " + io);
             const maskpipe::ReaderOptions options{integer(sequence_length, "sequence_length"),
                                                   integer(threads, "threads"),
                                                   verify == "every_read"    ? maskpipe::Verify::every_read
                                                   : verify == "first_touch" ? maskpipe::Verify::first_touch
                                                                             : maskpipe::Verify::off,
                                                   io == "mmap" ? maskpipe::Io::mmap : maskpipe::Io::pread,
                                                   random_access,
                                                   integer(cache_bytes, "cache_bytes"),
                                                   integer(open_files, "open_files")};
             auto reader = std::make_unique<maskpipe::Reader>(std::move(shards), options, decision(policy, weights));
             // In a forked process the threads are missing: the memory is all that may be touched, so it stays.
             return std::shared_ptr<maskpipe::Reader>(reader.release(), [](maskpipe::Reader* gone) {
               if (gone->is_here()) delete gone;
             });
           }),
           "sources"_a, "sequence_length"_a, "threads"_a, "verify"_a, "io"_a, "random_access"_a, "cache_bytes"_a,
           "open_files"_a, "policy"_a, "weights"_a)
      .def("blocks_decoded", &maskpipe::Reader::blocks_decoded)
      .def(
          "close_file",
          [](maskpipe::Reader& reader, const py::object& source, const py::object& number) {
            if (!reader.is_here()) throw std::logic_error("the reader belongs to another process");
            reader.close_file(static_cast<std::size_t>(integer(source, "source")),
                              static_cast<std::size_t>(integer(number, "number")));
          },
          "source"_a, "number"_a);
  py::class_<PyDelivered>(m, "Delivered")
      .def("column", &PyDelivered::column, "name"_a)
      .def("place", [](const PyDelivered& self) { return to_tuple(self.batch.after); })
      .def("numbers",
           [](const PyDelivered& self) {
             const maskpipe::RowTotals own = self.batch.job->totals();
             return py::make_tuple(own.longest, own.tokens, own.shared);
           })
      .def("whole",
           [](const PyDelivered& self) -> py::object {
             const std::optional<maskpipe::RowTotals> whole = self.batch.whole();
             if (!whole) return py::none();
             return py::make_tuple(whole->tokens, whole->pairs, whole->weight, whole->rated);
           })
      .def("address", [](const PyDelivered& self) { return reinterpret_cast<std::uintptr_t>(self.batch.slot.memory); });
  py::class_<PyStream>(m, "Stream")
      .def(
          py::init([](const std::shared_ptr<maskpipe::Reader>& reader, const py::object& rows, const py::object& blocks,
                      const py::object& windows, bool shuffle, const py::object& keys, const py::object& global_batch,
                      const py::object& ranks, const py::object& rank, const py::object& batch, bool pad, bool totals,
                      const py::dict& columns, const py::object& size, const py::object& slots) {
            maskpipe::RunShape shape{epoch_shapes(rows, blocks, windows, shuffle),
                                     keys_of(keys),
                                     integer(global_batch, "global_batch"),
                                     integer(ranks, "ranks"),
                                     integer(rank, "rank"),
                                     integer(batch, "batch"),
                                     pad,
                                     totals};
            maskpipe::ColumnPlaces places;
            const auto at = [&](const char* name) {
              return columns.contains(name) ? integer(columns[name], name) : std::int64_t{-1};
            };
            places = {at("ids32"),        at("input_ids"),   at("labels"),       at("targets"),
                      at("position_ids"), at("segment_ids"), at("loss_weights"), at("role_ids")};
            const auto bytes = static_cast<std::size_t>(integer(size, "size"));
            std::function<maskpipe::Slot()> take;
            if (py::isinstance<maskpipe::Pool>(slots)) {
              take = [pool = slots.cast<std::shared_ptr<maskpipe::Pool>>()] { return pool->take(); };
            } else {
              auto give = std::shared_ptr<py::object>(new py::object(slots), [](py::object* held) {
                const py::gil_scoped_acquire gil;
                delete held;
              });
              take = [give, bytes] {
                const py::gil_scoped_acquire gil;
                return slot_of((*give)(), bytes);
              };
            }
            return std::unique_ptr<PyStream>(
                new PyStream{bytes, places, {reader, std::move(shape), places, std::move(take)}});
          }),
          "reader"_a, "rows"_a, "blocks"_a, "windows"_a, "shuffle"_a, "keys"_a, "global_batch"_a, "ranks"_a, "rank"_a,
          "batch"_a, "pad"_a, "totals"_a, "columns"_a, "size"_a, "slots"_a)
      .def(
          "stand",
          [](PyStream& self, const py::object& place, const py::object& rates, const py::object& end) {
            maskpipe::Place from = place_of(place);
            auto mix = owned(view<std::int64_t>(rates, "rates"));
            const std::int64_t last = integer(end, "end");
            without_gil([&] { self.stream.stand(std::move(from), std::move(mix), last); });
          },
          "place"_a, "rates"_a, "end"_a)
      .def(
          "plan",
          [](const PyStream& self, const py::object& place) -> py::object {
            std::optional<maskpipe::Planner::Plan> plan = self.stream.planner().plan(place_of(place));
            if (!plan) return py::none();
            return py::make_tuple(to_numpy(std::move(plan->slice.sources)), to_numpy(std::move(plan->slice.rows)),
                                  to_tuple(plan->after));
          },
          "place"_a)
      .def("place", [](const PyStream& self) { return to_tuple(self.stream.place()); })
      .def("submit", [](PyStream& self) { return without_gil([&] { return self.stream.submit(); }); })
      .def("ahead", [](const PyStream& self) { return without_gil([&] { return self.stream.ahead(); }); })
      .def(
          "next",
          [](PyStream& self, const py::object& depth) -> std::unique_ptr<PyDelivered> {
            const std::int64_t n = integer(depth, "depth");
            if (n < 0) throw py::value_error("depth must be at least 0");
            auto batch = without_gil([&] { return self.stream.next(static_cast<std::size_t>(n)); });
            if (!batch) return nullptr;
            return std::unique_ptr<PyDelivered>(new PyDelivered{self.stream.reader(), std::move(*batch), self.places,
                                                                py::object(), std::nullopt, std::nullopt});
          },
          "depth"_a);
}

py::array_t<std::int64_t> to_table(const std::vector<maskpipe::Tally>& tallies) {
  py::array_t<std::int64_t> out({static_cast<py::ssize_t>(tallies.size()), py::ssize_t{3}});
  std::int64_t* at = out.mutable_data();
  for (const auto& [tokens, sampled, loss] : tallies) {
    *at++ = tokens;
    *at++ = sampled;
    *at++ = loss;
  }
  return out;
}

void bind_audit(py::module_& m) {
  using maskpipe::Audit;
  const py::object result_type =
      named_tuple(m, "AuditedRows",
                  "document_tokens document_loss document_turns document_hash document_origin document_row turn_first "
                  "turn_last turn_stop turn_stop_trained");
  py::class_<Audit>(m, "Audit")
      .def(py::init([](const py::object& policy, const py::object& sequence_length, const py::object& vocab_size,
                       const py::object& pad_id, const py::object& ids, const py::object& allowed,
                       const py::object& marks, std::vector<std::array<std::int32_t, 2>> mark_bounds,
                       std::vector<std::vector<std::int32_t>> headers, std::array<std::int32_t, 2> chat_bos,
                       std::array<std::int32_t, 2> text_bos, bool stops_known, bool may_cut,
                       const py::object& max_places) {
             return Audit({to_policy(policy),
                           integer(sequence_length, "sequence_length"),
                           integer(vocab_size, "vocab_size"),
                           integer32(pad_id, "pad_id"),
                           owned(view<std::uint16_t>(ids, "ids")),
                           owned(view<std::uint16_t>(allowed, "allowed")),
                           owned(view<std::int8_t>(marks, "marks")),
                           std::move(mark_bounds),
                           std::move(headers),
                           {chat_bos[0], chat_bos[1]},
                           {text_bos[0], text_bos[1]},
                           stops_known,
                           may_cut,
                           integer(max_places, "max_places")});
           }),
           "policy"_a, "sequence_length"_a, "vocab_size"_a, "pad_id"_a, "ids"_a, "allowed"_a, "marks"_a,
           "mark_bounds"_a, "headers"_a, "chat_bos"_a, "text_bos"_a, "stops_known"_a, "may_cut"_a, "max_places"_a)
      .def(
          "add",
          [result_type](
              Audit& audit, const py::object& input_ids, const py::object& run_ends, const py::object& run_roles,
              const py::object& run_parts, const py::object& run_flags, const py::object& run_messages,
              const py::object& row_run_offsets, const py::object& document_ends,
              const py::object& row_document_offsets, const py::object& n_loss, const py::object& sources,
              const py::object& records, const py::object& turns, const py::object& starts, const py::object& lengths,
              const py::object& pairs, const py::object& branches, const py::object& parents,
              const py::object& verdict_messages, const py::object& verdicts, const py::object& verdict_offsets,
              const py::object& weight_starts, const py::object& weight_ends, const py::object& weights,
              const py::object& weight_offsets, const py::object& first_row) {
            const maskpipe::AuditView rows{
                {view<std::int32_t>(input_ids, "input_ids"),
                 runs_view(run_ends, run_roles, run_parts, run_flags, run_messages, row_run_offsets, "row_run_offsets"),
                 view<std::int32_t>(document_ends, "document_ends"),
                 view<std::int64_t>(row_document_offsets, "row_document_offsets"),
                 view<std::int32_t>(n_loss, "n_loss")},
                view<std::int32_t>(sources, "sources"),
                view<std::int64_t>(records, "records"),
                view<std::int32_t>(turns, "turns"),
                view<std::int32_t>(starts, "starts"),
                view<std::int32_t>(lengths, "lengths"),
                view<std::int64_t>(pairs, "pairs"),
                view<std::uint8_t>(branches, "branches"),
                view<std::int32_t>(parents, "parents"),
                view<std::int32_t>(verdict_messages, "verdict_messages"),
                view<std::uint8_t>(verdicts, "verdicts"),
                view<std::int64_t>(verdict_offsets, "verdict_offsets"),
                view<std::int32_t>(weight_starts, "weight_starts"),
                view<std::int32_t>(weight_ends, "weight_ends"),
                view<float>(weights, "weights"),
                view<std::int64_t>(weight_offsets, "weight_offsets")};
            const std::int64_t first = integer(first_row, "first_row");
            maskpipe::AuditedRows out = without_gil([&] { return audit.add(rows, first); });
            return result_type(to_numpy(std::move(out.document_tokens)), to_numpy(std::move(out.document_loss)),
                               to_numpy(std::move(out.document_turns)), to_numpy(std::move(out.document_hash)),
                               to_numpy(std::move(out.document_origin)), to_numpy(std::move(out.document_row)),
                               to_numpy(std::move(out.turn_first)), to_numpy(std::move(out.turn_last)),
                               to_numpy(std::move(out.turn_stop)), to_numpy(std::move(out.turn_stop_trained)));
          },
          "input_ids"_a, "run_ends"_a, "run_roles"_a, "run_parts"_a, "run_flags"_a, "run_messages"_a,
          "row_run_offsets"_a, "document_ends"_a, "row_document_offsets"_a, "n_loss"_a, "sources"_a, "records"_a,
          "turns"_a, "starts"_a, "lengths"_a, "pairs"_a, "branches"_a, "parents"_a, "verdict_messages"_a, "verdicts"_a,
          "verdict_offsets"_a, "weight_starts"_a, "weight_ends"_a, "weights"_a, "weight_offsets"_a, "first_row"_a)
      .def("counts",
           [](const Audit& audit) {
             py::dict out;
             for (std::size_t k = 0; k < maskpipe::defect_names.size(); ++k) {
               out[py::str(std::string(maskpipe::defect_names[k]))] = audit.counts()[k];
             }
             return out;
           })
      .def("places",
           [](const Audit& audit) {
             py::list out;
             for (const maskpipe::DefectPlace& place : audit.places()) {
               out.append(py::make_tuple(std::string(maskpipe::defect_names[static_cast<std::size_t>(place.defect)]),
                                         place.row, place.start, place.end, place.document));
             }
             return out;
           })
      .def("kinds", [](const Audit& audit) { return to_table(audit.kinds()); })
      .def("by_message", [](const Audit& audit) { return to_table(audit.by_message()); })
      .def("by_source", [](const Audit& audit) { return to_table(audit.by_source()); })
      .def("by_script", [](const Audit& audit) { return to_table(audit.by_script()); });
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "Loops over tokens and documents. See the headers in csrc/ for what each function promises.";
  bind_pack(m);
  bind_runs(m);
  bind_layout(m);
  bind_check(m);
  bind_align(m);
  bind_spans(m);
  bind_loss(m);
  bind_turns(m);
  bind_order(m);
  bind_reader(m);
  bind_audit(m);
  maskpipe::bind_engine(m);
  maskpipe::bind_records(m);
  maskpipe::bind_scan(m);
}
