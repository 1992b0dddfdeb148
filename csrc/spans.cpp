#include "spans.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "align.h"
#include "facts.h"

namespace maskpipe {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

template <typename Value>
Value fitting(std::int64_t value, const char* name) {
  if (value < std::numeric_limits<Value>::min() || value > std::numeric_limits<Value>::max()) {
    throw std::invalid_argument(std::string(name) + " " + std::to_string(value) + " is out of range");
  }
  return static_cast<Value>(value);
}

struct Region {
  std::int64_t start, stop;
  const TurnPlace* turn;
};

// Byte positions of ascending character positions.
class Bytes {
 public:
  Bytes(std::string_view text, std::int64_t characters)
      : text_(text), ascii_(text.size() == to_size(std::max<std::int64_t>(characters, 0))) {}

  std::int64_t at(std::int64_t character) {
    if (ascii_) return character;
    for (; character_ < character; ++character_) {
      if (byte_ >= text_.size()) throw std::invalid_argument("origins leave the text");
      do {
        ++byte_;
      } while (byte_ < text_.size() && (static_cast<std::uint8_t>(text_[byte_]) & 0xC0) == 0x80);
    }
    return static_cast<std::int64_t>(byte_);
  }

 private:
  std::string_view text_;
  bool ascii_;
  std::size_t byte_ = 0;
  std::int64_t character_ = 0;
};

bool inside(std::int64_t position, std::int64_t start, std::int64_t end) { return start <= position && position < end; }

}  // namespace

SpanTable make_spans(std::span<const Origin> origins, std::span<const Leaf> leaves, std::span<const std::int64_t> roles,
                     std::span<const TurnPlace> turns, std::string_view text) {
  std::vector<std::int64_t> borders;
  std::vector<Region> regions;
  for (const TurnPlace& turn : turns) {
    const auto [message, start, stop, stop_start, stop_end, empty_start, empty_end] = turn;
    borders.insert(borders.end(), {start, stop});
    if (stop_start >= 0) borders.insert(borders.end(), {stop_start, stop_end});
    if (empty_start >= 0) borders.insert(borders.end(), {empty_start, empty_end});
    if (stop > start) regions.push_back({start, stop, &turn});
  }
  std::sort(borders.begin(), borders.end());
  borders.erase(std::unique(borders.begin(), borders.end()), borders.end());
  std::sort(regions.begin(), regions.end(),
            [](const Region& a, const Region& b) { return a.start != b.start ? a.start < b.start : a.stop < b.stop; });

  SpanTable out;
  Bytes bytes(text, origins.empty() ? 0 : origins.back()[1]);
  std::int64_t at = 0;
  std::int64_t last_leaf = -1;
  std::size_t region = 0;
  std::vector<std::int64_t> places;
  for (const auto& [begin, end, source, first, last] : origins) {
    if (begin != at || end < begin) throw std::invalid_argument("origins are not contiguous at " + std::to_string(at));
    at = end;
    if (source >= static_cast<std::int64_t>(leaves.size())) {
      throw std::invalid_argument("leaf " + std::to_string(source) + " is outside the table of " +
                                  std::to_string(leaves.size()));
    }
    const Leaf* leaf = source >= 0 ? &leaves[to_size(source)] : nullptr;
    const bool one_to_one = end - begin == last - first;
    places.clear();
    for (auto border = std::upper_bound(borders.begin(), borders.end(), begin);
         border != borders.end() && *border < end; ++border) {
      places.push_back(*border);
    }
    if (leaf != nullptr && one_to_one) {
      const std::int64_t inline_end = begin + (*leaf)[3] - first;
      if (begin < inline_end && inline_end < end) {
        const auto next = std::lower_bound(places.begin(), places.end(), inline_end);
        if (next == places.end() || *next != inline_end) places.insert(next, inline_end);
      }
    }
    places.push_back(end);
    std::int64_t start = begin;
    for (const std::int64_t stop : places) {
      while (region < regions.size() && regions[region].stop <= start) ++region;
      const TurnPlace* turn =
          region < regions.size() && regions[region].start <= start ? regions[region].turn : nullptr;
      const bool empty = turn != nullptr && (*turn)[5] >= 0 && inside(start, (*turn)[5], (*turn)[6]);
      std::int64_t role, part, message;
      if (leaf != nullptr) {
        // half an escape (first == last) stands for one character, text from -1 to -1 of its leaf for none that is
        // known
        const std::int64_t source_end = one_to_one ? first + stop - begin : std::max(last, first + 1);
        role = (*leaf)[0];
        part = 0 < source_end && source_end <= (*leaf)[3] ? part::reasoning : (*leaf)[1];
        message = (*leaf)[2];
      } else if (turn != nullptr) {
        const bool is_stop = (*turn)[3] >= 0 && inside(start, (*turn)[3], (*turn)[4]);
        role = role::assistant;
        part = is_stop ? part::stop : empty ? part::reasoning : part::scaffold;
        message = (*turn)[0];
      } else {
        message = -2 - source;
        role =
            inside(message, 0, static_cast<std::int64_t>(roles.size())) ? roles[to_size(message)] : role::template_text;
        part = part::scaffold;
      }
      const std::int64_t byte_start = out.ends.empty() ? 0 : out.ends.back();
      const std::int64_t byte_end = bytes.at(stop);
      out.ends.push_back(byte_end);
      out.roles.push_back(fitting<std::uint8_t>(role, "role"));
      out.parts.push_back(fitting<std::uint8_t>(part, "part"));
      out.messages.push_back(fitting<std::int32_t>(message, "message"));
      out.flags.push_back(
          static_cast<std::uint8_t>((turn != nullptr ? flag::sampled : 0) | (empty ? flag::empty_reasoning : 0)));
      if (leaf == nullptr || part == part::scaffold) {
        last_leaf = -1;
      } else if (byte_end > byte_start) {
        if (last_leaf == source) {
          out.content_ends.back() = byte_end;
        } else {
          out.content_starts.push_back(byte_start);
          out.content_ends.push_back(byte_end);
          out.content_roles.push_back(out.roles.back());
        }
        last_leaf = source;
      }
      start = stop;
    }
  }
  if (to_size(out.ends.empty() ? 0 : out.ends.back()) != text.size()) {
    throw std::invalid_argument("origins do not cover the text of " + std::to_string(text.size()) + " bytes");
  }
  return out;
}

TokenFacts token_facts(std::span<const std::int64_t> token_ends, const SpanTable& spans,
                       std::span<const std::int32_t> cut_before) {
  const Touched touched = align_facts(token_ends, spans.ends);
  const std::size_t size = token_ends.size();
  // spans first..last of a token: how many of them are sampled
  std::vector<std::int32_t> before(spans.ends.size() + 1);
  for (std::size_t s = 0; s < spans.ends.size(); ++s) {
    before[s + 1] = before[s] + (spans.flags[s] & flag::sampled ? 1 : 0);
  }
  TokenFacts out;
  out.roles.resize(size);
  out.parts.resize(size);
  out.flags.resize(size);
  out.messages.resize(size);
  for (std::size_t k = 0; k < size; ++k) {
    const std::size_t first = to_size(touched.first[k]), last = to_size(touched.last[k]);
    const std::int32_t sampled = before[last + 1] - before[first];
    const bool whole = to_size(sampled) == last + 1 - first;
    out.roles[k] = spans.roles[first];
    out.parts[k] = spans.parts[first];
    out.messages[k] = spans.messages[first];
    if (whole) {
      out.flags[k] = static_cast<std::uint8_t>(flag::sampled | (spans.flags[first] & flag::empty_reasoning));
      if (spans.roles[first] != spans.roles[last] || spans.parts[first] != spans.parts[last]) ++out.straddling_parts;
    } else if (sampled > 0) {
      out.flags[k] = flag::straddles;
      ++out.straddling;
    }
  }
  for (const std::int32_t token : cut_before) {
    if (token < 0 || to_size(token) >= size) {
      throw std::invalid_argument("cut before token " + std::to_string(token) + " of " + std::to_string(size));
    }
    out.flags[to_size(token)] |= flag::cut_before;
  }
  return out;
}

}  // namespace maskpipe
