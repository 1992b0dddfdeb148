#include "seal.h"

#include "hash.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define MASKPIPE_AVX2 __attribute__((target("avx2")))
#endif

namespace maskpipe {
namespace {

std::uint32_t folded(std::uint64_t hash) { return static_cast<std::uint32_t>(hash ^ hash >> 32); }

#ifdef MASKPIPE_AVX2

// Odd words without structure: the first constants of SHA-512, made odd.
alignas(64) constexpr std::uint64_t words[] = {
    0x428a2f98d728ae23, 0x7137449123ef65cd, 0xb5c0fbcfec4d3b2f, 0xe9b5dba58189dbbd, 0x3956c25bf348b539,
    0x59f111f1b605d019, 0x923f82a4af194f9b, 0xab1c5ed5da6d8119, 0xd807aa98a3030243, 0x12835b0145706fbf,
    0x243185be4ee4b28d, 0x550c7dc3d5ffb4e3, 0x72be5d74f27b896f, 0x80deb1fe3b1696b1, 0x9bdc06a725c71235,
    0xc19bf174cf692695, 0xe49b69c19ef14ad3, 0xefbe4786384f25e3, 0x0fc19dc68b8cd5b5, 0x240ca1cc77ac9c65,
    0x2de92c6f592b0275, 0x4a7484aa6ea6e483, 0x5cb0a9dcbd41fbd5, 0x76f988da831153b5,
};

// Σ (low half ^ key) * (high half ^ key) per lane of 64 bits, and the lane itself added to its neighbour, as XXH3 does
// between two scrambles: the keys move on by one word per 64 bytes.
MASKPIPE_AVX2 std::uint32_t seal_page(const std::uint8_t* bytes, const std::uint8_t* ahead) {
  __m256i sums[2] = {_mm256_set1_epi64x(static_cast<long long>(words[22])),
                     _mm256_set1_epi64x(static_cast<long long>(words[23]))};
  for (int line = 0; line < static_cast<int>(page_size / 64); ++line) {
    __builtin_prefetch(ahead + 64 * line);
    for (int half = 0; half < 2; ++half) {
      const auto in = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 64 * line + 32 * half));
      const auto key = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + line / 2 + 4 * half));
      const __m256i keyed = _mm256_xor_si256(in, line % 2 ? _mm256_slli_epi64(key, 1) : key);
      const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
      sums[half] = _mm256_add_epi64(sums[half], _mm256_add_epi64(product, _mm256_shuffle_epi32(in, 0x4e)));
    }
  }
  alignas(32) std::uint64_t lanes[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums[0]);
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes + 4), sums[1]);
  std::uint64_t out = 0;
  for (int lane = 0; lane < 8; ++lane) out += (lanes[lane] ^ lanes[lane] >> 37) * words[lane + 8];
  return folded(out * words[0]);
}

#endif

}  // namespace

std::uint32_t seal(const std::uint8_t* bytes, std::int64_t length, [[maybe_unused]] const std::uint8_t* ahead) {
#ifdef MASKPIPE_AVX2
  static const bool wide = __builtin_cpu_supports("avx2");
  if (wide && length == page_size) return seal_page(bytes, ahead == nullptr ? bytes + page_size : ahead);
#endif
  return folded(xxh3(bytes, static_cast<std::size_t>(length)));
}

}  // namespace maskpipe
