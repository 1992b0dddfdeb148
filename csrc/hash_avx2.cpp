// Compiled for AVX2 whatever the rest is compiled for; hash.cpp asks the processor before it calls this.
#if defined(__x86_64__) && defined(__GNUC__)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

#include <immintrin.h>

#define XXH_INLINE_ALL
#define XXH_VECTOR 2  // XXH_AVX2
#include "hash.h"
#include "vendor/xxhash.h"

namespace maskpipe {

std::uint64_t xxh3_avx2(const void* bytes, std::size_t size) { return XXH3_64bits(bytes, size); }

void xxh3_add_avx2(void* state, const void* bytes, std::size_t size) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state), bytes, size);
}

}  // namespace maskpipe

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
