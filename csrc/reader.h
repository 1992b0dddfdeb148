// The reader: rows of datasets -> batches, by threads that know nothing of Python.
//
//   submit(rows, where the columns go) -> Job ─┐ threads take a few rows at a time, oldest job first:
//                                              │ shard -> block of facts (kept; those not used of late go first)
//   wait(job) <────────────────────────────────┘ -> ids (read and proved) -> dense columns of the row
//
// Nothing of a batch is given out before all of it was proved. Which thread does what shows nowhere in the result.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "block.h"
#include "expand.h"
#include "shard_file.h"

namespace maskpipe {

struct SourceShards {
  std::string directory;
  std::vector<std::string> names;
  std::vector<std::int64_t> sizes;
  std::vector<std::int64_t> rows;    // at least 1 each
  std::vector<std::string> regions;  // 16 hex digits per region, as in the manifest
  std::vector<std::string> batches;  // 16 per record batch
  std::int64_t batch_rows;           // rows of every record batch but the last of a shard (F11)
  std::int32_t pad_id;
};

struct ReaderOptions {
  std::int64_t sequence_length;
  std::int64_t threads;  // 0: wait() does the work
  Verify verify;
  Io io;
  bool random_access;
  std::int64_t cache_bytes;  // of decoded blocks; the newest block of every thread is kept besides
  std::int64_t open_files;   // at least 1
};

// Where columns begin, [rows * sequence_length] each, or nullptr; ids or ids32 are there.
using BatchOut = RowOut;

// What has no fixed size, over all rows of a batch as one line of rows * sequence_length tokens.
struct Segments {
  std::vector<std::int32_t> numbers;   // [segments] of the document in its row from 1; 0 for padding
  std::vector<std::uint8_t> branches;  // [segments] format.Branch
  std::vector<std::int64_t> pairs;     // [segments] -1 for none
  std::vector<std::int32_t> parents;   // [segments] places back to the prompt that it continues, 0 for none
  std::vector<float> scores;           // [segments] NaN for none
  std::vector<std::int8_t> desirable;  // [segments] 1 or 0, -1 for none
};
struct BatchRuns {
  std::vector<std::int32_t> ends;                // [runs]
  std::vector<std::uint8_t> roles, parts, loss;  // [runs]
  std::vector<float> weights;                    // [runs]
};

class Reader;

// A batch on its way. Only the reader changes it.
class Job {
 public:
  struct Row {
    std::int32_t source;  // -1: a row of padding
    std::int64_t row;
  };
  using Rows = std::vector<Row>;

  // step: the rows whose loss is summed, which other batches and ranks have too; of them only facts are read.
  Job(Rows rows, Rows step, BatchOut out);

  // Once it was waited for: of its rows, and of those of the step, summed in their order.
  RowTotals totals() const;
  RowTotals step_totals() const;

  const Rows& rows() const { return rows_; }

 private:
  friend class Reader;
  std::size_t size() const { return rows_.size() + step_.size(); }

  Rows rows_, step_;
  std::vector<RowTotals> of_step_;  // [step]
  BatchOut out_;
  std::vector<std::shared_ptr<const Block>> blocks_;  // per row
  std::vector<std::int32_t> places_;                  // row of the block, per row
  std::size_t next_ = 0;                              // of size(), taken by threads; guarded by the reader
  std::size_t done_ = 0, active_ = 0;
  bool cancelled_ = false;
  std::string error_;
};

class Reader {
 public:
  // std::invalid_argument for sources that do not add up. Opens no file.
  Reader(std::vector<SourceShards> sources, const ReaderOptions& options, const Decision& decision);
  // Ends the threads. Only in the process that made it.
  ~Reader();
  Reader(const Reader&) = delete;
  Reader& operator=(const Reader&) = delete;

  // What `out` points to must stay until wait() or cancel().
  void submit(const std::shared_ptr<Job>& job);

  // Returns when the columns of a batch are filled. std::runtime_error when a shard is not what the manifest says,
  // naming shard, region and rows, or when a row does not exist; then nothing of the batch may be used. Without threads
  // it does the work, and one job at a time may be waited for.
  void wait(Job& job);

  // The facts of a batch that was waited for. cu_seqlens: [segments + 1]; a padding tail is a segment of its own.
  std::vector<std::int32_t> cu_seqlens(const Job& job) const;
  Segments segments(const Job& job) const;
  BatchRuns runs(const Job& job) const;

  // Returns when no thread works on it any more.
  void cancel(Job& job);

  // Gives up the open file of a shard, once nobody reads it; it is opened again when it is needed. std::out_of_range
  // for a shard that does not exist.
  void close_file(std::size_t source, std::size_t number);

  // Is this the process that made it? In a forked one its threads are missing, and nothing of it may be touched.
  bool is_here() const;

  std::int64_t sequence_length() const { return options_.sequence_length; }

  // Blocks decoded so far; without the facts cache every row would be one.
  std::int64_t blocks_decoded() const { return decoded_.load(); }

 private:
  struct Shard;
  // A row that a job asks for.
  struct Wanted {
    std::int64_t place;  // in the line of all rows
    std::size_t k;       // of the rows of the job, or of its step after them
  };
  struct Found {
    Shard* shard;
    std::int64_t row;  // of the shard
    std::size_t k;
  };
  struct Lazy {
    std::unique_ptr<Shard> made;         // open_mutex_
    std::atomic<Shard*> known{nullptr};  // the same, once it is whole
  };
  struct Cached {
    Shard* shard;
    std::size_t block;
  };
  // A row of a job on its way.
  struct Visit {
    Found found;
    std::size_t number, in_block;        // of the block in its shard, of the row in its block
    std::shared_ptr<const Block> block;  // nullptr until it is known
    const OpenFile* file;                // which the bench keeps
    std::int64_t ids;                    // where they begin in the file
    const std::uint64_t* hash;           // of them; in the block
  };
  // What one thread works with.
  struct Bench {
    Scratch scratch;
    std::vector<Wanted> wanted;
    std::vector<Visit> visits;
    std::vector<std::shared_ptr<const OpenFile>> files;  // of the visits

    void close();
  };

  void work();
  void run(Job& job, std::size_t first, std::size_t last, Bench& bench);
  void find_all(Job& job, std::size_t first, std::size_t last, Bench& bench);
  std::size_t visit_some(Job& job, std::size_t begin, Bench& bench);
  void read_ids(Job& job, Visit& visit, const Visit* next, Scratch& scratch);
  void pad_row(Job& job, std::size_t k) const;
  RowOut columns_of(const Job& job, std::size_t k) const;
  std::int64_t place_of(const Job::Row& row) const;
  Shard& shard_at(std::int64_t place);
  template <typename Call>
  void explained(const Found& found, Call call);
  const std::shared_ptr<const Block>& kept_block(Shard& shard, std::size_t number);
  void drop_block();
  std::shared_ptr<const Block> block(Shard& shard, std::size_t number, Scratch& scratch);
  std::shared_ptr<const Block> decode(Shard& shard, std::size_t number, Scratch& scratch);
  std::shared_ptr<const OpenFile> open(Shard& shard);
  std::string describe(Shard& shard, std::int64_t row, const WrongBytes& wrong) const;

  ReaderOptions options_;
  Decision decision_;
  std::vector<SourceShards> sources_;
  // The rows of all sources stand in one line, shard after shard.
  std::vector<std::int64_t> starts_{0};       // [sources + 1] where each source begins
  std::vector<std::size_t> first_shards_{0};  // [sources + 1] the number of its first shard
  std::vector<std::int64_t> ends_;            // [shards]
  std::vector<Lazy> shards_;
  std::shared_ptr<const Block> padding_;

  std::mutex cache_mutex_;  // of cached_, hand_, cached_bytes_, Shard::blocks and Shard::used
  std::vector<Cached> cached_;
  std::size_t hand_ = 0;  // of the clock, in cached_
  std::int64_t cached_bytes_ = 0;
  std::mutex open_mutex_;  // of opened_ and of making shards
  std::deque<Shard*> opened_;

  std::mutex queue_mutex_;  // of queue_, stopping_ and the changing parts of jobs
  std::condition_variable work_ready_, job_done_;
  std::deque<std::shared_ptr<Job>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
  Bench own_;  // of wait() without threads
  std::int64_t process_;
  std::atomic<std::int64_t> decoded_ = 0;
};

}  // namespace maskpipe
