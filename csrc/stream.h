// Batches of a run, one after the other, a few of them read ahead.
//
//   place ──Planner──▶ rows of the next global batch ─▶ this rank's slice ─▶ jobs of one batch each ─▶ slots
//
// The rows are a pure function of the place, so every rank and every resume plans the same.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "order.h"
#include "reader.h"
#include "slots.h"

namespace maskpipe {

// Where a run stands: after whole global batches and `within` more rows of this rank's slice of the next one.
struct Place {
  std::vector<SourcePlace> sources;
  std::int64_t position = 0;  // rows delivered of all of them
  std::int64_t within = 0;
};

struct RunShape {
  std::vector<EpochShape> sources;
  std::vector<Key> keys;      // one per source
  std::int64_t global_batch;  // rows, a multiple of ranks
  std::int64_t ranks, rank;
  std::int64_t batch;  // rows, a divisor of global_batch / ranks
  bool pad;            // the last global batch of a pass is filled with rows of padding (source -1), else left out
  bool totals;         // of the whole global batch, where it is more than a batch
};

// The rows of global batches.
class Planner {
 public:
  // std::invalid_argument for a shape that does not add up.
  explicit Planner(RunShape shape);

  // rates: of the mixture, one per source. end: Σ counts where the pass ends, or -1 for never.
  void mix(std::vector<std::int64_t> rates, std::int64_t end);

  // Global batches that follow each other.
  struct Plan {
    struct GlobalBatch {
      std::size_t first, last;    // in `rows`: of all ranks where totals need them, else of this one
      std::size_t own, own_last;  // this rank's among them: fewer than its slice where the pass ends
      Place after;
    };
    Job::Rows rows;
    std::vector<GlobalBatch> batches;
  };

  // The next global batches after a place, whose `within` is not looked at: `most` of them, unless the pass ends
  // before. What out has is used again.
  void plan(const Place& place, std::size_t most, Plan& out) const;

  // [from, to) of this rank's slice; rows that are missing at the end of the pass are padding.
  static Job::Rows rows(const Plan& plan, const Plan::GlobalBatch& batch, std::int64_t from, std::int64_t to);

  const RunShape& shape() const { return shape_; }
  std::int64_t slice() const { return shape_.global_batch / shape_.ranks; }

 private:
  RunShape shape_;
  std::vector<std::int64_t> rates_;
  std::int64_t end_ = -1;
};

// Where columns begin in a slot, in bytes; -1 for what nobody asked for.
struct ColumnPlaces {
  std::int64_t ids32 = -1, ids = -1, labels = -1, targets = -1, positions = -1, segments = -1, weights = -1, roles = -1;
};

// A batch that is read and proved.
struct Delivered {
  Slot slot;
  Place after;
  std::shared_ptr<const Job> job;          // its rows and totals; for Reader::segments and runs
  bool is_whole;                           // the batch is its global batch, and that one's totals are asked for
  std::optional<RowTotals> shared_totals;  // of its global batch, where it is a part of one

  // Of its global batch, on all ranks; the same number everywhere.
  std::optional<RowTotals> whole() const { return is_whole ? job->totals() : shared_totals; }
};

class Stream {
 public:
  // take: gives a slot for every batch; it is called by whoever calls the stream.
  Stream(std::shared_ptr<Reader> reader, RunShape shape, const ColumnPlaces& columns, std::function<Slot()> take);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Goes on from another place: what was read ahead is given up.
  void stand(Place place, std::vector<std::int64_t> rates, std::int64_t end);

  // Begins to read one more batch; false at the end of the pass.
  bool submit();

  // Batches submitted and not yet given out.
  std::size_t ahead() const;

  // The oldest batch, after making sure that `depth` are on their way; nothing at the end of the pass. Throws what
  // Reader::wait throws; the batch is gone then.
  std::optional<Delivered> next(std::size_t depth);

  // After the batch that was given out last, or where it was told to stand.
  Place place() const;

  // The same, but without the last batch where more than `given` were given out since then.
  Place place_after(std::int64_t given) const;

  const Planner& planner() const { return planner_; }
  const std::shared_ptr<Reader>& reader() const { return reader_; }

 private:
  using Totals = std::optional<RowTotals>;
  struct Pending {
    std::shared_ptr<Job> job;
    Slot slot;
    Place after;
    std::shared_ptr<Totals> totals;  // of the global batch that it is a part of; nullptr where nobody asked for them
    bool looks;                      // at the facts of all of that one
  };

  bool submit_one();
  void give_up();
  BatchOut columns_of(const Slot& slot) const;

  std::shared_ptr<Reader> reader_;
  Planner planner_;
  ColumnPlaces columns_;
  std::function<Slot()> take_;
  mutable std::mutex mutex_;            // of all below
  Place before_, delivered_, planned_;  // before_: without the last batch that was given out
  std::int64_t given_ = 0;
  Planner::Plan plan_;
  std::size_t next_ = 0;            // of plan_: the global batch that planned_ is inside of, or before
  std::shared_ptr<Totals> totals_;  // of that one, once a job looks for them
  std::deque<Pending> pending_;
};

}  // namespace maskpipe
