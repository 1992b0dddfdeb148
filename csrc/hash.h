// xxh3_64, the hash of regions (F9), with the widest registers that the processor has.
#pragma once

#include <cstddef>
#include <cstdint>

namespace maskpipe {

std::uint64_t xxh3(const void* bytes, std::size_t size);

// The same for processors with AVX2; only where xxh3 found it.
std::uint64_t xxh3_avx2(const void* bytes, std::size_t size);

}  // namespace maskpipe
