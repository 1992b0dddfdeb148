// Memory that batches are read into: pieces of one size, used again when nothing refers to them any more.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace maskpipe {

// A piece of memory, which its owner keeps.
struct Slot {
  std::uint8_t* memory = nullptr;
  std::shared_ptr<void> owner;
};

// Pieces of plain memory, aligned to 64 bytes. A piece comes back when the last owner of its slot goes.
class Pool : public std::enable_shared_from_this<Pool> {
 public:
  explicit Pool(std::size_t size) : size_(size) {}
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  // The piece that came back last, which caches still know, or a new one. std::bad_alloc.
  Slot take();
  std::size_t size() const { return size_; }

 private:
  std::size_t size_;
  std::mutex mutex_;
  std::vector<std::uint8_t*> free_;
};

}  // namespace maskpipe
