// The few values of maskpipe/roles.py that the core must know; tests/test_core_facts.py compares the two. Fixed by
// shard format v1.
#pragma once

#include <cstdint>

namespace maskpipe {

namespace role {
inline constexpr std::uint8_t padding = 0;
inline constexpr std::uint8_t last = 8;
inline constexpr std::uint8_t unknown = 255;
}  // namespace role

namespace part {
inline constexpr std::uint8_t none = 0;
inline constexpr std::uint8_t last = 6;
}  // namespace part

namespace flag {
inline constexpr std::uint8_t loss = 2;
inline constexpr std::uint8_t all = 31;
}  // namespace flag

}  // namespace maskpipe
