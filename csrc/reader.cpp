#include "reader.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <new>
#include <span>
#include <stdexcept>
#include <utility>

#include "facts.h"

namespace maskpipe {
namespace {

constexpr std::size_t rows_at_once = 4;  // that a thread takes from a job, at least
constexpr std::size_t facts_at_once = 64;
constexpr std::size_t shards_at_once = 32;  // whose files a thread keeps open while it reads

std::vector<std::uint64_t> parse_hashes(const std::string& hex) {
  std::vector<std::uint64_t> out(hex.size() / 16);
  for (std::size_t k = 0; k < out.size(); ++k) {
    const char* at = hex.data() + 16 * k;
    // What is no hash equals none: the region will be refused when it is read.
    if (std::from_chars(at, at + 16, out[k], 16).ptr != at + 16) out[k] = 0;
  }
  return out;
}

// Many processors divide 64 bits several times as slowly as 32.
std::int64_t quotient(std::int64_t a, std::int64_t b) {
  if ((a | b) >> 32 != 0) return a / b;
  return static_cast<std::uint32_t>(a) / static_cast<std::uint32_t>(b);
}

// Facts of other batches are rarely in the caches, so they are looked at only for what needs them.
bool more_than_ids(const RowOut& out) {
  return out.labels || out.targets || out.positions || out.segments || out.weights || out.roles;
}

[[noreturn]] void no_such_row(const Job::Row& row) {
  throw std::invalid_argument("source " + std::to_string(row.source) + " has no row " + std::to_string(row.row));
}

}  // namespace

struct Reader::Shard {
  const SourceShards& source;
  std::size_t number;       // of the shard in its source
  std::int64_t begin, end;  // in the line of all rows
  ShardFile file;
  std::mutex mutex;                // of decoding; held while a block is read
  std::vector<BatchPlace> places;  // of the record batches; empty until the footer was proved
  std::vector<std::shared_ptr<const Block>> blocks;
  std::vector<std::uint8_t> used;  // per block, since the hand came by

  std::int64_t rows() const { return end - begin; }
  std::int64_t block_of(std::int64_t row) const { return quotient(row, source.batch_rows); }
  std::size_t n_blocks() const { return static_cast<std::size_t>((rows() - 1) / source.batch_rows) + 1; }
};

Job::Job(Rows rows, Rows step, BatchOut out)
    : rows_(std::move(rows)),
      step_(std::move(step)),
      of_step_(step_.size()),
      out_(out),
      blocks_(rows_.size()),
      places_(rows_.size()) {
  if (out.ids == nullptr && out.ids32 == nullptr) throw std::invalid_argument("a job needs a place for ids");
}

Reader::Reader(std::vector<SourceShards> sources, const ReaderOptions& options, const Decision& decision)
    : options_(options), decision_(decision), sources_(std::move(sources)), process_(::getpid()) {
  if (options.sequence_length < 1 || options.sequence_length > INT32_MAX || options.threads < 0 ||
      options.threads > 256 || options.open_files < 1) {
    throw std::invalid_argument("sequence_length must be in [1, 2^31 - 1], threads in [0, 256], open_files at least 1");
  }
  for (const SourceShards& source : sources_) {
    const std::size_t n = source.names.size();
    if (source.sizes.size() != n || source.rows.size() != n || source.regions.size() != n ||
        source.batches.size() != n || source.batch_rows < 1) {
      throw std::invalid_argument("a source needs as many sizes, rows, regions and batches as names");
    }
    std::int64_t end = starts_.back();
    for (std::size_t k = 0; k < n; ++k) {
      const auto regions = (source.sizes[k] + region_size - 1) / region_size;
      const auto batches = (source.rows[k] + source.batch_rows - 1) / source.batch_rows;
      if (source.rows[k] < 1 || source.sizes[k] < 1 || source.rows[k] > INT64_MAX - end ||
          static_cast<std::int64_t>(source.regions[k].size()) != 16 * regions ||
          static_cast<std::int64_t>(source.batches[k].size()) != 16 * batches) {
        throw std::invalid_argument(source.names[k] + ": regions do not fit its size, or batches its rows");
      }
      ends_.push_back(end += source.rows[k]);
    }
    starts_.push_back(end);
    first_shards_.push_back(ends_.size());
  }
  shards_ = std::vector<Lazy>(ends_.size());
  auto padding = std::make_shared<Block>();
  padding->run_offsets = {0, 1};
  padding->document_offsets = {0, 0};
  padding->totals.resize(1);
  padding->totals[0].longest = static_cast<std::int32_t>(options.sequence_length);
  padding->runs = {{static_cast<std::int32_t>(options.sequence_length), 0.0F, role::padding, part::none, 0}};
  padding_ = std::move(padding);
  // Signals are the main thread's: Python handles them there.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (std::int64_t k = 0; k < options.threads; ++k) threads_.emplace_back([this] { work(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

bool Reader::is_here() const { return ::getpid() == process_; }

Reader::~Reader() {
  {
    const std::lock_guard lock(queue_mutex_);
    stopping_ = true;
  }
  work_ready_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Reader::submit(const std::shared_ptr<Job>& job) {
  if (!threads_.empty() && !is_here()) throw std::logic_error("the reader belongs to another process");
  if (static_cast<std::int64_t>(job->rows_.size()) > INT32_MAX / options_.sequence_length) {
    throw std::invalid_argument("a batch holds fewer than 2^31 tokens; use a smaller batch_size");
  }
  if (threads_.empty()) return;
  {
    const std::lock_guard lock(queue_mutex_);
    queue_.push_back(job);
  }
  work_ready_.notify_all();
}

void Reader::work() {
  Bench bench;
  const auto sharing = static_cast<std::size_t>(options_.threads);
  std::unique_lock lock(queue_mutex_);
  for (;;) {
    work_ready_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    const std::shared_ptr<Job> job = queue_.front();
    const std::size_t first = job->next_, rows = job->rows_.size();
    const std::size_t share = std::max((rows + sharing - 1) / sharing, rows_at_once);
    const std::size_t last =
        first < rows ? std::min(first + share, rows) : std::min(first + facts_at_once, job->size());
    job->next_ = last;
    if (last == job->size() || job->cancelled_) queue_.pop_front();
    if (job->cancelled_) continue;
    ++job->active_;
    lock.unlock();
    run(*job, first, last, bench);
    lock.lock();
    --job->active_;
    job->done_ += last - first;
    if (job->done_ == job->size() || (job->cancelled_ && job->active_ == 0)) job_done_.notify_all();
  }
}

RowTotals Job::totals() const {
  RowTotals out;
  for (std::size_t k = 0; k < blocks_.size(); ++k) out.add(blocks_[k]->totals[static_cast<std::size_t>(places_[k])]);
  return out;
}

RowTotals Job::step_totals() const {
  RowTotals out;
  for (const RowTotals& row : of_step_) out.add(row);
  return out;
}

void Reader::wait(Job& job) {
  if (threads_.empty()) {
    run(job, 0, job.size(), own_);
    if (!job.error_.empty()) throw std::runtime_error(job.error_);
    return;
  }
  std::unique_lock lock(queue_mutex_);
  job_done_.wait(lock, [&] { return job.done_ == job.size() || job.cancelled_; });
  if (job.cancelled_) throw std::logic_error("the job was cancelled");
  if (!job.error_.empty()) throw std::runtime_error(job.error_);
}

void Reader::cancel(Job& job) {
  if (!is_here()) return;
  std::unique_lock lock(queue_mutex_);
  job.cancelled_ = true;
  job_done_.wait(lock, [&] { return job.active_ == 0; });
  std::erase_if(queue_, [&](const std::shared_ptr<Job>& other) { return other.get() == &job; });
}

void Reader::run(Job& job, std::size_t first, std::size_t last, Bench& bench) {
  try {
    find_all(job, first, last, bench);
    for (std::size_t begin = 0; begin < bench.visits.size();) begin = visit_some(job, begin, bench);
  } catch (const std::exception& error) {
    const std::lock_guard lock(queue_mutex_);
    if (job.error_.empty()) job.error_ = error.what();
  }
  bench.visits.clear();
  bench.close();  // a thread that waits keeps no file open
}

// The rows from `begin` on, of as many shards as are open at once; where the next ones begin.
std::size_t Reader::visit_some(Job& job, std::size_t begin, Bench& bench) {
  const std::span<Visit> visits = bench.visits;
  const std::size_t rows = job.rows_.size();
  bench.close();
  std::size_t end = begin, shards = 0;
  // Their files and facts. Of a row of the step its totals are all, and its block is let go.
  Shard* shard = nullptr;
  for (const OpenFile* file = nullptr; end < visits.size(); ++end) {
    Visit& visit = visits[end];
    if (visit.found.shard != shard) {
      if (++shards > shards_at_once) break;
      shard = visit.found.shard;
      file = nullptr;
    }
    const std::size_t k = visit.found.k;
    explained(visit.found, [&] {
      if (file == nullptr && (k < rows || visit.block == nullptr)) {
        file = bench.files.emplace_back(open(*shard)).get();
        bench.scratch.file = file;
      }
      if (visit.block == nullptr) visit.block = block(*shard, visit.number, bench.scratch);
    });
    if (k < rows) {
      visit.file = file;
      visit.ids = visit.block->ids_offset + static_cast<std::int64_t>(visit.in_block) * options_.sequence_length * 4;
      visit.hash = &visit.block->ids_hashes[visit.in_block];
#ifdef __GNUC__
      __builtin_prefetch(visit.hash);
#endif
    } else {
      job.of_step_[k - rows] = visit.block->totals[visit.in_block];
      visit.block = nullptr;
    }
  }
  const auto next_row = [&](std::size_t k) {
    while (k < end && visits[k].block == nullptr) ++k;
    return k;
  };
  for (std::size_t k = next_row(begin); k < end;) {
    const std::size_t next = next_row(k + 1);
    const Visit* const ahead = next < end ? &visits[next] : nullptr;
    explained(visits[k].found, [&] { read_ids(job, visits[k], ahead, bench.scratch); });
    k = next;
  }
  return end;
}

void Reader::Bench::close() {
  scratch.file = nullptr;
  files.clear();
}

// Where the rows lie, in the order of files and places, and the blocks that are there already. Rows of padding, which
// lie nowhere, are made at once.
void Reader::find_all(Job& job, std::size_t first, std::size_t last, Bench& bench) {
  const std::size_t rows = job.rows_.size();
  std::vector<Wanted>& wanted = bench.wanted;
  wanted.clear();
  for (std::size_t k = first; k < last; ++k) {
    const Job::Row& row = k < rows ? job.rows_[k] : job.step_[k - rows];
    if (row.source != -1) {
      wanted.push_back({place_of(row), k});
    } else if (k < rows) {
      pad_row(job, k);
    }
  }
  std::ranges::sort(wanted, {}, &Wanted::place);
  bench.visits.clear();
  Shard* shard = nullptr;
  for (const Wanted& row : wanted) {
    if (shard == nullptr || row.place >= shard->end) shard = &shard_at(row.place);
    const std::int64_t in_shard = row.place - shard->begin, number = shard->block_of(in_shard);
    bench.visits.push_back({{shard, in_shard, row.k},
                            static_cast<std::size_t>(number),
                            static_cast<std::size_t>(in_shard - number * shard->source.batch_rows),
                            nullptr,
                            nullptr,
                            -1,
                            nullptr});
  }
  const std::lock_guard lock(cache_mutex_);
  for (Visit& visit : bench.visits) visit.block = kept_block(*visit.found.shard, visit.number);
}

RowOut Reader::columns_of(const Job& job, std::size_t k) const {
  const auto at = static_cast<std::int64_t>(k) * options_.sequence_length;
  const auto of = [&](auto* column) { return column == nullptr ? nullptr : column + at; };
  const BatchOut& out = job.out_;
  return {of(out.ids32),     of(out.ids),      of(out.labels),  of(out.targets),
          of(out.positions), of(out.segments), of(out.weights), of(out.roles)};
}

void Reader::pad_row(Job& job, std::size_t k) const {
  const RowOut out = columns_of(job, k);
  if (out.ids32) std::fill_n(out.ids32, options_.sequence_length, sources_.front().pad_id);
  if (out.ids) std::fill_n(out.ids, options_.sequence_length, sources_.front().pad_id);
  job.blocks_[k] = padding_;
  expand_row(options_.sequence_length, padding_->row(0), out);
}

// next: whose bytes are on their way from memory while this row is proved, or nullptr.
void Reader::read_ids(Job& job, Visit& visit, const Visit* next, Scratch& scratch) {
  const std::int64_t length = options_.sequence_length;
  Shard& shard = *visit.found.shard;
  const std::uint8_t* ahead = nullptr;
  if (next != nullptr && next->file->mapped != nullptr) ahead = next->file->mapped + next->ids;
  scratch.file = visit.file;
  const std::size_t k = visit.found.k;
  const RowOut out = columns_of(job, k);
  shard.file.read_row(visit.ids, length, *visit.hash, {out.ids32, out.ids}, scratch, ahead);
  if (more_than_ids(out)) expand_row(length, visit.block->row(visit.in_block), out);
  job.places_[k] = static_cast<std::int32_t>(visit.in_block);
  job.blocks_[k] = std::move(visit.block);
}

// Where a row stands among the rows of all sources. std::invalid_argument when there is no such row.
std::int64_t Reader::place_of(const Job::Row& row) const {
  const auto s = static_cast<std::size_t>(row.source);
  if (s >= sources_.size() || row.row < 0 || row.row >= starts_[s + 1] - starts_[s]) no_such_row(row);
  return starts_[s] + row.row;
}

// The shard that a place of that line is in.
Reader::Shard& Reader::shard_at(std::int64_t place) {
  const auto k = static_cast<std::size_t>(std::ranges::upper_bound(ends_, place) - ends_.begin());
  if (Shard* known = shards_[k].known.load(std::memory_order_acquire)) return *known;
  const std::lock_guard lock(open_mutex_);
  std::unique_ptr<Shard>& made = shards_[k].made;
  if (made == nullptr) {
    const auto s = static_cast<std::size_t>(std::ranges::upper_bound(first_shards_, k) - first_shards_.begin()) - 1;
    const std::size_t number = k - first_shards_[s];
    const SourceShards& from = sources_[s];
    made.reset(new Shard{from,
                         number,
                         ends_[k] - from.rows[number],
                         ends_[k],
                         {from.directory + "/" + from.names[number],
                          from.sizes[number],
                          {parse_hashes(from.regions[number]), parse_hashes(from.batches[number])},
                          options_.verify,
                          options_.io,
                          options_.random_access},
                         {},
                         {},
                         {},
                         {}});
    made->blocks.resize(made->n_blocks());
    made->used.resize(made->n_blocks());
    shards_[k].known.store(made.get(), std::memory_order_release);
  }
  return *made;
}

// What goes wrong while `call` reads the row of a place, said as an error of that row.
template <typename Call>
void Reader::explained(const Found& found, Call call) {
  try {
    call();
  } catch (const WrongBytes& wrong) {
    throw std::runtime_error(describe(*found.shard, found.row, wrong));
  } catch (const std::invalid_argument& wrong) {
    throw std::runtime_error(found.shard->file.path() + ": " + wrong.what() + "; needed for row " +
                             std::to_string(found.row));
  } catch (const std::bad_alloc&) {
    throw std::runtime_error(found.shard->file.path() + ": there is not enough memory to read row " +
                             std::to_string(found.row));
  }
}

std::shared_ptr<const OpenFile> Reader::open(Shard& shard) {
  bool now = false;
  std::shared_ptr<const OpenFile> file = shard.file.open(now);
  if (!now) return file;
  const std::lock_guard lock(open_mutex_);
  opened_.push_back(&shard);
  if (static_cast<std::int64_t>(opened_.size()) > options_.open_files) {
    opened_.front()->file.close();
    opened_.pop_front();
  }
  return file;
}

void Reader::close_file(std::size_t source, std::size_t number) {
  const std::lock_guard lock(open_mutex_);
  if (source >= sources_.size() || number >= sources_[source].names.size()) throw std::out_of_range("no such shard");
  const std::unique_ptr<Shard>& shard = shards_[first_shards_[source] + number].made;
  if (shard == nullptr) return;
  shard->file.close();
  std::erase(opened_, shard.get());
}

// A block that is in the cache, or nullptr; with cache_mutex_.
const std::shared_ptr<const Block>& Reader::kept_block(Shard& shard, std::size_t number) {
  shard.used[number] = 1;
  return shard.blocks[number];
}

// One that was not used since the hand came by before; with cache_mutex_, where there is any. (F. J. Corbató, "A paging
// experiment with the Multics system", 1968: nearly the least recently used, and looking costs a byte.)
void Reader::drop_block() {
  for (;; ++hand_) {
    if (hand_ >= cached_.size()) hand_ = 0;
    const Cached at = cached_[hand_];
    if (std::exchange(at.shard->used[at.block], 0) != 0) continue;
    cached_bytes_ -= at.shard->blocks[at.block]->bytes();
    at.shard->blocks[at.block] = nullptr;
    cached_[hand_] = cached_.back();
    cached_.pop_back();
    return;
  }
}

std::shared_ptr<const Block> Reader::block(Shard& shard, std::size_t number, Scratch& scratch) {
  const std::lock_guard decoding(shard.mutex);
  {
    const std::lock_guard lock(cache_mutex_);
    if (auto found = kept_block(shard, number)) return found;
  }
  std::shared_ptr<const Block> made = decode(shard, number, scratch);
  const std::lock_guard lock(cache_mutex_);
  cached_bytes_ += made->bytes();
  while (cached_bytes_ > options_.cache_bytes && !cached_.empty()) drop_block();
  cached_.push_back({&shard, number});
  shard.blocks[number] = made;
  return made;
}

std::shared_ptr<const Block> Reader::decode(Shard& shard, std::size_t number, Scratch& scratch) {
  if (shard.places.empty()) shard.places = shard.file.read_footer(scratch);
  const std::int64_t step = shard.source.batch_rows, first = static_cast<std::int64_t>(number) * step;
  try {
    const ShardFile::Facts facts = shard.file.read_facts(shard.places, number, scratch);
    ++decoded_;
    return std::make_shared<const Block>(decode_block(facts.bytes, facts.layout, shard.places[number],
                                                      std::min(step, shard.rows() - first), options_.sequence_length,
                                                      decision_));
  } catch (const std::invalid_argument& wrong) {
    throw std::invalid_argument("batch that begins with row " + std::to_string(first) + ": " + wrong.what());
  }
}

std::vector<std::int32_t> Reader::cu_seqlens(const Job& job) const {
  const auto length = static_cast<std::int32_t>(options_.sequence_length);
  std::vector<std::int32_t> out{0};
  out.reserve(8 * job.blocks_.size());
  std::int32_t base = 0;
  for (std::size_t k = 0; k < job.blocks_.size(); ++k) {
    for (const std::int32_t end : job.blocks_[k]->row(static_cast<std::size_t>(job.places_[k])).document_ends) {
      out.push_back(base + end);
    }
    base += length;
    if (out.back() < base) out.push_back(base);  // the padding
  }
  return out;
}

Segments Reader::segments(const Job& job) const {
  Segments out;
  constexpr float none = std::numeric_limits<float>::quiet_NaN();
  const auto length = static_cast<std::int32_t>(options_.sequence_length);
  for (std::size_t k = 0; k < job.blocks_.size(); ++k) {
    const Block& block = *job.blocks_[k];
    const auto r = static_cast<std::size_t>(job.places_[k]);
    std::int32_t number = 1, end = 0;
    for (auto d = static_cast<std::size_t>(block.document_offsets[r]);
         d < static_cast<std::size_t>(block.document_offsets[r + 1]); ++d) {
      end = block.document_ends[d];
      out.numbers.push_back(number++);
      out.branches.push_back(block.branches[d]);
      out.pairs.push_back(block.pairs.empty() ? -1 : block.pairs[d]);
      out.parents.push_back(block.parents.empty() ? 0 : block.parents[d]);
      out.scores.push_back(block.scores.empty() ? none : block.scores[d]);
      out.desirable.push_back(block.desirable.empty() ? std::int8_t{-1} : block.desirable[d]);
    }
    if (end < length) {  // the padding
      out.numbers.push_back(0);
      out.branches.push_back(0);
      out.pairs.push_back(-1);
      out.parents.push_back(0);
      out.scores.push_back(none);
      out.desirable.push_back(-1);
    }
  }
  return out;
}

BatchRuns Reader::runs(const Job& job) const {
  BatchRuns out;
  std::size_t count = 0;
  for (std::size_t k = 0; k < job.blocks_.size(); ++k) {
    count += job.blocks_[k]->row(static_cast<std::size_t>(job.places_[k])).runs.size();
  }
  out.ends.reserve(count);
  out.roles.reserve(count);
  out.parts.reserve(count);
  out.loss.reserve(count);
  out.weights.reserve(count);
  for (std::size_t k = 0; k < job.blocks_.size(); ++k) {
    const std::int32_t base = static_cast<std::int32_t>(static_cast<std::int64_t>(k) * options_.sequence_length);
    for (const Run& run : job.blocks_[k]->row(static_cast<std::size_t>(job.places_[k])).runs) {
      out.ends.push_back(base + run.end);
      out.roles.push_back(run.role);
      out.parts.push_back(run.part);
      out.loss.push_back(run.loss);
      out.weights.push_back(run.weight);
    }
  }
  return out;
}

std::string Reader::describe(Shard& shard, std::int64_t row, const WrongBytes& wrong) const {
  const std::string& path = shard.file.path();
  if (wrong.region < 0) return path + ": " + wrong.problem + " (needed for row " + std::to_string(row) + ")";
  const std::int64_t begin = wrong.region * region_size, end = std::min(begin + region_size, shard.file.size());
  std::int64_t first = 0, last = shard.rows() - 1;  // as long as the footer is not known
  const std::lock_guard lock(shard.mutex);
  if (!shard.places.empty()) {
    first = shard.rows();
    last = -1;
    for (std::size_t k = 0; k < shard.places.size(); ++k) {
      const BatchPlace& place = shard.places[k];
      if (place.offset >= end || place.offset + place.metadata + place.body <= begin) continue;
      const std::int64_t step = shard.source.batch_rows, from = static_cast<std::int64_t>(k) * step;
      first = std::min(first, from);
      last = std::max(last, std::min(from + step, shard.rows()) - 1);
    }
  }
  const std::string rows =
      last < first ? "no rows" : "rows " + std::to_string(first) + " to " + std::to_string(last) + " of the shard";
  return path + ": region " + std::to_string(wrong.region) + " (bytes " + std::to_string(begin) + " to " +
         std::to_string(end - 1) + ", " + rows + "): " + wrong.problem + "; needed for row " + std::to_string(row);
}

}  // namespace maskpipe
