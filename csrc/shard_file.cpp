#include "shard_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>

#include "hash.h"

namespace maskpipe {
namespace {

constexpr std::int64_t piece_size = 64 << 10;  // of a region, while it is proved

std::int64_t length_of(std::int64_t file_size, std::int64_t unit, std::int64_t number) {
  return std::min(unit, file_size - number * unit);
}

void pread_exactly(const OpenFile& file, std::uint8_t* out, std::int64_t offset, std::int64_t length) {
  std::int64_t done = 0;
  while (done < length) {
    const std::int64_t at = offset + done;
    const ssize_t n = ::pread(file.descriptor, out + done, static_cast<std::size_t>(length - done), at);
    if (n < 0 && errno == EINTR) continue;
    const auto fail = [&](const std::string& problem) { throw WrongBytes{at / region_size, problem}; };
    if (n < 0) fail("cannot be read at byte " + std::to_string(at) + ": " + std::strerror(errno));
    if (n == 0) fail("ends at byte " + std::to_string(at) + ", the manifest says " + std::to_string(file.size));
    done += n;
  }
}

// Into memory that nobody else writes to.
void fetch(const OpenFile& file, std::uint8_t* out, std::int64_t offset, std::int64_t length) {
  if (file.mapped == nullptr) return pread_exactly(file, out, offset, length);
  std::memcpy(out, file.mapped + offset, static_cast<std::size_t>(length));
}

void grow(std::vector<std::uint8_t>& memory, std::int64_t size) {
  if (static_cast<std::int64_t>(memory.size()) < size) memory.resize(static_cast<std::size_t>(size));
}

}  // namespace

OpenFile::~OpenFile() {
  if (mapped != nullptr) ::munmap(const_cast<std::uint8_t*>(mapped), static_cast<std::size_t>(size));
  if (descriptor >= 0) ::close(descriptor);
}

ShardFile::ShardFile(std::string path, std::int64_t size, std::int64_t rows, std::vector<std::uint64_t> region_hashes,
                     Verify verify, Io io, bool random_access)
    : path_(std::move(path)),
      size_(size),
      hashes_(std::move(region_hashes)),
      seals_(hashes_.size()),
      row_seals_(verify == Verify::every_read ? static_cast<std::size_t>(rows) : 0),
      verify_(verify),
      io_(io),
      random_access_(random_access) {}

ShardFile::~ShardFile() {
  for (auto& seals : seals_) delete seals.load();
}

std::shared_ptr<const OpenFile> ShardFile::open(bool& now) {
  const std::lock_guard lock(mutex_);
  now = file_ == nullptr;
  if (!now) return file_;
  const auto fail = [](const std::string& problem) { throw WrongBytes{-1, problem}; };
  auto file = std::make_shared<OpenFile>();
  file->descriptor = ::open(path_.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (file->descriptor < 0) fail(std::string("cannot be opened: ") + std::strerror(errno));
  struct stat status;
  if (::fstat(file->descriptor, &status) != 0) fail(std::string("cannot be read: ") + std::strerror(errno));
  if (!S_ISREG(status.st_mode)) fail("is no regular file");
  if (status.st_size != size_) {
    fail("has " + std::to_string(status.st_size) + " bytes, the manifest says " + std::to_string(size_));
  }
  file->size = size_;
  if (io_ == Io::mmap) {
    const auto length = static_cast<std::size_t>(size_);
    void* memory = ::mmap(nullptr, length, PROT_READ, MAP_SHARED, file->descriptor, 0);
    if (memory == MAP_FAILED) fail(std::string("cannot be mapped: ") + std::strerror(errno));
    file->mapped = static_cast<const std::uint8_t*>(memory);
    if (random_access_) ::madvise(memory, length, MADV_RANDOM);
  }
#ifdef POSIX_FADV_RANDOM
  if (random_access_) ::posix_fadvise(file->descriptor, 0, 0, POSIX_FADV_RANDOM);  // a row is all that is wanted
#endif
  return file_ = std::move(file);
}

void ShardFile::close() {
  const std::lock_guard lock(mutex_);
  file_ = nullptr;
}

void ShardFile::prove_region(std::int64_t region, Scratch& scratch, std::int64_t from, std::int64_t to,
                             std::uint8_t* out) {
  const std::int64_t begin = region * region_size, length = length_of(size_, region_size, region);
  auto seals = std::make_unique<Seals>();
  grow(scratch.piece, piece_size);
  const std::uint8_t* const bytes = scratch.piece.data();
  Xxh3 hash;
  // In pieces that the caches hold, so that every byte comes from memory once.
  for (std::int64_t done = 0; done < length; done += piece_size) {
    const std::int64_t at = begin + done, size = std::min(piece_size, length - done);
    fetch(*scratch.file, scratch.piece.data(), at, size);
    hash.add(bytes, static_cast<std::size_t>(size));
    if (verify_ == Verify::every_read) {
      for (std::int64_t page = 0; page * page_size < size; ++page) {
        seals->pages[done / page_size + page] = seal(bytes + page * page_size, length_of(size, page_size, page));
      }
    }
    const std::int64_t first = std::max(from, at), last = std::min(to, at + size);
    if (out != nullptr && first < last) {
      std::memcpy(out + (first - from), bytes + (first - at), static_cast<std::size_t>(last - first));
    }
  }
  if (hash.digest() != hashes_[static_cast<std::size_t>(region)]) {
    throw WrongBytes{region, "its bytes are not what the manifest says"};
  }
  Seals* expected = nullptr;
  if (seals_[static_cast<std::size_t>(region)].compare_exchange_strong(expected, seals.get())) (void)seals.release();
}

void ShardFile::read_row(std::int64_t row, std::int64_t offset, std::int64_t count, const IdsOut& out, Scratch& scratch,
                         const std::uint8_t* ahead) {
  const std::int64_t length = 4 * count;
  if (verify_ != Verify::every_read) return copy_ids(read(offset, length, scratch), count, out, ahead);
  std::atomic<std::uint64_t>& known = row_seals_[static_cast<std::size_t>(row)];
  const std::uint64_t expected = known.load(std::memory_order_relaxed);
  if (expected == 0) {
    return known.store(seal_ids(read(offset, length, scratch), count, out, ahead), std::memory_order_relaxed);
  }
  const std::uint8_t* bytes = scratch.file->mapped;
  if (bytes == nullptr) {
    grow(scratch.bytes, length);
    pread_exactly(*scratch.file, scratch.bytes.data(), offset, length);
    bytes = scratch.bytes.data();
  } else {
    bytes += offset;
  }
  if (seal_ids(bytes, count, out, ahead) == expected) return;
  // Read again with its pages, which say where it is wrong.
  if (seal_ids(read(offset, length, scratch), count, out, nullptr) != expected) {
    throw WrongBytes{offset / region_size,
                     "its bytes changed while it was in use (a row from byte " + std::to_string(offset) + " on)"};
  }
}

const std::uint8_t* ShardFile::read(std::int64_t offset, std::int64_t length, Scratch& scratch) {
  const OpenFile& file = *scratch.file;
  const bool in_place = file.mapped != nullptr && verify_ != Verify::every_read;
  if (verify_ == Verify::off) {
    if (in_place) return file.mapped + offset;
    grow(scratch.bytes, length);
    pread_exactly(file, scratch.bytes.data(), offset, length);
    return scratch.bytes.data();
  }
  // Whole pages from the first to the last that is touched, so that they can be compared with their seals; of a mapping
  // a copy, so that what is compared is what is used.
  const std::int64_t first_page = offset / page_size;
  const std::int64_t begin = first_page * page_size;
  const std::int64_t end = std::min(size_, (offset + length + page_size - 1) / page_size * page_size);
  if (!in_place) grow(scratch.bytes, end - begin);
  std::uint8_t* const bytes = in_place ? nullptr : scratch.bytes.data();
  for (std::int64_t at = begin; at < end;) {
    const std::int64_t region = at / region_size;
    const std::int64_t stop = std::min(end, (region + 1) * region_size);
    const Seals* seals = seals_[static_cast<std::size_t>(region)].load(std::memory_order_acquire);
    if (seals == nullptr) {
      prove_region(region, scratch, at, stop, in_place ? nullptr : bytes + (at - begin));
    } else if (!in_place) {
      fetch(file, bytes + (at - begin), at, stop - at);
      for (std::int64_t page = at / page_size; verify_ == Verify::every_read && page * page_size < stop; ++page) {
        const std::int64_t of_page = length_of(size_, page_size, page);
        if (seal(bytes + (page * page_size - begin), of_page) != seals->pages[page % (region_size / page_size)]) {
          throw WrongBytes{region, "its bytes changed while it was in use (byte " + std::to_string(page * page_size) +
                                       " or one of the " + std::to_string(of_page - 1) + " after it)"};
        }
      }
    }
    at = stop;
  }
  return (in_place ? file.mapped + begin : bytes) + (offset - begin);
}

}  // namespace maskpipe
