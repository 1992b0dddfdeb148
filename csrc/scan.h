// Scan: passes over one byte or one number per token of rows that somebody else made. Marks are one byte per token, 0
// or 1; rows are [offsets[r], offsets[r + 1]).
//
// All throw std::invalid_argument where shapes do not fit, or where a range is none.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace maskpipe {

using Marks = std::span<const std::uint8_t>;
using Places = std::span<const std::int64_t>;

// [ranges] how many tokens of [starts[k], ends[k]) are marked; 0 where ends[k] <= starts[k].
std::vector<std::int64_t> count_marked(Marks marked, Places starts, Places ends);

// How often each value stands at a marked token.
std::array<std::int64_t, 256> count_values(std::span<const std::uint8_t> values, Marks marked);

// [tokens] 1 for those of which the table of their id says so; an id outside the table is none of them.
std::vector<std::uint8_t> listed(std::span<const std::int32_t> ids, std::span<const std::uint8_t> table);

// [tokens] the marked ones that reach the beginning or the end of their row without a gap.
std::vector<std::uint8_t> marked_at_ends(Marks marked, Places offsets);

// [tokens] the first marked one of each row.
std::vector<std::uint8_t> first_marked(Marks marked, Places offsets);

// [ranges] behind the last marked token of [starts[k], ends[k]); starts[k] where none is.
std::vector<std::int64_t> behind_last_marked(Marks marked, Places starts, Places ends);

// [size] 1 inside the ranges [starts[k], ends[k]); nothing for one that ends before it begins.
std::vector<std::uint8_t> mark_ranges(std::int64_t size, Places starts, Places ends);

struct Starts {
  std::vector<std::uint8_t> starts;  // [tokens] the first tokens of documents
  std::vector<std::int64_t> wrong;   // rows in which the column says no documents
};

// Documents as positions say them: 0 begins one, else each is one more than the one before it. Only tokens that are
// `real` count; `alone` marks the first of them in each row.
Starts starts_of_positions(std::span<const std::int64_t> positions, Marks real, Marks alone, Places offsets);

// Documents as numbers of documents say them: another number begins one, and numbers do not fall.
Starts starts_of_numbers(std::span<const std::int64_t> numbers, Marks real, Marks alone, Places offsets);

}  // namespace maskpipe
