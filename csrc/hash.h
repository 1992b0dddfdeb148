// xxh3_64, the hash of regions (F9), with the widest registers that the processor has.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maskpipe {

std::uint64_t xxh3(const void* bytes, std::size_t size);

// The same of bytes that come in pieces.
class Xxh3 {
 public:
  Xxh3();
  void add(const void* bytes, std::size_t size);
  std::uint64_t digest() const;

 private:
  alignas(64) unsigned char state_[640];
};

// For processors with AVX2; only where xxh3 found it.
std::uint64_t xxh3_avx2(const void* bytes, std::size_t size);
void xxh3_add_avx2(void* state, const void* bytes, std::size_t size);

}  // namespace maskpipe
