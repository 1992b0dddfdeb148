// The bytes of one shard, proved before they are used.
//
// The first time a region (1 MiB) is touched it is read whole and compared with the manifest's hash. From the proved
// bytes a 32-bit seal per page (1 KiB) is kept, and every later read compares the pages it uses with their seals: so
// what changes after the first look is found too, without reading a region again. 4 KiB of seals per MiB touched. A row
// gets a seal of its own, of 64 bits, when it was read so; from then on no more than its own bytes are read.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "ipc.h"
#include "seal.h"

namespace maskpipe {

enum class Verify { every_read, first_touch, off };
enum class Io { pread, mmap };

inline constexpr std::int64_t region_size = 1 << 20;  // F9

// An open file; closed with its last owner.
struct OpenFile {
  int descriptor = -1;
  const std::uint8_t* mapped = nullptr;  // with Io::mmap
  std::int64_t size = 0;
  ~OpenFile();
};

// Memory of one thread for reading.
struct Scratch {
  std::vector<std::uint8_t> piece, bytes;
  const OpenFile* file = nullptr;  // what is being read; somebody else keeps it
};

// Bytes are not what the manifest says.
struct WrongBytes {
  std::int64_t region;  // -1: the file as a whole
  std::string problem;
};

class ShardFile {
 public:
  ShardFile(std::string path, std::int64_t size, std::int64_t rows, std::vector<std::uint64_t> region_hashes,
            Verify verify, Io io, bool random_access);
  ~ShardFile();
  ShardFile(const ShardFile&) = delete;
  ShardFile& operator=(const ShardFile&) = delete;

  // The file; opens it, without following a link, unless it is open: then `now` is false. Throws WrongBytes unless it
  // is a regular file of the size given.
  std::shared_ptr<const OpenFile> open(bool& now);
  // Closes it once nobody reads. What was proved stays known.
  void close();

  // `length` bytes from `offset`, both inside the file's size, proved as `verify` says. Valid until the scratch is used
  // again. Throws WrongBytes. Any number of threads, each with its scratch, whose file this is.
  const std::uint8_t* read(std::int64_t offset, std::int64_t length, Scratch& scratch);

  // The same of the `count` ids of a row, always at the same place; copied to `out`, of which nothing may be used when
  // it throws. ahead: of the row that comes next, in memory, or nullptr: a hint.
  void read_row(std::int64_t row, std::int64_t offset, std::int64_t count, const IdsOut& out, Scratch& scratch,
                const std::uint8_t* ahead);

  // A hint that a row will be read soon.
  void expect_row(std::int64_t row) const {
#ifdef __GNUC__
    if (!row_seals_.empty()) __builtin_prefetch(&row_seals_[static_cast<std::size_t>(row)]);
#endif
  }

  std::int64_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  struct Seals {
    std::uint32_t pages[region_size / page_size];
  };

  // Proves a region and keeps its seals. What lies in [from, to) of the file goes to `out`, unless it is nullptr; it
  // may be used only when this returns.
  void prove_region(std::int64_t region, Scratch& scratch, std::int64_t from, std::int64_t to, std::uint8_t* out);

  std::string path_;
  std::int64_t size_;
  std::vector<std::uint64_t> hashes_;
  std::vector<std::atomic<Seals*>> seals_;             // one per region; nullptr until it was proved
  std::vector<std::atomic<std::uint64_t>> row_seals_;  // one per row; 0 until it was read
  Verify verify_;
  Io io_;
  bool random_access_;
  std::mutex mutex_;  // of file_
  std::shared_ptr<const OpenFile> file_;
};

}  // namespace maskpipe
