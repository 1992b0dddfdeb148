#include "hash.h"

#define XXH_INLINE_ALL
#include "vendor/xxhash.h"

namespace maskpipe {

std::uint64_t xxh3(const void* bytes, std::size_t size) {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool wide = __builtin_cpu_supports("avx2");
  if (wide) return xxh3_avx2(bytes, size);
#endif
  return XXH3_64bits(bytes, size);
}

}  // namespace maskpipe
