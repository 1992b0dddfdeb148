#include "chat_template.h"

#include <time.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "facts.h"
#include "hash.h"

namespace maskpipe {
namespace {

constexpr std::size_t hashed = 1024;  // characters

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Adds what passes until its end, however that comes.
class Timer {
 public:
  explicit Timer(const ChatTemplate& of) : of_(of), begun_(of.is_timed ? thread_seconds() : 0) {}
  ~Timer() {
    if (of_.is_timed) of_.seconds += thread_seconds() - begun_;
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  const ChatTemplate& of_;
  double begun_;
};

}  // namespace

std::int64_t role_named(std::u32string_view name) {
  static constexpr std::array<std::pair<std::u32string_view, std::int64_t>, 5> known = {
      {{U"system", 1}, {U"developer", 1}, {U"user", 2}, {U"assistant", role::assistant}, {U"tool", 4}}};
  for (const auto& [word, role] : known) {
    if (name == word) return role;
  }
  return -1;
}

std::int64_t end_of_inline_reasoning(std::int64_t role, std::u32string_view content) {
  static constexpr std::u32string_view tag = U"</think>";
  if (role != role::assistant) return 0;
  const std::size_t at = content.find(tag);
  return at == std::u32string_view::npos ? 0 : static_cast<std::int64_t>(at + tag.size());
}

Rendering ChatTemplate::render(const Input& input, std::int64_t count, bool prompt, const Beside* beside) const {
  const Timer timer(*this);
  if (input.foreign || count < 0 || count > static_cast<std::int64_t>(input.messages.size())) throw Bail{};
  List* list = new List;
  Variables variables;
  variables.reserve(4 + input.kwargs.size() + special.size());
  variables.emplace_back(U"messages", Value::of(Kind::list, list));
  variables.emplace_back(U"tools", input.tools);
  variables.emplace_back(U"documents", input.documents);
  variables.emplace_back(U"add_generation_prompt", Value::boolean(prompt));
  list->entries.assign(input.messages.begin(), input.messages.begin() + count);
  variables.insert(variables.end(), input.kwargs.begin(), input.kwargs.end());
  variables.insert(variables.end(), special.begin(), special.end());
  return program->run(variables, beside);
}

bool needs_comparison(const Rendering& rendering, std::u32string_view beside, std::uint64_t one_in) {
  if (one_in == 0) return false;
  if (!rendering.touched.empty()) return true;
  std::u32string end;
  const std::size_t own = std::min(rendering.text.size(), hashed);
  const std::size_t before = std::min(rendering.shared, hashed - own);
  end.reserve(hashed + 1);
  end.append(beside.substr(rendering.shared - before, before));
  end.append(rendering.text, rendering.text.size() - own);
  end.push_back(static_cast<char32_t>(rendering.size()));
  return xxh3(end.data(), end.size() * sizeof(char32_t)) % one_in == 0;
}

}  // namespace maskpipe
