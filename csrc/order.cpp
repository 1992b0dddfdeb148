#include "order.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <variant>

namespace maskpipe {
namespace {

std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ULL;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ULL;
  x ^= x >> 32;
  return x;
}

// One round's word of `width` bits: the top of a product, where every bit of the input has reached.
std::uint64_t round_word(std::uint64_t half, std::uint64_t key, int width) {
  constexpr std::uint64_t factor = 0xd6e8feb86659fd93ULL;
  std::uint64_t x = (half + key) * factor;
  x ^= x >> 32;
  return x * factor >> (64 - width);
}

std::uint64_t mask(int bits) { return (std::uint64_t{1} << bits) - 1; }

// Few bits per half give a round little to work with; on such domains more rounds cost nothing that counts.
int rounds_for(int bits) { return bits <= 8 ? 24 : bits <= 12 ? 6 : 4; }

// Row at index i of one epoch under a windowed shape: windows of positions are shuffled inside, then positions are
// mapped through the blocks in their random order. The last block may be short; it stands where the order puts it.
class Windows {
 public:
  Windows(const EpochShape& shape, const Key& key)
      : shape_(shape),
        key_(key),
        blocks_((shape.rows + shape.block - 1) / shape.block),
        order_(epoch_key(key, 0), blocks_),
        short_slot_(order_.inverse(blocks_ - 1)),
        short_rows_(shape.rows - (blocks_ - 1) * shape.block),
        span_(shape.window > blocks_ ? shape.rows : shape.window * shape.block) {}

  std::uint64_t operator()(std::uint64_t index) const {
    const std::uint64_t window = index / span_, first = window * span_;
    const std::uint64_t size = shape_.rows - first < span_ ? shape_.rows - first : span_;
    const std::uint64_t place = first + Permutation(epoch_key(key_, window + 1), size)(index - first);
    const std::uint64_t before = short_slot_ * shape_.block;
    if (place < before) return order_(place / shape_.block) * shape_.block + place % shape_.block;
    if (place < before + short_rows_) return (blocks_ - 1) * shape_.block + (place - before);
    const std::uint64_t after = place - before - short_rows_;
    return order_(short_slot_ + 1 + after / shape_.block) * shape_.block + after % shape_.block;
  }

 private:
  EpochShape shape_;
  Key key_;
  std::uint64_t blocks_;
  Permutation order_;
  std::uint64_t short_slot_, short_rows_, span_;
};

}  // namespace

Key epoch_key(const Key& key, std::uint64_t epoch) {
  Key out;
  std::uint64_t state = mix(epoch + 0x9e3779b97f4a7c15ULL);
  for (std::size_t k = 0; k < out.size(); ++k) {
    state = mix(state + key[k] + (k + 1) * 0x9e3779b97f4a7c15ULL);
    out[k] = state ^ mix(key[3 - k] + epoch * 0xd1342543de82ef95ULL);
  }
  return out;
}

Permutation::Permutation(const Key& key, std::uint64_t size) : key_(key), size_(size) {
  if (size < 1 || size > std::uint64_t{1} << 62) {
    throw std::invalid_argument("size must be in [1, 2^62], got " + std::to_string(size));
  }
  const int bits = std::max(2, static_cast<int>(std::bit_width(size - 1)));
  high_ = bits / 2;
  low_ = bits - high_;
  rounds_ = rounds_for(bits);  // even: the halves swap widths every round and must come back
}

inline std::uint64_t Permutation::once(std::uint64_t x) const {
  const auto [a, b, c, d] = key_;
  std::uint64_t left = x >> low_, right = x & mask(low_);
  left ^= round_word(right, a, high_);
  right ^= round_word(left, b, low_);
  left ^= round_word(right, c, high_);
  right ^= round_word(left, d, low_);
  for (int round = 4; round < rounds_; round += 2) {
    const auto k = static_cast<std::uint64_t>(round);
    left ^= round_word(right, key_[k & 3] + (k >> 2), high_);
    right ^= round_word(left, key_[(k + 1) & 3] + (k >> 2), low_);
  }
  return left << low_ | right;
}

std::uint64_t Permutation::operator()(std::uint64_t index) const {
  std::uint64_t x = index;
  do {
    x = once(x);
  } while (x >= size_);
  return x;
}

void Permutation::stretch(std::uint64_t first, std::span<std::int64_t> out) const {
  constexpr std::size_t at_once = 256;
  std::uint16_t outside[at_once];  // places of values that walk on
  for (std::size_t begin = 0; begin < out.size(); begin += at_once) {
    const std::span<std::int64_t> values = out.subspan(begin, std::min(at_once, out.size() - begin));
    std::size_t left = 0;
    for (std::size_t k = 0; k < values.size(); ++k) {
      const std::uint64_t value = once(first + begin + k);
      values[k] = static_cast<std::int64_t>(value);
      outside[left] = static_cast<std::uint16_t>(k);
      left += value >= size_;
    }
    while (left > 0) {
      std::size_t still = 0;
      for (std::size_t k = 0; k < left; ++k) {
        const std::uint16_t at = outside[k];
        const std::uint64_t value = once(static_cast<std::uint64_t>(values[at]));
        values[at] = static_cast<std::int64_t>(value);
        outside[still] = at;
        still += value >= size_;
      }
      left = still;
    }
  }
}

std::uint64_t Permutation::inverse(std::uint64_t value) const {
  std::uint64_t x = value;
  do {
    std::uint64_t left = x >> low_, right = x & mask(low_);
    for (int round = rounds_ - 2; round >= 0; round -= 2) {
      const auto k = static_cast<std::uint64_t>(round);
      right ^= round_word(left, key_[(k + 1) & 3] + (k >> 2), low_);
      left ^= round_word(right, key_[k & 3] + (k >> 2), high_);
    }
    x = left << low_ | right;
  } while (x >= size_);
  return x;
}

void add(std::vector<Stretch>& stretches, const Stretch& more) {
  if (!stretches.empty()) {
    Stretch& last = stretches.back();
    const bool after = more.first > last.first && last.first >= 0;
    if (last.source == more.source && after && more.first - last.first == last.size) {
      last.size += more.size;
      return;
    }
  }
  stretches.push_back(more);
}

void add(std::vector<Stretch>& stretches, std::span<const std::int32_t> sources, std::span<const std::int64_t> counts) {
  for (std::size_t k = 0; k < counts.size();) {
    const std::size_t first = k++;
    const auto count = static_cast<std::uint64_t>(counts[first]);
    while (k < counts.size() && sources[k] == sources[first] &&
           static_cast<std::uint64_t>(counts[k]) == count + (k - first)) {
      ++k;
    }
    add(stretches, {sources[first], counts[first], static_cast<std::int64_t>(k - first)});
  }
}

std::vector<std::int64_t> rows_at(std::span<const EpochShape> shapes, std::span<const Key> keys,
                                  std::span<const Stretch> stretches) {
  if (keys.size() != shapes.size()) throw std::invalid_argument("expected one key per shape");
  for (const EpochShape& shape : shapes) {
    if (shape.rows < 1 || shape.rows > std::uint64_t{1} << 62 || shape.block < 1 || shape.block > shape.rows ||
        shape.window > shape.rows) {
      throw std::invalid_argument("rows must be in [1, 2^62], block in [1, rows], window in [0, rows]");
    }
  }
  std::size_t size = 0;
  for (const Stretch& stretch : stretches) {
    if (stretch.source < 0 || static_cast<std::size_t>(stretch.source) >= shapes.size() || stretch.first < 0 ||
        stretch.size < 0 || stretch.size > INT64_MAX - stretch.first) {
      throw std::invalid_argument("source " + std::to_string(stretch.source) + " or count " +
                                  std::to_string(stretch.first) + " is out of range");
    }
    size += static_cast<std::size_t>(stretch.size);
  }
  struct Epoch {  // of one source, the last that was asked for
    std::int64_t first;
    std::variant<Permutation, Windows> order;
  };
  std::vector<std::optional<Epoch>> last(shapes.size());
  std::vector<std::int64_t> out(size);
  std::size_t done = 0;
  for (const Stretch& stretch : stretches) {
    const auto source = static_cast<std::size_t>(stretch.source);
    const EpochShape& shape = shapes[source];
    const auto rows = static_cast<std::int64_t>(shape.rows);
    std::optional<Epoch>& epoch = last[source];
    const std::int64_t end = stretch.first + stretch.size;
    for (std::int64_t count = stretch.first; count < end;) {
      if (!epoch || count < epoch->first || count - epoch->first >= rows) {
        const std::int64_t number = count / rows;
        const Key key = epoch_key(keys[source], static_cast<std::uint64_t>(number));
        if (shape.window == 0) {
          epoch = Epoch{number * rows, Permutation(key, shape.rows)};
        } else {
          epoch = Epoch{number * rows, Windows(shape, key)};
        }
      }
      const std::int64_t first = count - epoch->first, n = std::min(end - count, rows - first);
      const std::span<std::int64_t> part = std::span(out).subspan(done, static_cast<std::size_t>(n));
      if (!shape.shuffle) {
        std::iota(part.begin(), part.end(), first);
      } else if (const auto* whole = std::get_if<Permutation>(&epoch->order)) {
        whole->stretch(static_cast<std::uint64_t>(first), part);
      } else {
        const auto& windows = std::get<Windows>(epoch->order);
        auto index = static_cast<std::uint64_t>(first);
        for (std::int64_t& row : part) row = static_cast<std::int64_t>(windows(index++));
      }
      count += n;
      done += part.size();
    }
  }
  return out;
}

std::vector<std::int32_t> interleave(std::span<const std::int64_t> rates, std::span<SourcePlace> places,
                                     std::int64_t positions, std::vector<std::int64_t>& counts_before) {
  const std::size_t n = rates.size();
  if (n < 1 || n > 1024 || places.size() != n || positions < 0) {
    throw std::invalid_argument("expected 1 to 1024 rates and as many places, positions at least 0; got " +
                                std::to_string(n) + ", " + std::to_string(places.size()) + " and " +
                                std::to_string(positions));
  }
  constexpr std::int64_t limit = std::int64_t{1} << 53;
  std::int64_t sum = 0;
  for (const std::int64_t rate : rates) {
    if (rate < 0 || rate > limit || (sum += rate) > limit) {
      throw std::invalid_argument("rates must be at least 0 and their sum at most 2^53");
    }
  }
  if (sum < 1) throw std::invalid_argument("the sum of the rates must be at least 1");
  for (std::size_t s = 0; s < n; ++s) {
    if (places[s].credit < -sum || places[s].credit > sum || places[s].count < 0) {
      throw std::invalid_argument("credits[" + std::to_string(s) + "] or counts[" + std::to_string(s) +
                                  "] is out of range");
    }
  }
  using Wide = __int128;
  std::int64_t active = 0;
  for (const std::int64_t rate : rates) active += rate > 0;
  const std::int64_t scale = active > 1 ? 2 * active - 2 : 1;
  const Wide bound = static_cast<Wide>(sum) * (scale - 1);  // sum * (1 - 1 / scale), in units of 1 / scale
  std::vector<std::int32_t> out(static_cast<std::size_t>(positions));
  counts_before.resize(out.size());
  for (std::size_t p = 0; p < out.size(); ++p) {
    std::size_t best = n;
    Wide best_slack = 0;
    for (std::size_t s = 0; s < n; ++s) {
      if (rates[s] == 0) continue;
      places[s].credit += rates[s];
      if (active > 1 && static_cast<Wide>(places[s].credit) * scale < sum) continue;  // too early for it
      const Wide slack = bound - static_cast<Wide>(places[s].credit) * scale;  // how long it can wait, times its rate
      if (best == n || slack * rates[best] < best_slack * rates[s]) {
        best = s;
        best_slack = slack;
      }
    }
    if (best == n) throw std::invalid_argument("credits do not add up to 0; they belong to another mixture");
    places[best].credit -= sum;
    out[p] = static_cast<std::int32_t>(best);
    counts_before[p] = places[best].count++;
  }
  return out;
}

}  // namespace maskpipe
