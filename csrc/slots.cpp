#include "slots.h"

#include <cstdlib>
#include <new>

namespace maskpipe {

Pool::~Pool() {
  for (std::uint8_t* memory : free_) std::free(memory);
}

Slot Pool::take() {
  std::uint8_t* memory = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      memory = free_.back();
      free_.pop_back();
    }
  }
  constexpr std::size_t line = 64;
  if (memory == nullptr) {
    memory = static_cast<std::uint8_t*>(std::aligned_alloc(line, (size_ + line - 1) / line * line));
  }
  if (memory == nullptr) throw std::bad_alloc();
  const auto give_back = [pool = shared_from_this()](std::uint8_t* piece) {
    const std::lock_guard lock(pool->mutex_);
    pool->free_.push_back(piece);
  };
  return {memory, std::shared_ptr<std::uint8_t>(memory, give_back)};
}

}  // namespace maskpipe
