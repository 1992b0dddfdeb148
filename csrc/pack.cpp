#include "pack.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace maskpipe {
namespace {

void check_lengths(std::span<const std::int32_t> lengths, std::int64_t capacity) {
  if (capacity < 1 || capacity > std::numeric_limits<std::int32_t>::max()) {
    throw std::invalid_argument("capacity must be in [1, 2147483647], got " + std::to_string(capacity));
  }
  const auto wrong =
      std::ranges::find_if(lengths, [&](std::int32_t length) { return length < 1 || length > capacity; });
  if (wrong != lengths.end()) {
    throw std::invalid_argument("lengths[" + std::to_string(wrong - lengths.begin()) + "] is " +
                                std::to_string(*wrong) +
                                "; every length must be in [1, capacity = " + std::to_string(capacity) + "]");
  }
}

// Indices of the documents, longest first, equal lengths in order of index: a stable counting sort over 16 bits at a
// time.
std::vector<std::uint32_t> longest_first(std::span<const std::int32_t> lengths) {
  if (lengths.empty()) return {};
  const std::int32_t longest = std::ranges::max(lengths);
  std::vector<std::uint32_t> order(lengths.size());
  const auto sort_by = [&](int shift, auto document_at) {
    const auto digit = [&](std::uint32_t document) {
      return static_cast<std::size_t>((lengths[document] >> shift) & 0xffff);
    };
    std::vector<std::uint32_t> next(static_cast<std::size_t>(std::min(longest >> shift, 0xffff)) + 1, 0);
    for (std::uint32_t document = 0; document < lengths.size(); ++document) ++next[digit(document)];
    std::uint32_t placed = 0;
    for (std::size_t value = next.size(); value-- > 0;) placed += std::exchange(next[value], placed);
    for (std::uint32_t i = 0; i < lengths.size(); ++i) {
      const std::uint32_t document = document_at(i);
      order[next[digit(document)]++] = document;
    }
  };
  sort_by(0, [](std::uint32_t i) { return i; });
  if (longest > 0xffff) {
    const std::vector<std::uint32_t> by_low_bits = order;
    sort_by(16, [&](std::uint32_t i) { return by_low_bits[i]; });
  }
  return order;
}

// The first position after `position` whose document has another length; galloping, so that few documents are looked
// at.
std::size_t end_of_equal(std::span<const std::int32_t> lengths, const std::vector<std::uint32_t>& order,
                         std::size_t position) {
  const auto length_at = [&](std::size_t at) { return lengths[order[at]]; };
  const std::int32_t length = length_at(position);
  std::size_t step = 1;
  std::size_t inside = position;
  while (inside + step < order.size() && length_at(inside + step) == length) {
    inside += step;
    step *= 2;
  }
  std::size_t outside = std::min(inside + step, order.size());
  while (outside - inside > 1) {
    const std::size_t middle = inside + (outside - inside) / 2;
    (length_at(middle) == length ? inside : outside) = middle;
  }
  return outside;
}

// Consecutive bins that hold the same lengths.
struct Bins {
  std::int64_t first;
  std::int64_t count;
};

// Bins with the same remaining capacity; the one whose last placement is the oldest comes first.
struct Queue {
  std::vector<Bins> waiting;
  std::size_t head = 0;

  Bins take(std::int64_t most) {
    Bins& front = waiting[head];
    const Bins taken{front.first, std::min(front.count, most)};
    front.first += taken.count;
    front.count -= taken.count;
    if (front.count == 0) ++head;
    return taken;
  }
  bool empty() const { return head == waiting.size(); }
};

// Bin bins.first + i receives the sorted documents [document + i * copies, document + (i + 1) * copies).
struct Placement {
  Bins bins;
  std::int64_t copies;
  std::int64_t document;
};

Packing arrange(const std::vector<Placement>& placements, const std::vector<std::uint32_t>& sorted, std::int64_t bins) {
  Packing packing{std::vector<std::int64_t>(sorted.size()),
                  std::vector<std::int64_t>(static_cast<std::size_t>(bins) + 1, 0)};
  const auto bin_offsets = std::span(packing.offsets);
  for (const Placement& placement : placements) {
    const auto sizes = bin_offsets.subspan(static_cast<std::size_t>(placement.bins.first) + 1,
                                           static_cast<std::size_t>(placement.bins.count));
    for (std::int64_t& size : sizes) size += placement.copies;
  }
  std::inclusive_scan(packing.offsets.begin(), packing.offsets.end(), packing.offsets.begin());
  std::vector<std::int64_t> next(packing.offsets.begin(), packing.offsets.end() - 1);
  for (const Placement& placement : placements) {
    auto document = sorted.begin() + placement.document;
    for (std::int64_t& cursor : std::span(next).subspan(static_cast<std::size_t>(placement.bins.first),
                                                        static_cast<std::size_t>(placement.bins.count))) {
      std::copy_n(document, placement.copies, packing.order.begin() + cursor);
      document += placement.copies;
      cursor += placement.copies;
    }
  }
  return packing;
}

}  // namespace

// Let the fullest bin with room for length l have c tokens left. It takes floor(c / l) copies of l before any other bin
// becomes the fullest one with room, and so do the other bins of its group: one division places them all. Each move at
// least halves what a group has left, hence few moves.
Packing best_fit(std::span<const std::int32_t> lengths, std::int64_t capacity) {
  check_lengths(lengths, capacity);
  const std::vector<std::uint32_t> sorted = longest_first(lengths);
  std::map<std::int64_t, Queue> open;  // remaining capacity, never 0 -> bins
  std::vector<Placement> placements;
  std::int64_t bins = 0;
  for (std::size_t position = 0; position < sorted.size();) {
    const std::int64_t length = lengths[sorted[position]];
    const std::size_t stop = end_of_equal(lengths, sorted, position);
    while (position < stop) {
      const auto fullest = open.lower_bound(length);
      const std::int64_t remaining = fullest == open.end() ? capacity : fullest->first;
      const std::int64_t copies = remaining / length;
      const auto documents = static_cast<std::int64_t>(stop - position);
      const std::int64_t wanted = documents / copies + (documents % copies > 0 ? 1 : 0);
      Bins taken{bins, wanted};
      if (fullest == open.end()) {
        bins += wanted;
      } else {
        taken = fullest->second.take(wanted);
        if (fullest->second.empty()) open.erase(fullest);
      }
      const auto place = [&](Bins target, std::int64_t each) {
        if (target.count == 0) return;
        placements.push_back({target, each, static_cast<std::int64_t>(position)});
        position += static_cast<std::size_t>(target.count * each);
        const std::int64_t left = remaining - each * length;
        if (left > 0) open[left].waiting.push_back(target);
      };
      const std::int64_t saturated = std::min(taken.count, documents / copies);
      place({taken.first, saturated}, copies);
      place({taken.first + saturated, taken.count - saturated}, documents % copies);
    }
  }
  return arrange(placements, sorted, bins);
}

// A binary tree over the bins holds the largest remaining capacity below each node; bins not opened yet have all of it,
// so the leftmost bin with room always exists.
Packing first_fit(std::span<const std::int32_t> lengths, std::int64_t capacity) {
  check_lengths(lengths, capacity);
  std::vector<std::int32_t> room(2, static_cast<std::int32_t>(capacity));  // [2 * leaves], root at 1, leaves at the end
  std::vector<std::int64_t> bin_of(lengths.size());
  std::int64_t bins = 0;
  for (std::size_t document = 0; document < lengths.size(); ++document) {
    std::size_t leaves = room.size() / 2;
    if (static_cast<std::size_t>(bins) == leaves) {
      std::vector<std::int32_t> larger(4 * leaves, static_cast<std::int32_t>(capacity));
      std::copy_n(room.begin() + static_cast<std::ptrdiff_t>(leaves), leaves,
                  larger.begin() + static_cast<std::ptrdiff_t>(2 * leaves));
      for (std::size_t node = 2 * leaves; node-- > 1;) larger[node] = std::max(larger[2 * node], larger[2 * node + 1]);
      room.swap(larger);
      leaves *= 2;
    }
    std::size_t node = 1;
    while (node < leaves) node = 2 * node + (room[2 * node] < lengths[document] ? 1 : 0);
    bin_of[document] = static_cast<std::int64_t>(node - leaves);
    bins = std::max(bins, bin_of[document] + 1);
    room[node] -= lengths[document];
    while ((node /= 2) > 0) room[node] = std::max(room[2 * node], room[2 * node + 1]);
  }

  Packing packing{std::vector<std::int64_t>(lengths.size()),
                  std::vector<std::int64_t>(static_cast<std::size_t>(bins) + 1, 0)};
  for (const std::int64_t bin : bin_of) ++packing.offsets[static_cast<std::size_t>(bin) + 1];
  std::inclusive_scan(packing.offsets.begin(), packing.offsets.end(), packing.offsets.begin());
  std::vector<std::int64_t> next(packing.offsets.begin(), packing.offsets.end() - 1);
  for (std::size_t document = 0; document < lengths.size(); ++document) {
    packing.order[static_cast<std::size_t>(next[static_cast<std::size_t>(bin_of[document])]++)] =
        static_cast<std::int64_t>(document);
  }
  return packing;
}

}  // namespace maskpipe
