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
constexpr const char* wrong_bytes = "its bytes are not what the manifest says";

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

void append(const OpenFile& file, std::vector<std::uint8_t>& out, std::int64_t begin, std::int64_t end) {
  const std::size_t size = out.size();
  out.resize(size + static_cast<std::size_t>(end - begin));
  fetch(file, out.data() + size, begin, end - begin);
}

}  // namespace

OpenFile::~OpenFile() {
  if (mapped != nullptr) ::munmap(const_cast<std::uint8_t*>(mapped), static_cast<std::size_t>(size));
  if (descriptor >= 0) ::close(descriptor);
}

ShardFile::ShardFile(std::string path, std::int64_t size, Hashes hashes, Verify verify, Io io, bool random_access)
    : path_(std::move(path)),
      size_(size),
      hashes_(std::move(hashes)),
      verify_(verify),
      io_(io),
      random_access_(random_access) {}

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

// The regions that [begin, end) touches, from the file.
void ShardFile::prove_regions(std::int64_t begin, std::int64_t end, const OpenFile& file) const {
  std::vector<std::uint8_t> piece(piece_size);
  for (std::int64_t region = begin / region_size; region * region_size < end; ++region) {
    const std::int64_t stop = std::min((region + 1) * region_size, size_);
    Xxh3 hash;
    for (std::int64_t at = region * region_size; at < stop; at += piece_size) {
      const std::int64_t size = std::min(piece_size, stop - at);
      fetch(file, piece.data(), at, size);
      hash.add(piece.data(), static_cast<std::size_t>(size));
    }
    if (hash.digest() != hashes_.regions[static_cast<std::size_t>(region)]) throw WrongBytes{region, wrong_bytes};
  }
}

void ShardFile::prove_regions_in(Bytes bytes, std::int64_t begin) const {
  while (!bytes.empty()) {
    const std::int64_t region = begin / region_size;
    const std::size_t size = std::min<std::size_t>(region_size, bytes.size());
    if (xxh3(bytes.data(), size) != hashes_.regions[static_cast<std::size_t>(region)]) {
      throw WrongBytes{region, wrong_bytes};
    }
    bytes = bytes.subspan(size);
    begin += region_size;
  }
}

// [begin, end) do not have their hash: which region it is.
void ShardFile::blame(std::int64_t begin, std::int64_t end, const OpenFile& file) const {
  prove_regions(begin, end, file);
  throw WrongBytes{begin / region_size, "bytes " + std::to_string(begin) + " to " + std::to_string(end - 1) +
                                            " are not what their own hash says, though the region is what the "
                                            "manifest says: they changed while they were read, or were written wrong"};
}

std::vector<BatchPlace> ShardFile::read_footer(Scratch& scratch) {
  std::vector<std::uint8_t>& bytes = scratch.bytes;
  if (size_ < 2 * tail_size) throw std::invalid_argument("is no Arrow IPC file: it is too short");
  // Whole regions to the end of the file; more of them as long as the footer begins before.
  for (std::int64_t begin = (size_ - tail_size) / region_size * region_size;;) {
    bytes.clear();
    append(*scratch.file, bytes, begin, size_);
    if (proves()) prove_regions_in(bytes, begin);
    const Bytes all(bytes);
    const std::int64_t length = footer_size(all.last(tail_size), size_), footer = size_ - tail_size - length;
    if (footer < begin) {
      begin = footer / region_size * region_size;
      continue;
    }
    std::vector<BatchPlace> places = maskpipe::read_footer(
        all.subspan(static_cast<std::size_t>(footer - begin), static_cast<std::size_t>(length)), footer);
    if (places.size() != hashes_.batches.size()) {
      throw std::invalid_argument("has " + std::to_string(places.size()) + " record batches, expected " +
                                  std::to_string(hashes_.batches.size()));
    }
    if (proves() && places.back().end() < begin) prove_regions(places.back().end(), begin, *scratch.file);
    return places;
  }
}

ShardFile::Facts ShardFile::read_facts(const std::vector<BatchPlace>& places, std::size_t number, Scratch& scratch) {
  std::vector<std::uint8_t>& bytes = scratch.bytes;
  const OpenFile& file = *scratch.file;
  const BatchPlace& place = places[number];
  const std::int64_t begin = number == 0 ? 0 : places[number - 1].end(), body = place.offset + place.metadata;
  bytes.clear();
  append(file, bytes, begin, body);
  Facts out;
  Buffer ids;
  try {
    out.layout = read_batch_layout(Bytes(bytes).subspan(static_cast<std::size_t>(place.offset - begin)), place.body);
    ids = ids_place(out.layout);
  } catch (const std::invalid_argument&) {
    if (proves()) {
      const std::int64_t first = begin / region_size * region_size;
      std::vector<std::uint8_t> whole;
      append(file, whole, first, std::min((body + region_size - 1) / region_size * region_size, size_));
      prove_regions_in(whole, first);
      if (!std::ranges::equal(bytes, Bytes(whole).subspan(static_cast<std::size_t>(begin - first), bytes.size()))) {
        throw WrongBytes{begin / region_size, "bytes " + std::to_string(begin) + " to " + std::to_string(body - 1) +
                                                  " changed while they were read"};
      }
    }
    throw;
  }
  append(file, bytes, body, body + ids.offset);
  const std::size_t after = bytes.size();
  append(file, bytes, body + ids.offset + ids.length, place.end());
  if (proves() && xxh3(bytes.data(), bytes.size()) != hashes_.batches[number]) blame(begin, place.end(), file);
  out.bytes = Bytes(bytes).subspan(after);
  return out;
}

void ShardFile::read_row(std::int64_t offset, std::int64_t count, std::uint64_t hash, const IdsOut& out,
                         Scratch& scratch, const std::uint8_t* ahead) {
  const OpenFile& file = *scratch.file;
  const std::int64_t length = 4 * count;
  const std::uint8_t* bytes = file.mapped;
  if (bytes != nullptr) {
    bytes += offset;
  } else {
    if (scratch.bytes.size() < static_cast<std::size_t>(length)) scratch.bytes.resize(static_cast<std::size_t>(length));
    pread_exactly(file, scratch.bytes.data(), offset, length);
    bytes = scratch.bytes.data();
  }
  if (!proves()) return copy_ids(bytes, count, out, ahead);
  if (copy_and_hash_ids(bytes, count, out, ahead) != hash) blame(offset, offset + length, file);
}

}  // namespace maskpipe
