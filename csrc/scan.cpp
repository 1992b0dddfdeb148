#include "scan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "runs.h"

namespace maskpipe {
namespace {

std::size_t at(std::int64_t place) { return static_cast<std::size_t>(place); }

void demand(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

void check_ranges(Places starts, Places ends, std::size_t size) {
  demand(starts.size() == ends.size(), "starts and ends must have one length");
  for (std::size_t k = 0; k < starts.size(); ++k) {
    const bool inside = starts[k] >= 0 && starts[k] <= static_cast<std::int64_t>(size) && ends[k] >= 0 &&
                        ends[k] <= static_cast<std::int64_t>(size);
    if (!inside) throw std::invalid_argument("range " + std::to_string(k) + " is outside the tokens");
  }
}

// Eight marks at a time; 255 such words fit into bytes.
std::int64_t count(const std::uint8_t* mark, const std::uint8_t* end) {
  std::int64_t sum = 0;
  while (end - mark >= 8) {
    std::uint64_t words = 0;
    for (const std::uint8_t* last = std::min(mark + 255 * 8, mark + (end - mark) / 8 * 8); mark < last; mark += 8) {
      std::uint64_t word;
      std::memcpy(&word, mark, 8);
      words += word;
    }
    constexpr std::uint64_t odd = 0x00ff00ff00ff00ff;
    const std::uint64_t pairs = (words & odd) + (words >> 8 & odd);
    sum += static_cast<std::int64_t>(pairs * 0x0001000100010001 >> 48);
  }
  for (; mark < end; ++mark) sum += *mark;
  return sum;
}

void check_columns(std::size_t size, Marks real, Marks alone, Places offsets) {
  demand(real.size() == size && alone.size() == size, "real and alone must have one mark per token");
  check_offsets(offsets, size, "offsets");
}

std::vector<std::int64_t> rows_with(Marks marked, Places offsets) {
  std::vector<std::int64_t> out;
  for (std::size_t row = 0; row + 1 < offsets.size(); ++row) {
    if (count(marked.data() + offsets[row], marked.data() + offsets[row + 1]) > 0) {
      out.push_back(static_cast<std::int64_t>(row));
    }
  }
  return out;
}

// One pass: is(number, the one before it, alone) says in bits 0 and 1 whether a document begins and whether it cannot.
template <typename Is>
Starts starts_where(std::span<const std::int64_t> numbers, Marks real, Marks alone, Places offsets, Is is) {
  check_columns(numbers.size(), real, alone, offsets);
  Starts out{std::vector<std::uint8_t>(numbers.size()), {}};
  std::vector<std::uint8_t> bad(numbers.size());
  std::int64_t before = 0;
  for (std::size_t k = 0; k < numbers.size(); ++k) {
    const std::uint8_t is_now = is(numbers[k], before, alone[k]);
    out.starts[k] = real[k] & is_now & 1;
    bad[k] = real[k] & is_now >> 1;
    before = numbers[k];
  }
  out.wrong = rows_with(bad, offsets);
  return out;
}

}  // namespace

std::vector<std::int64_t> count_marked(Marks marked, Places starts, Places ends) {
  check_ranges(starts, ends, marked.size());
  std::vector<std::int64_t> out(starts.size());
  for (std::size_t k = 0; k < out.size(); ++k) {
    if (ends[k] > starts[k]) out[k] = count(marked.data() + starts[k], marked.data() + ends[k]);
  }
  return out;
}

std::array<std::int64_t, 256> count_values(std::span<const std::uint8_t> values, Marks marked) {
  demand(values.size() == marked.size(), "values and marked must have one length");
  std::vector<std::array<std::int64_t, 512>> tables(4);  // neighbours mostly are alike, and would wait for each other
  std::size_t k = 0;
  for (; k + 4 <= values.size(); k += 4) {
    for (std::size_t j = 0; j < 4; ++j) ++tables[j][values[k + j] | static_cast<std::size_t>(marked[k + j]) << 8];
  }
  for (; k < values.size(); ++k) ++tables[0][values[k] | static_cast<std::size_t>(marked[k]) << 8];
  std::array<std::int64_t, 256> out{};
  for (std::size_t value = 0; value < 256; ++value) {
    for (const auto& table : tables) out[value] += table[value + 256];
  }
  return out;
}

std::vector<std::uint8_t> listed(std::span<const std::int32_t> ids, std::span<const std::uint8_t> table) {
  std::vector<std::uint8_t> out(ids.size());
  for (std::size_t k = 0; k < ids.size(); ++k) {
    const auto id = static_cast<std::uint32_t>(ids[k]);
    out[k] = id < table.size() && table[id];
  }
  return out;
}

std::vector<std::uint8_t> marked_at_ends(Marks marked, Places offsets) {
  check_offsets(offsets, marked.size(), "offsets");
  std::vector<std::uint8_t> out(marked.size());
  for (std::size_t row = 0; row + 1 < offsets.size(); ++row) {
    const std::size_t start = at(offsets[row]), end = at(offsets[row + 1]);
    for (std::size_t k = start; k < end && marked[k]; ++k) out[k] = 1;
    for (std::size_t k = end; k > start && marked[k - 1]; --k) out[k - 1] = 1;
  }
  return out;
}

std::vector<std::uint8_t> first_marked(Marks marked, Places offsets) {
  check_offsets(offsets, marked.size(), "offsets");
  std::vector<std::uint8_t> out(marked.size());
  for (std::size_t row = 0; row + 1 < offsets.size(); ++row) {
    const auto begin = marked.begin() + offsets[row], end = marked.begin() + offsets[row + 1];
    const auto first = std::find(begin, end, std::uint8_t{1});
    if (first != end) out[static_cast<std::size_t>(first - marked.begin())] = 1;
  }
  return out;
}

std::vector<std::int64_t> behind_last_marked(Marks marked, Places starts, Places ends) {
  check_ranges(starts, ends, marked.size());
  std::vector<std::int64_t> out(starts.begin(), starts.end());
  for (std::size_t k = 0; k < out.size(); ++k) {
    std::int64_t end = std::max(starts[k], ends[k]);
    while (end > starts[k] && !marked[at(end - 1)]) --end;
    out[k] = end;
  }
  return out;
}

std::vector<std::uint8_t> mark_ranges(std::int64_t size, Places starts, Places ends) {
  demand(size >= 0, "size must be at least 0");
  check_ranges(starts, ends, at(size));
  std::vector<std::uint8_t> out(at(size));
  for (std::size_t k = 0; k < starts.size(); ++k) {
    if (ends[k] > starts[k]) std::fill(out.begin() + starts[k], out.begin() + ends[k], std::uint8_t{1});
  }
  return out;
}

Starts starts_of_positions(std::span<const std::int64_t> positions, Marks real, Marks alone, Places offsets) {
  return starts_where(positions, real, alone, offsets, [](std::int64_t now, std::int64_t before, std::uint8_t alone) {
    const bool follows = static_cast<std::uint64_t>(now) == static_cast<std::uint64_t>(before) + 1;
    const auto zero = static_cast<std::uint8_t>(now == 0);
    const auto bad = static_cast<std::uint8_t>((zero ^ 1) & (alone | static_cast<std::uint8_t>(!follows)));
    return static_cast<std::uint8_t>(zero | alone | bad << 1);
  });
}

Starts starts_of_numbers(std::span<const std::int64_t> numbers, Marks real, Marks alone, Places offsets) {
  return starts_where(numbers, real, alone, offsets, [](std::int64_t now, std::int64_t before, std::uint8_t alone) {
    const auto bad = static_cast<std::uint8_t>((alone ^ 1) & static_cast<std::uint8_t>(now < before));
    return static_cast<std::uint8_t>(static_cast<std::uint8_t>(now != before) | alone | bad << 1);
  });
}

}  // namespace maskpipe
