#include "stream.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace maskpipe {

Planner::Planner(RunShape shape) : shape_(std::move(shape)) {
  const RunShape& s = shape_;
  const bool fits = s.ranks >= 1 && s.rank >= 0 && s.rank < s.ranks && s.global_batch >= 1 &&
                    s.global_batch % s.ranks == 0 && s.batch >= 1 && s.global_batch / s.ranks % s.batch == 0 &&
                    !s.sources.empty() && s.keys.size() == s.sources.size();
  if (!fits) throw std::invalid_argument("ranks, batches and sources of a run do not add up");
}

void Planner::mix(std::vector<std::int64_t> rates, std::int64_t end) {
  if (rates.size() != shape_.sources.size()) throw std::invalid_argument("expected one rate per source");
  rates_ = std::move(rates);
  end_ = end;
}

std::optional<Planner::Plan> Planner::plan(const Place& place) const {
  const std::size_t n = shape_.sources.size();
  if (rates_.size() != n || place.counts.size() != n || place.credits.size() != n) {
    throw std::invalid_argument("expected one count, credit and rate per source");
  }
  std::int64_t positions = shape_.global_batch;
  if (end_ >= 0) {
    const std::int64_t left = end_ - std::accumulate(place.counts.begin(), place.counts.end(), std::int64_t{0});
    if (left <= 0 || (left < positions && !shape_.pad)) return std::nullopt;
    positions = std::min(positions, left);
  }
  Plan out;
  out.after = {place.counts, place.credits, place.position + positions, 0};
  std::vector<std::int32_t> sources;
  std::vector<std::int64_t> counts;
  if (n == 1) {
    sources.assign(static_cast<std::size_t>(positions), 0);
    counts.resize(sources.size());
    std::iota(counts.begin(), counts.end(), place.counts[0]);
    out.after.counts[0] += positions;
  } else {
    sources = interleave(rates_, out.after.credits, out.after.counts, positions, counts);
  }
  const std::int64_t begin = std::min(shape_.rank * slice(), positions), end = std::min(begin + slice(), positions);
  const auto rows_of = [&](std::int64_t from, std::int64_t to) {
    const auto first = static_cast<std::size_t>(from), size = static_cast<std::size_t>(to - from);
    const auto of = std::span(sources).subspan(first, size);
    return Job::Rows{{of.begin(), of.end()},
                     rows_at(shape_.sources, shape_.keys, of, std::span(counts).subspan(first, size))};
  };
  if (shape_.totals && shape_.batch < shape_.global_batch) {
    out.whole = rows_of(0, positions);
    const auto part = [&](const auto& values) {
      return std::remove_cvref_t<decltype(values)>(values.begin() + begin, values.begin() + end);
    };
    out.slice = {part(out.whole.sources), part(out.whole.rows)};
  } else {
    out.slice = rows_of(begin, end);
  }
  out.slice.sources.resize(static_cast<std::size_t>(slice()), -1);
  out.slice.rows.resize(static_cast<std::size_t>(slice()), -1);
  return out;
}

Stream::Stream(std::shared_ptr<Reader> reader, RunShape shape, const ColumnPlaces& columns, std::function<Slot()> take)
    : reader_(std::move(reader)), planner_(std::move(shape)), columns_(columns), take_(std::move(take)) {}

Stream::~Stream() { give_up(); }

void Stream::give_up() {
  for (const Pending& pending : pending_) reader_->cancel(*pending.job);
  // In a forked process a job may be half written for ever, by a thread that is not there: it stays as it is.
  if (!reader_->is_here()) (void)new std::deque(std::move(pending_));
  pending_.clear();
  whole_ = nullptr;
  looked_ = false;
}

void Stream::stand(Place place, std::vector<std::int64_t> rates, std::int64_t end) {
  const std::lock_guard lock(mutex_);
  give_up();
  planned_ = delivered_ = before_ = std::move(place);
  given_ = 0;
  planner_.mix(std::move(rates), end);
}

BatchOut Stream::columns_of(const Slot& slot) const {
  const auto at = [&]<typename Value>(std::int64_t place, Value*) {
    return place < 0 ? nullptr : reinterpret_cast<Value*>(slot.memory + place);
  };
  const ColumnPlaces& c = columns_;
  BatchOut out{};
  return {at(c.ids32, out.ids32),         at(c.ids, out.ids),
          at(c.labels, out.labels),       at(c.targets, out.targets),
          at(c.positions, out.positions), at(c.segments, out.segments),
          at(c.weights, out.weights),     at(c.roles, out.roles)};
}

bool Stream::submit_one() {
  if (whole_ == nullptr) {
    std::optional<Planner::Plan> plan = planner_.plan(planned_);
    if (!plan) return false;
    whole_ = std::make_shared<Whole>(Whole{std::move(*plan), std::nullopt});
    looked_ = false;
  }
  const std::shared_ptr<Whole> whole = whole_;
  const std::int64_t begin = planned_.within, end = begin + planner_.shape().batch;
  if (begin < 0 || end > planner_.slice()) throw std::invalid_argument("a place is outside its global batch");
  const auto part = [&](auto& values) {
    if (planner_.shape().batch == planner_.slice()) return std::move(values);
    return std::remove_cvref_t<decltype(values)>(values.begin() + begin, values.begin() + end);
  };
  Job::Rows rows{part(whole->plan.slice.sources), part(whole->plan.slice.rows)};
  const bool looks = !looked_ && !whole->plan.whole.rows.empty();
  Slot slot = take_();
  auto job =
      std::make_shared<Job>(std::move(rows), looks ? std::move(whole->plan.whole) : Job::Rows{}, columns_of(slot));
  reader_->submit(job);
  looked_ = true;
  if (end == planner_.slice()) {
    planned_ = whole->plan.after;
    whole_ = nullptr;
  } else {
    planned_.within = end;
  }
  pending_.push_back({std::move(job), std::move(slot), planned_, whole, looks});
  return true;
}

bool Stream::submit() {
  const std::lock_guard lock(mutex_);
  return submit_one();
}

std::size_t Stream::ahead() const {
  const std::lock_guard lock(mutex_);
  return pending_.size();
}

std::optional<Delivered> Stream::next(std::size_t depth) {
  const std::lock_guard lock(mutex_);
  while (pending_.size() < depth && submit_one()) {
  }
  if (pending_.empty()) return std::nullopt;
  Pending pending = std::move(pending_.front());
  pending_.pop_front();
  try {
    // Another one takes its place in the queue before this one is waited for. Where nobody reads ahead it would only
    // spoil the caches: then a slot that comes back is used again at once.
    if (depth > 1) submit_one();
    reader_->wait(*pending.job);
  } catch (...) {
    reader_->cancel(*pending.job);
    throw;
  }
  if (pending.looks) pending.whole->totals = pending.job->step_totals();
  std::swap(before_, delivered_);
  delivered_ = pending.after;
  ++given_;
  const RunShape& shape = planner_.shape();
  return Delivered{std::move(pending.slot), std::move(pending.after), std::move(pending.job),
                   shape.totals && shape.batch == shape.global_batch, pending.whole->totals};
}

Place Stream::place() const {
  const std::lock_guard lock(mutex_);
  return delivered_;
}

Place Stream::place_after(std::int64_t given) const {
  const std::lock_guard lock(mutex_);
  return given_ > given ? before_ : delivered_;
}

}  // namespace maskpipe
