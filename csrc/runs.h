// Runs: the facts of tokens, kept once per stretch of equal neighbours. Ragged arrays are flat values plus offsets:
// group g (a document or a row) owns [offsets[g], offsets[g + 1]).
//
//   token   0 1 2 3 4 5        run ends   3 6
//   role    2 2 2 3 3 3   ->   roles      2 3
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace maskpipe {

// Runs of all groups; the runs of group g are [offsets[g], offsets[g + 1]). Ends count tokens from the beginning of the
// group and strictly increase; a run begins where the one before it ends. A group without tokens has no runs.
struct RunsView {
  std::span<const std::int32_t> ends;      // [runs]
  std::span<const std::uint8_t> roles;     // [runs]
  std::span<const std::uint8_t> parts;     // [runs]
  std::span<const std::uint8_t> flags;     // [runs]
  std::span<const std::int32_t> messages;  // [runs], -1 for none
  std::span<const std::int64_t> offsets;   // [groups + 1]
};

struct Runs {
  std::vector<std::int32_t> ends;
  std::vector<std::uint8_t> roles;
  std::vector<std::uint8_t> parts;
  std::vector<std::uint8_t> flags;
  std::vector<std::int32_t> messages;
  std::vector<std::int64_t> offsets;

  void push(std::int32_t end, std::uint8_t role, std::uint8_t part, std::uint8_t flag, std::int32_t message);
};

// std::invalid_argument, naming the array and the position, unless offsets start with 0, never decrease and end with
// `size`.
void check_offsets(std::span<const std::int64_t> offsets, std::size_t size, const std::string& name);

// std::invalid_argument unless all arrays of runs have one length and the offsets fit it.
void check_shapes(const RunsView& runs, const std::string& offsets_name);

// std::invalid_argument, naming group and run, unless the runs [first, last) of `group` tile [0, length) exactly.
void check_tiling(std::span<const std::int32_t> ends, std::int64_t first, std::int64_t last, std::int64_t length,
                  std::int64_t group);

// Runs of the dense facts of documents [offsets[d], offsets[d + 1]): as few as possible, never across two documents.
// All four arrays have one length (at most 2^31 - 1 per document); std::invalid_argument otherwise or when offsets do
// not fit it.
Runs encode_runs(std::span<const std::uint8_t> roles, std::span<const std::uint8_t> parts,
                 std::span<const std::uint8_t> flags, std::span<const std::int32_t> messages,
                 std::span<const std::int64_t> offsets);

// The value of each token: group g gives lengths[g] tokens, one group after the other. lengths of size 1 hold for every
// group. std::invalid_argument unless the runs of each group tile its length exactly.
template <typename Value>
std::vector<Value> expand_runs(std::span<const std::int32_t> ends, std::span<const Value> values,
                               std::span<const std::int64_t> offsets, std::span<const std::int64_t> lengths);

}  // namespace maskpipe
