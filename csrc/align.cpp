#include "align.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <utility>

namespace maskpipe {
namespace {

std::size_t to_size(std::int64_t value) { return static_cast<std::size_t>(value); }

}  // namespace

Strings::Strings(const std::vector<std::string>& strings) {
  for (const std::string& string : strings) sizes_.push_back(string.size());
  std::vector<std::int32_t> order(strings.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](std::int32_t a, std::int32_t b) { return strings[to_size(a)] < strings[to_size(b)]; });
  for (std::size_t i = 0; i < order.size(); ++i) {
    const std::string& string = strings[to_size(order[i])];
    if (string.empty()) throw std::invalid_argument("string " + std::to_string(order[i]) + " is empty");
    if (i > 0 && strings[to_size(order[i - 1])] == string) {
      throw std::invalid_argument("strings " + std::to_string(order[i - 1]) + " and " + std::to_string(order[i]) +
                                  " are equal");
    }
  }
  // Breadth first over ranges of the sorted strings that share a prefix of `depth` bytes.
  struct Range {
    std::size_t begin, end, depth;
  };
  std::vector<Range> ranges{{0, order.size(), 0}};
  nodes_.emplace_back();
  bytes_.push_back(0);
  for (std::size_t node = 0; node < nodes_.size(); ++node) {
    auto [begin, end, depth] = ranges[node];
    if (begin < end && strings[to_size(order[begin])].size() == depth) nodes_[node].string = order[begin++];
    nodes_[node].first_edge = static_cast<std::int32_t>(nodes_.size());
    while (begin < end) {
      const char byte = strings[to_size(order[begin])][depth];
      std::size_t stop = begin;
      while (stop < end && strings[to_size(order[stop])][depth] == byte) ++stop;
      ranges.push_back({begin, stop, depth + 1});
      nodes_.emplace_back();
      bytes_.push_back(static_cast<std::uint8_t>(byte));
      ++nodes_[node].edges;
      begin = stop;
    }
  }
  roots_.fill(-1);
  for (std::int32_t child = nodes_[0].first_edge; child < nodes_[0].first_edge + nodes_[0].edges; ++child) {
    roots_[bytes_[to_size(child)]] = child;
  }
}

Strings::Hits Strings::find(std::string_view text) const {
  Hits hits;
  std::vector<std::int32_t> here;
  const auto* data = reinterpret_cast<const std::uint8_t*>(text.data());
  for (std::size_t start = 0; start < text.size(); ++start) {
    std::int32_t node = roots_[data[start]];
    if (node < 0) continue;
    here.clear();
    for (std::size_t next = start + 1;; ++next) {
      const Node& at = nodes_[to_size(node)];
      if (at.string >= 0) here.push_back(at.string);
      if (next == text.size()) break;
      const auto first = bytes_.begin() + at.first_edge;
      const auto edge = std::lower_bound(first, first + at.edges, data[next]);
      if (edge == first + at.edges || *edge != data[next]) break;
      node = static_cast<std::int32_t>(edge - bytes_.begin());
    }
    for (auto string = here.rbegin(); string != here.rend(); ++string) {
      hits.starts.push_back(static_cast<std::int64_t>(start));
      hits.strings.push_back(*string);
    }
  }
  return hits;
}

TokenTable::TokenTable(std::vector<std::int64_t> offsets, std::vector<std::uint8_t> bytes,
                       std::vector<std::uint8_t> control)
    : offsets_(std::move(offsets)), bytes_(std::move(bytes)), control_(std::move(control)) {
  if (offsets_.size() != control_.size() + 1) {
    throw std::invalid_argument("the table needs one offset more than control flags");
  }
  for (std::size_t i = 0; i + 1 < offsets_.size(); ++i) {
    if (offsets_[i] < 0 || offsets_[i] > offsets_[i + 1]) {
      throw std::invalid_argument("offsets of the table descend at id " + std::to_string(i));
    }
  }
  if (offsets_[0] < 0 || to_size(offsets_.back()) > bytes_.size()) {
    throw std::invalid_argument("offsets of the table reach past its bytes");
  }
}

TokenEnds token_ends(std::span<const std::int32_t> ids, const TokenTable& table, std::string_view text,
                     const Occurrences& occurrences, bool prefix_space, std::string_view space_mark) {
  const std::size_t known = table.size();
  for (std::size_t k = 0; k < ids.size(); ++k) {
    if (ids[k] < 0 || to_size(ids[k]) >= known) {
      throw std::invalid_argument("id " + std::to_string(ids[k]) + " at token " + std::to_string(k) +
                                  " is outside the table of " + std::to_string(known));
    }
  }
  const std::size_t count = occurrences.ids.size();
  const bool known_tokens = !occurrences.tokens.empty();
  if (occurrences.starts.size() != count || occurrences.ends.size() != count ||
      (known_tokens && occurrences.tokens.size() != count)) {
    throw std::invalid_argument("starts, ends, ids and tokens of occurrences differ in length");
  }
  std::int64_t before = 0;
  std::int64_t token_before = -1;
  for (std::size_t o = 0; o < count; ++o) {
    if (occurrences.starts[o] < before || occurrences.ends[o] < occurrences.starts[o] ||
        to_size(occurrences.ends[o]) > text.size()) {
      throw std::invalid_argument("occurrence " + std::to_string(o) + " is out of order or outside the text");
    }
    before = occurrences.ends[o];
    if (!known_tokens) continue;
    const std::int32_t token = occurrences.tokens[o];
    if (token <= token_before || to_size(token) >= ids.size() || ids[to_size(token)] != occurrences.ids[o]) {
      throw std::invalid_argument("the token of occurrence " + std::to_string(o) +
                                  " is out of order or has another id");
    }
    token_before = token;
  }

  TokenEnds out;
  out.ends.resize(ids.size());
  out.occurrence_tokens.reserve(count);
  std::size_t token = 0;
  std::size_t at = 0;

  // Tokens of one piece from `token`, `at`: the token after the last, or nothing when the bytes do not come out.
  const auto walk = [&](std::size_t piece_end, std::size_t last_token, std::int32_t stop_id, bool skip_space,
                        std::int64_t& marks) -> std::optional<std::size_t> {
    std::size_t k = token;
    std::size_t position = at;
    for (;; ++k) {
      if (position == piece_end && (stop_id < 0 ? k == last_token : k < last_token && ids[k] == stop_id)) return k;
      if (k == last_token) return std::nullopt;
      std::span<const std::uint8_t> bytes = table[ids[k]];
      if (skip_space) {
        if (bytes.empty() || bytes.front() != ' ') return std::nullopt;
        bytes = bytes.subspan(1);
        skip_space = false;
      }
      if (bytes.size() <= piece_end - position &&
          (bytes.empty() || std::memcmp(bytes.data(), text.data() + position, bytes.size()) == 0)) {
        position += bytes.size();
      } else if (space_mark.empty()) {
        return std::nullopt;
      } else {
        for (const std::uint8_t byte : bytes) {
          const std::size_t left = piece_end - position;
          if (left > 0 && static_cast<std::uint8_t>(text[position]) == byte) {
            ++position;
          } else if (byte == ' ' && left >= space_mark.size() &&
                     text.substr(position, space_mark.size()) == space_mark) {
            position += space_mark.size();
            ++marks;
          } else {
            return std::nullopt;
          }
        }
      }
      out.ends[k] = static_cast<std::int64_t>(position);
    }
  };

  for (std::size_t o = 0; o <= count; ++o) {
    const std::size_t piece_end = o < count ? to_size(occurrences.starts[o]) : text.size();
    const bool known_stop = o == count || known_tokens;  // the piece's tokens go to last_token, else to stop_id
    const std::size_t last_token = o < count && known_tokens ? to_size(occurrences.tokens[o]) : ids.size();
    const std::int32_t stop_id = known_stop ? -1 : occurrences.ids[o];
    std::int64_t marks = 0;
    std::optional<std::size_t> stop = walk(piece_end, last_token, stop_id, false, marks);
    if (!stop && prefix_space) {
      marks = 0;
      stop = walk(piece_end, last_token, stop_id, true, marks);
    }
    if (stop) {
      out.marks += marks;
    } else {
      stop = last_token;
      if (!known_stop) {
        const auto found = std::find(ids.begin() + static_cast<std::ptrdiff_t>(token), ids.end(), stop_id);
        if (found == ids.end()) {
          out.in_step = false;
          return out;
        }
        stop = static_cast<std::size_t>(found - ids.begin());
      }
      std::fill(out.ends.begin() + static_cast<std::ptrdiff_t>(token),
                out.ends.begin() + static_cast<std::ptrdiff_t>(*stop), static_cast<std::int64_t>(piece_end));
      for (const std::size_t value : {token, *stop, at, piece_end}) {
        out.failed.push_back(static_cast<std::int64_t>(value));
      }
    }
    for (std::size_t k = token; k < *stop; ++k) {
      if (table.is_control(ids[k])) out.stray.push_back(static_cast<std::int32_t>(k));
    }
    token = *stop;
    at = piece_end;
    if (o < count) {
      out.occurrence_tokens.push_back(static_cast<std::int32_t>(token));
      at = to_size(occurrences.ends[o]);
      out.ends[token++] = occurrences.ends[o];
    }
  }
  return out;
}

Plain align_plain(std::span<const std::int32_t> ids, const TokenTable& table, std::string_view text,
                  const Strings& strings, std::span<const std::int32_t> string_ids, std::span<const std::uint8_t> kinds,
                  std::span<const std::int64_t> owned_starts, std::span<const std::int64_t> owned_ends,
                  std::span<const std::int64_t> cuts, bool prefix_space, std::string_view space_mark) {
  if (string_ids.size() != strings.count() || kinds.size() != strings.count()) {
    throw std::invalid_argument("there must be one id and one kind for each string");
  }
  if (owned_starts.size() != owned_ends.size()) throw std::invalid_argument("owned starts and ends differ in length");
  Plain out;
  const Strings::Hits hits = strings.find(text);
  std::vector<std::int64_t> starts, ends;
  std::vector<std::int32_t> found;
  std::int64_t at = 0;
  std::size_t owned = 0;  // the first owned range that ends after the hit's start
  for (std::size_t i = 0; i < hits.starts.size(); ++i) {
    const std::int64_t start = hits.starts[i];
    if (start < at) continue;
    const auto string = to_size(hits.strings[i]);
    if (kinds[string] == static_cast<std::uint8_t>(AddedKind::odd)) return out;
    const std::int64_t end = start + static_cast<std::int64_t>(strings.size(hits.strings[i]));
    if (kinds[string] == static_cast<std::uint8_t>(AddedKind::control)) {
      while (owned < owned_ends.size() && owned_ends[owned] <= start) ++owned;
      if (owned < owned_starts.size() && owned_starts[owned] < end) return out;
    }
    starts.push_back(start);
    ends.push_back(end);
    found.push_back(string_ids[string]);
    at = end;
  }
  TokenEnds placed = token_ends(ids, table, text, {starts, ends, found, {}}, prefix_space, space_mark);
  if (!placed.in_step || !placed.failed.empty() || !placed.stray.empty()) return out;
  if (ids.empty() || placed.ends.back() != static_cast<std::int64_t>(text.size())) return out;
  std::size_t before = 0;  // occurrences that end at or before the cut
  for (const std::int64_t cut : cuts) {
    if (cut <= 0 || to_size(cut) >= text.size()) continue;
    while (before < ends.size() && ends[before] <= cut) ++before;
    const std::int64_t start = before ? ends[before - 1] : 0;
    // a string in the window that was passed over, or that reaches across the cut, might count in the prompt alone
    const auto hit = std::lower_bound(hits.starts.begin(), hits.starts.end(), start);
    if (hit != hits.starts.end() && *hit < cut) return out;
    out.cuts.push_back(cut);
    out.window_starts.push_back(start);
    out.window_tokens.push_back(before ? placed.occurrence_tokens[before - 1] + 1 : 0);
  }
  out.plain = true;
  out.ends = std::move(placed.ends);
  out.marks = placed.marks;
  return out;
}

Touched align_facts(std::span<const std::int64_t> token_ends, std::span<const std::int64_t> span_ends) {
  const auto check = [](std::span<const std::int64_t> ends, const char* name) {
    std::int64_t before = 0;
    for (std::size_t i = 0; i < ends.size(); ++i) {
      if (ends[i] < before) {
        throw std::invalid_argument(std::string(name) + " descend at index " + std::to_string(i));
      }
      before = ends[i];
    }
    return before;
  };
  const std::int64_t tokens_end = check(token_ends, "token_ends");
  const std::int64_t spans_end = check(span_ends, "span_ends");
  if (tokens_end > spans_end) {
    throw std::invalid_argument("tokens end at " + std::to_string(tokens_end) + ", past the spans' end " +
                                std::to_string(spans_end));
  }
  if (!token_ends.empty() && span_ends.empty()) throw std::invalid_argument("there are tokens but no spans");
  Touched out;
  out.first.resize(token_ends.size());
  out.last.resize(token_ends.size());
  std::size_t last_wide = span_ends.size() - (span_ends.empty() ? 0 : 1);
  while (last_wide > 0 && span_ends[last_wide - 1] == span_ends[last_wide]) --last_wide;
  std::size_t span = 0;  // the first span that ends after the token's start
  std::int64_t start = 0;
  for (std::size_t k = 0; k < token_ends.size(); ++k) {
    const std::int64_t end = token_ends[k];
    while (span < span_ends.size() && span_ends[span] <= start) ++span;
    std::size_t first = std::min(span, last_wide);
    std::size_t last = first;
    if (end > start) {
      while (span_ends[last] < end) ++last;
      span = last;
    }
    out.first[k] = static_cast<std::int32_t>(first);
    out.last[k] = static_cast<std::int32_t>(last);
    start = end;
  }
  return out;
}

std::vector<std::int64_t> char_to_byte(std::string_view text, std::span<const std::int64_t> positions) {
  std::vector<std::int64_t> out;
  out.reserve(positions.size());
  std::size_t byte = 0;
  std::int64_t character = 0;
  for (const std::int64_t position : positions) {
    if (position < character) {
      throw std::invalid_argument("character position " + std::to_string(position) + " is negative or descends");
    }
    for (; character < position; ++character) {
      if (byte >= text.size()) {
        throw std::invalid_argument("character position " + std::to_string(position) + " is past the end, " +
                                    std::to_string(character) + " characters");
      }
      do {
        ++byte;
      } while (byte < text.size() && (static_cast<std::uint8_t>(text[byte]) & 0xC0) == 0x80);
    }
    out.push_back(static_cast<std::int64_t>(byte));
  }
  return out;
}

}  // namespace maskpipe
