// A check of bytes against bytes seen before, by the same process: for nothing that is stored. Several times as fast as
// the hash of regions, and for ids free where they are copied anyway.
#pragma once

#include <cstdint>

namespace maskpipe {

inline constexpr std::int64_t page_size = 1 << 10;

// 32 bits from `length` bytes, at most page_size.
std::uint32_t seal(const std::uint8_t* bytes, std::int64_t length);

// Where the ids of a row go; nullptr for what is not wanted.
struct IdsOut {
  std::int32_t* narrow;
  std::int64_t* wide;
};

// Copies `count` ids of int32, which lie in `bytes` at any alignment. ahead: of the row that comes next, or nullptr; it
// is never read, only fetched, so it may lie anywhere.
void copy_ids(const std::uint8_t* bytes, std::int64_t count, const IdsOut& out, const std::uint8_t* ahead);

// The same, and 64 bits, never 0, from exactly what was copied: each byte is loaded once, so what `bytes` turn into
// meanwhile, as those of a mapping may, is either in both or in neither. At least one of `out` is there.
//
// A word that changes always changes the sums that the bits are made from; other changes do but for one in 2^32 at
// worst, and the bits but for one in 2^64.
std::uint64_t seal_ids(const std::uint8_t* bytes, std::int64_t count, const IdsOut& out, const std::uint8_t* ahead);

}  // namespace maskpipe
