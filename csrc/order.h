// Order: which rows stand at which positions, as a pure function. A keyed permutation of [0, n) without a table, and an
// exact interleave of several sources.
//
//   count of a source -> (epoch, index) = (count / n, count % n) -> row = permutation(key of epoch, n)(index)
//   positions of a mixture with rates 2 : 1 -> sources 0 1 0 | 0 1 0 | ...
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace maskpipe {

using Key = std::array<std::uint64_t, 4>;

// The key of one epoch: every word mixes with the epoch's number, so no seed and epoch share an order with others.
Key epoch_key(const Key& key, std::uint64_t epoch);

// A permutation of [0, size): a Feistel network over the smallest power of two that holds them, walked until it is
// inside. 1.4 evaluations per index on average, at most 2; O(1) memory. size in [1, 2^62].
class Permutation {
 public:
  Permutation(const Key& key, std::uint64_t size);
  std::uint64_t operator()(std::uint64_t index) const;  // index < size
  std::uint64_t inverse(std::uint64_t value) const;     // value < size

  // out[k] = (*this)(first + k), all < size: neighbours do not wait for each other, so three times as fast.
  void stretch(std::uint64_t first, std::span<std::int64_t> out) const;

 private:
  std::uint64_t once(std::uint64_t x) const;

  Key key_;
  std::uint64_t size_;
  int high_, low_, rounds_;  // widths of the two halves in bits
};

// How the rows of one source follow each other in one epoch.
//   shuffle and window == 0: a permutation of all rows
//   shuffle and window > 0: blocks of `block` rows in random order, shuffled inside windows of `window` blocks, so that
//     reading goes on in few places at a time
//   else: rows in order
struct EpochShape {
  std::uint64_t rows;  // at least 1
  bool shuffle;
  std::uint64_t block;   // rows; at least 1
  std::uint64_t window;  // blocks; 0 is all of them
};

// Places in the order of one source that follow each other: counts (rows delivered before) first, first + 1, ...
struct Stretch {
  std::int32_t source;
  std::int64_t first, size;
};

// Adds a stretch, to the last one where it goes on from there.
void add(std::vector<Stretch>& stretches, const Stretch& more);

// The same of single places: counts[k] of source sources[k]; as many of the one as of the other.
void add(std::vector<Stretch>& stretches, std::span<const std::int32_t> sources, std::span<const std::int64_t> counts);

// The rows that stand there, one stretch after the other; the epoch is count / rows of the source.
// std::invalid_argument for a count below 0, a source without shape, or a shape out of range.
std::vector<std::int64_t> rows_at(std::span<const EpochShape> shapes, std::span<const Key> keys,
                                  std::span<const Stretch> stretches);

// Where a source of a mixture stands.
struct SourcePlace {
  std::int64_t count;  // rows delivered of it, over all epochs
  std::int64_t
      credit;  // positions * rate - sum(rates) * (positions that it got): all 0 at the beginning, their sum is 0
};

// The next sources of a mixture (R. Tijdeman, "The chairman assignment problem", 1980). Source s gets rates[s] / sum of
// every prefix; the difference between what it got and that share is below 1 at every prefix, whatever the rates.
// The places are moved on; counts_before: of the source at each position. Ties go to the lower source.
// std::invalid_argument unless there are 1 to 1024 rates, at least 0, of sum 1 to 2^53, and as many places; credits in
// [-sum, sum].
std::vector<std::int32_t> interleave(std::span<const std::int64_t> rates, std::span<SourcePlace> places,
                                     std::int64_t positions, std::vector<std::int64_t>& counts_before);

}  // namespace maskpipe
