// The ids of a row on their way out of a shard: copied as they are or widened, and hashed in the same pass.
#pragma once

#include <cstdint>

namespace maskpipe {

// Where the ids of a row go; nullptr for what is not wanted.
struct IdsOut {
  std::int32_t* narrow;
  std::int64_t* wide;
};

// Copies `count` ids of int32, which lie in `bytes` at any alignment. ahead: of the row that comes next, or nullptr; it
// is never read, only fetched, so it may lie anywhere.
void copy_ids(const std::uint8_t* bytes, std::int64_t count, const IdsOut& out, const std::uint8_t* ahead);

// The same, and the xxh3_64 of exactly what was copied: each byte is loaded once, so what `bytes` turn into meanwhile,
// as those of a mapping may, is either in both or in neither. At least one of `out` is there.
std::uint64_t copy_and_hash_ids(const std::uint8_t* bytes, std::int64_t count, const IdsOut& out,
                                const std::uint8_t* ahead);

}  // namespace maskpipe
