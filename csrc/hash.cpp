#include "hash.h"

#include <new>

#define XXH_INLINE_ALL
#include "vendor/xxhash.h"

namespace maskpipe {

#if defined(__x86_64__) && defined(__GNUC__)
#define MASKPIPE_WIDE_HASH 1
namespace {
bool wide() {
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  return has_avx2;
}
}  // namespace
#endif

std::uint64_t xxh3(const void* bytes, std::size_t size) {
#ifdef MASKPIPE_WIDE_HASH
  if (wide()) return xxh3_avx2(bytes, size);
#endif
  return XXH3_64bits(bytes, size);
}

Xxh3::Xxh3() {
  static_assert(sizeof(state_) >= sizeof(XXH3_state_t) && alignof(XXH3_state_t) <= 64);
  XXH3_64bits_reset(new (state_) XXH3_state_t);
}

void Xxh3::add(const void* bytes, std::size_t size) {
#ifdef MASKPIPE_WIDE_HASH
  if (wide()) return xxh3_add_avx2(state_, bytes, size);
#endif
  XXH3_64bits_update(reinterpret_cast<XXH3_state_t*>(state_), bytes, size);
}

std::uint64_t Xxh3::digest() const { return XXH3_64bits_digest(reinterpret_cast<const XXH3_state_t*>(state_)); }

}  // namespace maskpipe
