#include "seal.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "hash.h"
#include "wide.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define MASKPIPE_AVX2 __attribute__((target("avx2")))
#endif

namespace maskpipe {
namespace {

constexpr std::int64_t page_ids = page_size / 4;

MASKPIPE_WIDE void widen(const std::int32_t* in, std::int64_t* out, std::int64_t size) {
  for (std::int64_t k = 0; k < size; ++k) out[k] = in[k];
}

std::uint32_t folded(std::uint64_t hash) { return static_cast<std::uint32_t>(hash ^ hash >> 32); }

// What is so many bytes ahead, in this row or in the next one, is asked for line by line beside the work on a page.
constexpr std::int64_t fetch_distance = 2 * page_size;

const std::uint8_t* fetched(const std::uint8_t* bytes, std::int64_t at, std::int64_t length,
                            const std::uint8_t* ahead) {
  const std::int64_t place = at + fetch_distance;
  return place < length || ahead == nullptr ? bytes + place : ahead + (place - length);
}

void fetch_line(const std::uint8_t* at) {
#ifdef __GNUC__
  __builtin_prefetch(at);
#endif
}

#ifdef MASKPIPE_AVX2

bool wide_registers() {
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  return has_avx2;
}

constexpr std::size_t page_words = page_size / 8;

// A key for each word of a page: splitmix64 from 1.
constexpr auto make_keys() {
  std::array<std::uint64_t, page_words> out{};
  std::uint64_t state = 1;
  for (std::uint64_t& key : out) {
    std::uint64_t x = state += 0x9e3779b97f4a7c15ULL;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ x >> 27) * 0x94d049bb133111ebULL;
    key = x ^ x >> 31;
  }
  return out;
}
alignas(64) constexpr std::array<std::uint64_t, page_words> keys = make_keys();

// Two sums per lane of 64 bits, over words at a distance of 64 bytes: Σ (low + key) * (high + key), as UMAC's NH, and
// Σ word, which no change of a single word leaves alone.
struct Sums {
  __m256i products[2], words[2];
};

enum class Copy { none, narrow, wide };

template <Copy copy, typename Id>
MASKPIPE_AVX2 inline __attribute__((always_inline)) void add_page(Sums& sums, const std::uint8_t* bytes, Id* out,
                                                                  const std::uint8_t* fetched) {
  const auto* const page_keys = reinterpret_cast<const std::uint8_t*>(keys.data());
  auto* const to = reinterpret_cast<std::uint8_t*>(out);
  for (std::int64_t at = 0; at < page_size; at += 64) {
    fetch_line(fetched + at);
    for (std::int64_t half = 0; half < 2; ++half) {
      const std::int64_t here = at + 32 * half;
      const __m256i in = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + here));
      const __m256i keyed = _mm256_add_epi32(in, *reinterpret_cast<const __m256i*>(page_keys + here));
      const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
      sums.products[half] = _mm256_add_epi64(sums.products[half], product);
      sums.words[half] = _mm256_add_epi64(sums.words[half], in);
      if constexpr (copy == Copy::narrow) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + here), in);
      } else if constexpr (copy == Copy::wide) {
        auto* const wide = reinterpret_cast<__m256i*>(to + 2 * here);
        _mm256_storeu_si256(wide, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(in)));
        _mm256_storeu_si256(wide + 1, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(in, 1)));
      }
    }
  }
}

// Between pages, so that none can stand for another: one-to-one on a sum, as XXH3 has it.
MASKPIPE_AVX2 inline __attribute__((always_inline)) void scramble(Sums& sums) {
  const __m256i factor = _mm256_set1_epi64x(0x9e3779b1);
  for (__m256i& sum : sums.products) {
    const __m256i mixed = _mm256_xor_si256(sum, _mm256_srli_epi64(sum, 47));
    const __m256i low = _mm256_mul_epu32(mixed, factor);
    const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(mixed, 32), factor);
    sum = _mm256_add_epi64(low, _mm256_slli_epi64(high, 32));
  }
}

// 64 bits of the sums, a change of any one of which changes them.
MASKPIPE_AVX2 inline __attribute__((always_inline)) std::uint64_t digest(const Sums& sums) {
  alignas(32) std::uint64_t lanes[16];
  std::memcpy(lanes, &sums, sizeof(lanes));
  std::uint64_t out = 0;
  for (std::size_t lane = 0; lane < 16; ++lane) out += (lanes[lane] ^ lanes[lane] >> 37) * (keys[lane] | 1);
  return out * (keys[16] | 1);
}

MASKPIPE_AVX2 inline __attribute__((always_inline)) Sums no_sums() {
  const __m256i zero = _mm256_setzero_si256();
  return {{zero, zero}, {zero, zero}};
}

MASKPIPE_AVX2 std::uint64_t seal_page(const std::uint8_t* bytes) {
  Sums sums = no_sums();
  add_page<Copy::none>(sums, bytes, static_cast<std::int32_t*>(nullptr), bytes + page_size);
  return digest(sums);
}

template <Copy copy, typename Id>
MASKPIPE_AVX2 std::uint64_t seal_pages(const std::uint8_t* bytes, std::int64_t count, Id* out,
                                       const std::uint8_t* ahead) {
  Sums sums = no_sums();
  std::int64_t at = 0;
  for (; at + page_ids <= count; at += page_ids) {
    add_page<copy>(sums, bytes + 4 * at, out + at, fetched(bytes, 4 * at, 4 * count, ahead));
    scramble(sums);
  }
  if (at < count) {  // the rest, as a page that ends in zeros
    alignas(32) std::uint8_t page[page_size] = {};
    Id copied[page_ids];
    const auto left = static_cast<std::size_t>(count - at);
    std::memcpy(page, bytes + 4 * at, 4 * left);
    add_page<copy>(sums, page, copied, page);
    scramble(sums);
    std::copy_n(copied, left, out + at);
  }
  return digest(sums);
}

#endif

// For other processors: through memory of our own, a page at a time.
std::uint64_t seal_slowly(const std::uint8_t* bytes, std::int64_t count, const IdsOut& out) {
  Xxh3 hash;
  for (std::int64_t at = 0; at < count; at += page_ids) {
    std::int32_t page[page_ids];
    const auto size = static_cast<std::size_t>(std::min(page_ids, count - at));
    std::memcpy(page, bytes + 4 * at, 4 * size);
    hash.add(page, 4 * size);
    if (out.narrow != nullptr) std::copy_n(page, size, out.narrow + at);
    if (out.wide != nullptr) std::copy_n(page, size, out.wide + at);
  }
  return hash.digest();
}

}  // namespace

std::uint32_t seal(const std::uint8_t* bytes, std::int64_t length) {
#ifdef MASKPIPE_AVX2
  if (length == page_size && wide_registers()) return folded(seal_page(bytes));
#endif
  return folded(xxh3(bytes, static_cast<std::size_t>(length)));
}

void copy_ids(const std::uint8_t* bytes, std::int64_t count, const IdsOut& out, const std::uint8_t* ahead) {
  const auto* const ids = reinterpret_cast<const std::int32_t*>(bytes);
  for (std::int64_t at = 0; at < count; at += page_ids) {
    const std::int64_t size = std::min(page_ids, count - at);
    const std::uint8_t* const next = fetched(bytes, 4 * at, 4 * count, ahead);
    for (std::int64_t line = 0; line < 4 * size; line += 64) fetch_line(next + line);
    if (out.narrow != nullptr) std::copy_n(ids + at, size, out.narrow + at);
    if (out.wide != nullptr) widen(ids + at, out.wide + at, size);
  }
}

std::uint64_t seal_ids(const std::uint8_t* bytes, std::int64_t count, const IdsOut& out, const std::uint8_t* ahead) {
  std::uint64_t found = 0;
#ifdef MASKPIPE_AVX2
  if (wide_registers()) {
    if (out.wide != nullptr) {
      found = seal_pages<Copy::wide>(bytes, count, out.wide, ahead);
      if (out.narrow != nullptr) std::copy_n(out.wide, count, out.narrow);
    } else {
      found = seal_pages<Copy::narrow>(bytes, count, out.narrow, ahead);
    }
  } else {
    found = seal_slowly(bytes, count, out);
  }
#else
  (void)ahead;
  found = seal_slowly(bytes, count, out);
#endif
  return found == 0 ? 1 : found;
}

}  // namespace maskpipe
