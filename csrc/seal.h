// A check of bytes against bytes seen before, by the same process: for nothing that is stored. Four times as fast as
// the hash of regions.
#pragma once

#include <cstdint>

namespace maskpipe {

inline constexpr std::int64_t page_size = 1 << 10;

// 32 bits from `length` bytes, at most page_size. ahead: of the page that comes next, or nullptr; it is never read,
// only fetched, so it may lie anywhere.
std::uint32_t seal(const std::uint8_t* bytes, std::int64_t length, const std::uint8_t* ahead = nullptr);

}  // namespace maskpipe
