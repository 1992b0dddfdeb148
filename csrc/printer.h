// What a template prints: at the top level with the origins of each character, or gathered by a macro or a block.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "engine.h"
#include "facts.h"
#include "tracked.h"

namespace maskpipe {

// What is printed at the top level, as environment.py's `printed` takes it.
class Printer {
 public:
  explicit Printer(const Beside* beside) : beside_(beside) {}

  // Differs where nothing is to be kept and it is another text.
  void piece(const Text& text, std::int64_t here) {
    const std::size_t size = text.chars.size();
    if (size == 0) return;
    keep(text.chars);
    if (beside_ != nullptr && beside_->only) {
      at_ += static_cast<std::int64_t>(size);
      return;
    }
    if (here != source_) {
      flush(at_);
      source_ = here;
      literal_ = at_;
    }
    for (const auto& [a, b, leaf, c, d] : text.origins) {
      flush(at_ + a);
      literal_ = at_ + b;
      add({at_ + a, literal_, leaf, c, d});
    }
    at_ += static_cast<std::int64_t>(size);
  }

  void finish(Rendering& out) {
    if (beside_ == nullptr || !beside_->only) flush(at_);
    out.shared = beside_ == nullptr ? 0 : same_ ? static_cast<std::size_t>(at_) : shared_;
    out.text = std::move(chars_);
    out.origins = std::move(origins_);
    out.own = own_;
    out.is_own_literal = is_own_literal_;
  }

 private:
  void keep(const std::u32string& chars) {
    if (beside_ == nullptr) {
      chars_ += chars;
      return;
    }
    if (!same_) {
      chars_ += chars;
      return;
    }
    const std::size_t at = static_cast<std::size_t>(at_);
    const std::size_t size = std::min(chars.size(), beside_->text.size() - at);
    const char32_t* there = beside_->text.data() + at;
    if (size == chars.size() && std::memcmp(chars.data(), there, size * sizeof(char32_t)) == 0) return;
    if (beside_->only) throw Differs{};
    const std::size_t equal = static_cast<std::size_t>(
        std::mismatch(chars.begin(), chars.begin() + static_cast<std::ptrdiff_t>(size), there).first - chars.begin());
    same_ = false;
    shared_ = at + equal;
    chars_.assign(chars, equal);
  }

  void flush(std::int64_t stop) {
    if (stop > literal_) add({literal_, stop, source_, 0, stop - literal_});
  }

  void add(const Origin& entry) {
    join(entry);
    if (beside_ == nullptr) return;
    if (entry[2] < 0) {
      is_own_literal_ = is_own_literal_ || entry[2] == -2 - beside_->message;
      return;
    }
    const Leaf& leaf = beside_->leaves[static_cast<std::size_t>(entry[2])];
    if (leaf[2] != beside_->message || leaf[1] == part::scaffold) return;
    own_.second = static_cast<std::int64_t>(origins_.size()) - 1;
    if (own_.first < 0) own_.first = own_.second;
  }

  // As render.py's _coalesced.
  void join(const Origin& entry) {
    if (!origins_.empty()) {
      auto& [a, b, source, c, d] = origins_.back();
      if (source == entry[2]) {
        if (source < 0) {
          b = entry[1];
          c = 0;
          d = entry[1] - a;
          return;
        }
        if (b - a == d - c && entry[1] - entry[0] == entry[4] - entry[3] && entry[3] == d) {
          b = entry[1];
          d = entry[4];
          return;
        }
      }
    }
    origins_.push_back(entry);
  }

  const Beside* beside_;
  bool same_ = true;
  std::size_t shared_ = 0;
  std::u32string chars_;
  std::vector<Origin> origins_;
  std::pair<std::int64_t, std::int64_t> own_ = {-1, -1};
  bool is_own_literal_ = false;
  std::int64_t at_ = 0, literal_ = 0, source_ = 0;
};

// What a macro or a block gathers: tagged at once.
struct Gathering {
  std::u32string chars;
  std::vector<Origin> origins;

  void piece(const Text& text, std::int64_t source) {
    const std::int64_t base = static_cast<std::int64_t>(chars.size());
    const std::int64_t size = static_cast<std::int64_t>(text.chars.size());
    std::int64_t at = 0;
    for (const auto& [a, b, leaf, c, d] : text.origins) {
      if (a > at) origins.push_back({base + at, base + a, source, 0, a - at});
      origins.push_back({base + a, base + b, leaf, c, d});
      at = b;
    }
    if (at < size) origins.push_back({base + at, base + size, source, 0, size - at});
    chars += text.chars;
  }

  Value done() {
    Text* text = new Text;
    Value out = Value::text(text);
    text->chars = std::move(chars);
    text->origins = std::move(origins);
    return out;
  }
};

}  // namespace maskpipe
