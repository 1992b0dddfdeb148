#include "copy_ids.h"

#include <algorithm>
#include <cstring>

#include "hash.h"
#include "wide.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define XXH_INLINE_ALL
#include "vendor/xxhash.h"
#define MASKPIPE_AVX2 __attribute__((target("avx2")))
#endif

namespace maskpipe {
namespace {

constexpr std::int64_t page_size = 1 << 10;  // as XXH3 has them: between two its sums are scrambled
constexpr std::int64_t page_ids = page_size / 4;

MASKPIPE_WIDE void widen(const std::int32_t* in, std::int64_t* out, std::int64_t size) {
  for (std::int64_t k = 0; k < size; ++k) out[k] = in[k];
}

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

// Through memory of our own, a page at a time.
std::uint64_t copy_and_hash_pages(const std::uint8_t* bytes, std::int64_t count, const IdsOut& out) {
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

#ifdef MASKPIPE_AVX2

bool wide_registers() {
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  return has_avx2;
}

constexpr std::int64_t stripe_size = 64, stripe_ids = stripe_size / 4;

// XXH3's eight sums, four to a register.
struct Sums {
  __m256i halves[2];
};

__m256i* vectors(void* at) { return static_cast<__m256i*>(at); }
const __m256i* vectors(const void* at) { return static_cast<const __m256i*>(at); }

// A stripe into the sums (XXH3_accumulate_512) and, from the same registers, to where it goes.
template <typename Id>
MASKPIPE_AVX2 inline __attribute__((always_inline)) void add_stripe(Sums& sums, const std::uint8_t* bytes,
                                                                    const std::uint8_t* secret, Id* out) {
  for (int half = 0; half < 2; ++half) {
    const __m256i in = _mm256_loadu_si256(vectors(bytes) + half);
    const __m256i keyed = _mm256_xor_si256(in, _mm256_loadu_si256(vectors(secret) + half));
    const __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
    const __m256i swapped = _mm256_shuffle_epi32(in, _MM_SHUFFLE(1, 0, 3, 2));
    sums.halves[half] = _mm256_add_epi64(product, _mm256_add_epi64(sums.halves[half], swapped));
    __m256i* const to = vectors(out);
    if constexpr (sizeof(Id) == 4) {
      _mm256_storeu_si256(to + half, in);
    } else {
      _mm256_storeu_si256(to + 2 * half, _mm256_cvtepi32_epi64(_mm256_castsi256_si128(in)));
      _mm256_storeu_si256(to + 2 * half + 1, _mm256_cvtepi32_epi64(_mm256_extracti128_si256(in, 1)));
    }
  }
}

// XXH3_scrambleAcc.
MASKPIPE_AVX2 inline __attribute__((always_inline)) void scramble(Sums& sums) {
  const std::uint8_t* const secret = XXH3_kSecret + sizeof(XXH3_kSecret) - stripe_size;
  const __m256i prime = _mm256_set1_epi32(static_cast<int>(XXH_PRIME32_1));
  for (int half = 0; half < 2; ++half) {
    const __m256i sum = sums.halves[half];
    const __m256i mixed =
        _mm256_xor_si256(_mm256_xor_si256(sum, _mm256_srli_epi64(sum, 47)), _mm256_loadu_si256(vectors(secret) + half));
    const __m256i low = _mm256_mul_epu32(mixed, prime);
    const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(mixed, 32), prime);
    sums.halves[half] = _mm256_add_epi64(low, _mm256_slli_epi64(high, 32));
  }
}

// Some stripes of a page, each with a secret that moves on by 8 bytes; as many lines from `next` on are asked for.
template <typename Id>
MASKPIPE_AVX2 inline __attribute__((always_inline)) void add_stripes(Sums& sums, const std::uint8_t* bytes,
                                                                     std::int64_t stripes, Id* out,
                                                                     const std::uint8_t* next) {
#pragma GCC unroll 4
  for (std::int64_t k = 0; k < stripes; ++k) {
    fetch_line(next + k * stripe_size);
    add_stripe(sums, bytes + k * stripe_size, XXH3_kSecret + k * 8, out + k * stripe_ids);
  }
}

// xxh3_64 of more than 240 bytes, a multiple of a stripe (XXH3_hashLong_64b): pages of stripes, scrambled between them;
// the last stripe has a secret of its own.
template <typename Id>
MASKPIPE_AVX2 std::uint64_t copy_and_hash_stripes(const std::uint8_t* bytes, std::int64_t count, Id* out,
                                                  const std::uint8_t* ahead) {
  alignas(64) std::uint64_t lanes[XXH_ACC_NB] = XXH3_INIT_ACC;
  Sums sums{{_mm256_load_si256(vectors(lanes)), _mm256_load_si256(vectors(lanes) + 1)}};
  const std::int64_t length = 4 * count;
  std::int64_t page = 0;
  for (; page + page_size < length; page += page_size) {
    add_stripes(sums, bytes + page, page_size / stripe_size, out + page / 4, fetched(bytes, page, length, ahead));
    scramble(sums);
  }
  const std::int64_t last = length - stripe_size;
  const std::uint8_t* const next = fetched(bytes, page, length, ahead);
  add_stripes(sums, bytes + page, (last - page) / stripe_size, out + page / 4, next);
  fetch_line(next + (last - page));
  add_stripe(sums, bytes + last, XXH3_kSecret + sizeof(XXH3_kSecret) - stripe_size - XXH_SECRET_LASTACC_START,
             out + last / 4);
  _mm256_store_si256(vectors(lanes), sums.halves[0]);
  _mm256_store_si256(vectors(lanes) + 1, sums.halves[1]);
  return XXH3_mergeAccs(lanes, XXH3_kSecret + XXH_SECRET_MERGEACCS_START,
                        static_cast<std::uint64_t>(length) * XXH_PRIME64_1);
}

#endif

}  // namespace

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

std::uint64_t copy_and_hash_ids(const std::uint8_t* bytes, std::int64_t count, const IdsOut& out,
                                const std::uint8_t* ahead) {
#ifdef MASKPIPE_AVX2
  if (wide_registers() && count % stripe_ids == 0 && 4 * count > XXH3_MIDSIZE_MAX) {
    if (out.wide == nullptr) return copy_and_hash_stripes(bytes, count, out.narrow, ahead);
    const std::uint64_t hash = copy_and_hash_stripes(bytes, count, out.wide, ahead);
    if (out.narrow != nullptr) std::copy_n(out.wide, count, out.narrow);
    return hash;
  }
#else
  (void)ahead;
#endif
  return copy_and_hash_pages(bytes, count, out);
}

}  // namespace maskpipe
