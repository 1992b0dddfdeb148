// The few values of maskpipe/roles.py that the core must know; tests/test_core_facts.py compares the two. Fixed by
// shard format v1.
#pragma once

#include <cstdint>

namespace maskpipe {

namespace role {
inline constexpr std::uint8_t padding = 0;
inline constexpr std::uint8_t assistant = 3;
inline constexpr std::uint8_t text = 7;           // plain text for pretraining
inline constexpr std::uint8_t template_text = 8;  // literal text of the template that belongs to no message
inline constexpr std::uint8_t last = 8;
inline constexpr std::uint8_t unknown = 255;
}  // namespace role

namespace part {
inline constexpr std::uint8_t none = 0;
inline constexpr std::uint8_t content = 1;
inline constexpr std::uint8_t reasoning = 2;
inline constexpr std::uint8_t tool_call = 3;
inline constexpr std::uint8_t scaffold = 5;
inline constexpr std::uint8_t stop = 6;
inline constexpr std::uint8_t last = 6;
}  // namespace part

namespace flag {
inline constexpr std::uint8_t sampled = 1;
inline constexpr std::uint8_t loss = 2;
inline constexpr std::uint8_t straddles = 4;
inline constexpr std::uint8_t cut_before = 8;
inline constexpr std::uint8_t empty_reasoning = 16;
inline constexpr std::uint8_t all = 31;
}  // namespace flag

namespace branch {
inline constexpr std::uint8_t none = 0;
inline constexpr std::uint8_t prompt = 1;
inline constexpr std::uint8_t chosen = 2;
inline constexpr std::uint8_t rejected = 3;
}  // namespace branch

namespace verdict {
inline constexpr std::uint8_t history_differs = 1;
inline constexpr std::uint8_t no_stop = 2;
inline constexpr std::uint8_t refused = 4;
}  // namespace verdict

}  // namespace maskpipe
