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
#include "bind_loader.h"
#include "bind_records.h"
#include "bind_scan.h"
#include "check.h"
#include "layout.h"
#include "loss.h"
#include "pack.h"
#include "runs.h"
#include "spans.h"
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
             return Audit({maskpipe::to_policy(policy),
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
  bind_audit(m);
  maskpipe::bind_engine(m);
  maskpipe::bind_loader(m);
  maskpipe::bind_records(m);
  maskpipe::bind_scan(m);
}
