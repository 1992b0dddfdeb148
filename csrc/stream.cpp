#include "stream.h"

#include <algorithm>
#include <span>
#include <stdexcept>
#include <utility>

namespace maskpipe {
namespace {

constexpr std::int64_t planned_at_once = 256;  // rows, where global batches are small: cheaper than one by one

}  // namespace

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

void Planner::plan(const Place& place, std::size_t most, Plan& out) const {
  const std::size_t n = shape_.sources.size();
  if (rates_.size() != n || place.sources.size() != n) {
    throw std::invalid_argument("expected one place and rate per source");
  }
  const bool all_ranks = shape_.totals && shape_.batch < shape_.global_batch;
  // At the positions of all the batches, one after the other, as far as their rows are wanted.
  std::vector<Stretch> stretches;
  std::size_t first = 0;
  std::vector<std::int64_t> counts;  // of a batch
  Place at = place;
  at.within = 0;
  std::size_t planned = 0;
  for (; planned < most; ++planned) {
    std::int64_t positions = shape_.global_batch;
    if (end_ >= 0) {
      std::int64_t left = end_;
      for (const SourcePlace& source : at.sources) left -= source.count;
      if (left <= 0 || (left < positions && !shape_.pad)) break;
      positions = std::min(positions, left);
    }
    const std::int64_t own = std::min(shape_.rank * slice(), positions), own_last = std::min(own + slice(), positions);
    const std::int64_t begin = all_ranks ? 0 : own, end = all_ranks ? positions : own_last;
    if (n == 1) {
      add(stretches, {0, at.sources[0].count + begin, end - begin});
      at.sources[0].count += positions;
    } else {
      const std::vector<std::int32_t> mixed = interleave(rates_, at.sources, positions, counts);
      const auto from = static_cast<std::size_t>(begin), size = static_cast<std::size_t>(end - begin);
      add(stretches, std::span(mixed).subspan(from, size), std::span(counts).subspan(from, size));
    }
    at.position += positions;
    if (out.batches.size() == planned) out.batches.emplace_back();
    Plan::GlobalBatch& batch = out.batches[planned];
    batch.first = first;
    batch.last = first + static_cast<std::size_t>(end - begin);
    batch.own = first + static_cast<std::size_t>(own - begin);
    batch.own_last = first + static_cast<std::size_t>(own_last - begin);
    batch.after = at;
    first = batch.last;
  }
  out.batches.resize(planned);
  const std::vector<std::int64_t> rows = rows_at(shape_.sources, shape_.keys, stretches);
  out.rows.resize(rows.size());
  auto row = rows.begin();
  auto to = out.rows.begin();
  for (const Stretch& stretch : stretches) {
    for (std::int64_t k = 0; k < stretch.size; ++k) *to++ = {stretch.source, *row++};
  }
}

Job::Rows Planner::rows(const Plan& plan, const Plan::GlobalBatch& batch, std::int64_t from, std::int64_t to) {
  const Job::Row* const all = plan.rows.data();
  const auto place = [&](std::int64_t k) {
    return all + std::min(batch.own + static_cast<std::size_t>(k), batch.own_last);
  };
  Job::Rows out(place(from), place(to));
  out.resize(static_cast<std::size_t>(to - from), {-1, -1});
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
  plan_.batches.clear();
  next_ = 0;
  totals_ = nullptr;
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
  const RunShape& shape = planner_.shape();
  if (next_ == plan_.batches.size()) {
    planner_.plan(planned_, static_cast<std::size_t>(std::max(planned_at_once / shape.global_batch, std::int64_t{1})),
                  plan_);
    next_ = 0;
    if (plan_.batches.empty()) return false;
  }
  const Planner::Plan::GlobalBatch& whole = plan_.batches[next_];
  const std::int64_t begin = planned_.within, end = begin + shape.batch;
  if (begin < 0 || end > planner_.slice()) throw std::invalid_argument("a place is outside its global batch");
  Slot slot = take_();
  const bool looks = shape.totals && shape.batch < shape.global_batch && totals_ == nullptr;
  Job::Rows step;
  if (looks) step.assign(plan_.rows.begin() + whole.first, plan_.rows.begin() + whole.last);
  auto job = std::make_shared<Job>(Planner::rows(plan_, whole, begin, end), std::move(step), columns_of(slot));
  reader_->submit(job);
  if (looks) totals_ = std::make_shared<Totals>();
  if (end < planner_.slice()) {
    planned_.within = end;
    pending_.push_back({std::move(job), std::move(slot), planned_, totals_, looks});
  } else {
    planned_ = whole.after;
    pending_.push_back({std::move(job), std::move(slot), planned_, std::exchange(totals_, nullptr), looks});
    ++next_;
  }
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
  if (pending.looks) *pending.totals = pending.job->step_totals();
  std::swap(before_, delivered_);
  delivered_ = pending.after;
  ++given_;
  const RunShape& shape = planner_.shape();
  return Delivered{std::move(pending.slot), std::move(pending.after), std::move(pending.job),
                   shape.totals && shape.batch == shape.global_batch,
                   pending.totals == nullptr ? std::nullopt : *pending.totals};
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
