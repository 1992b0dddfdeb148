#include "expand.h"

#include <algorithm>
#include <cstring>

#include "wide.h"

namespace maskpipe {
namespace {

constexpr std::int64_t no_label = -100;

// Four values as one, which compilers turn into what the processor has.
typedef std::int64_t Four __attribute__((vector_size(32), aligned(8), may_alias));
typedef std::int32_t NarrowFour __attribute__((vector_size(16), aligned(4), may_alias));

Four& four(std::int64_t* at) { return *reinterpret_cast<Four*>(at); }
const Four& four(const std::int64_t* at) { return *reinterpret_cast<const Four*>(at); }
const NarrowFour& four(const std::int32_t* at) { return *reinterpret_cast<const NarrowFour*>(at); }

// Where a stretch begins, which may be anywhere, a few values go one by one: else every other wide store would touch
// two lines of the cache, which halves the speed. The first k in [from, to] that may be written with others.
std::int64_t level(const std::int64_t* out, std::int64_t from, std::int64_t to) {
  const auto place = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(out + from) / sizeof(out[0]));
  return std::min(to, from + (-place & 3));
}

// Writes out[k] for all k in [from, to) in order: one_at(k) writes one, four_at(k) writes out[k] to out[k + 3].
template <typename One, typename More>
inline __attribute__((always_inline)) void write(const std::int64_t* out, std::int64_t from, std::int64_t to,
                                                 const One& one_at, const More& four_at) {
  std::int64_t k = from;
  for (const std::int64_t begin = level(out, from, to); k < begin; ++k) one_at(k);
  for (; k + 16 <= to; k += 16) {
    for (int part = 0; part < 16; part += 4) four_at(k + part);
  }
  for (; k + 4 <= to; k += 4) four_at(k);
  for (; k < to; ++k) one_at(k);
}

MASKPIPE_WIDE void count_up(std::int64_t* out, std::int64_t size, std::int64_t from) {
  Four next = Four{0, 1, 2, 3} + (from + level(out, 0, size));
  const auto one_at = [&](std::int64_t k) { out[k] = from + k; };
  const auto four_at = [&](std::int64_t k) {
    four(out + k) = next;
    next += 4;
  };
  write(out, 0, size, one_at, four_at);
}

// out[k - shift] is the id of token k where it has loss, for all k but the first `shift`.
template <typename Id>
inline __attribute__((always_inline)) void labels(const Id* ids, const Run* runs, std::size_t n, std::int32_t shift,
                                                  std::int64_t* out) {
  std::int64_t* const to = out - shift;
  const Four none = Four{} + no_label;
  std::int64_t k = shift;
  for (std::size_t r = 0; r < n; ++r) {
    if (r + 1 < n && runs[r].loss == runs[r + 1].loss) continue;
    const std::int64_t end = runs[r].end;
    if (runs[r].loss) {
      const auto one_at = [&](std::int64_t at) { to[at] = ids[at]; };
      const auto four_at = [&](std::int64_t at) { four(to + at) = __builtin_convertvector(four(ids + at), Four); };
      write(to, k, end, one_at, four_at);
    } else {
      const auto one_at = [&](std::int64_t at) { to[at] = no_label; };
      const auto four_at = [&](std::int64_t at) { four(to + at) = none; };
      write(to, k, end, one_at, four_at);
    }
    k = std::max(k, end);
  }
}

MASKPIPE_WIDE void labels_of(const std::int64_t* ids, const Run* runs, std::size_t n, std::int32_t shift,
                             std::int64_t* out) {
  labels(ids, runs, n, shift, out);
}

MASKPIPE_WIDE void labels_of(const std::int32_t* ids, const Run* runs, std::size_t n, std::int32_t shift,
                             std::int64_t* out) {
  labels(ids, runs, n, shift, out);
}

template <typename Value, typename Of>
void fill_runs(std::span<const Run> runs, Value* out, Of of) {
  std::int32_t start = 0;
  for (const Run& run : runs) {
    std::fill(out + start, out + run.end, of(run));
    start = run.end;
  }
}

}  // namespace

void expand_row(std::int64_t row_length, const RowFacts& facts, const RowOut& out) {
  const auto length = static_cast<std::int32_t>(row_length);
  const std::span<const Run> runs = facts.runs;
  const auto shifted = [&](std::int32_t shift, std::int64_t* to) {
    if (out.ids) {
      labels_of(out.ids, runs.data(), runs.size(), shift, to);
    } else {
      labels_of(out.ids32, runs.data(), runs.size(), shift, to);
    }
  };
  if (out.labels) shifted(0, out.labels);
  if (out.targets) {
    shifted(1, out.targets);
    out.targets[length - 1] = no_label;
  }
  if (out.positions || out.segments) {
    const std::span<const std::int32_t> ends = facts.document_ends;
    std::int32_t start = 0;
    const auto segment_of = [&](std::int32_t end, std::int32_t number, std::int32_t position) {
      if (out.positions) count_up(out.positions + start, end - start, position);
      if (out.segments) std::fill(out.segments + start, out.segments + end, number);
      start = end;
    };
    for (std::size_t d = 0; d < ends.size(); ++d) {
      std::int32_t position = 0;
      if (!facts.parents.empty() && facts.parents[d] > 0) {
        const std::size_t prompt = d - static_cast<std::size_t>(facts.parents[d]);
        position = ends[prompt] - (prompt == 0 ? 0 : ends[prompt - 1]);
      }
      segment_of(ends[d], static_cast<std::int32_t>(d) + 1, position);
    }
    if (start < length) segment_of(length, 0, 0);
  }
  if (out.weights) fill_runs(runs, out.weights, [](const Run& run) { return run.weight; });
  if (out.roles) fill_runs(runs, out.roles, [](const Run& run) { return run.role; });
}

}  // namespace maskpipe
