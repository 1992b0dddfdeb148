// The bytes of one shard, proved before they are used (F9).
//
//   manifest ─ regions ─▶ footer            where the record batches are
//            └ batches ─▶ facts of a batch  all of it but its ids; among them
//                           └ ids_xxh3 ─▶   the ids of a row
//
// So every byte is covered by one hash of its own, which is compared at every read with the bytes that are used, and no
// read takes more than what is wanted. Regions as a whole are read for the footer, and to say where a byte is wrong.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "copy_ids.h"
#include "ipc.h"

namespace maskpipe {

enum class Verify { every_read, off };
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
  std::vector<std::uint8_t> bytes;
  const OpenFile* file = nullptr;  // what is being read; somebody else keeps it
};

// Bytes are not what the manifest says.
struct WrongBytes {
  std::int64_t region;  // -1: the file as a whole
  std::string problem;
};

class ShardFile {
 public:
  // Of its regions and of its record batches, as in the manifest.
  struct Hashes {
    std::vector<std::uint64_t> regions, batches;
  };

  ShardFile(std::string path, std::int64_t size, Hashes hashes, Verify verify, Io io, bool random_access);
  ShardFile(const ShardFile&) = delete;
  ShardFile& operator=(const ShardFile&) = delete;

  // The file; opens it, without following a link, unless it is open: then `now` is false. Throws WrongBytes unless it
  // is a regular file of the size given.
  std::shared_ptr<const OpenFile> open(bool& now);
  // Closes it once nobody reads.
  void close();

  // What follows is for any number of threads, each with its scratch, whose file this is. Bytes are copies, valid until
  // the scratch is used again. WrongBytes when they are not what the manifest says; std::invalid_argument when they
  // are, and still nothing that the format allows.

  // The record batches that the footer lists, as many as there are hashes of them.
  std::vector<BatchPlace> read_footer(Scratch& scratch);

  // A record batch without its ids.
  struct Facts {
    BatchLayout layout;
    Bytes bytes;  // of the body, from where the ids end
  };
  Facts read_facts(const std::vector<BatchPlace>& places, std::size_t number, Scratch& scratch);

  // The `count` ids at `offset`, copied to `out`, of which nothing may be used when it throws. hash: their xxh3_64.
  // ahead: of the row that comes next, in memory, or nullptr: a hint.
  void read_row(std::int64_t offset, std::int64_t count, std::uint64_t hash, const IdsOut& out, Scratch& scratch,
                const std::uint8_t* ahead);

  std::int64_t size() const { return size_; }
  const std::string& path() const { return path_; }

 private:
  bool proves() const { return verify_ == Verify::every_read; }
  void prove_regions(std::int64_t begin, std::int64_t end, const OpenFile& file) const;
  // Whole regions, which were read from `begin` on.
  void prove_regions_in(Bytes bytes, std::int64_t begin) const;
  [[noreturn]] void blame(std::int64_t begin, std::int64_t end, const OpenFile& file) const;

  std::string path_;
  std::int64_t size_;
  Hashes hashes_;
  Verify verify_;
  Io io_;
  bool random_access_;
  std::mutex mutex_;  // of file_
  std::shared_ptr<const OpenFile> file_;
};

}  // namespace maskpipe
