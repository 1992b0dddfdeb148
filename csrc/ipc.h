// Where things lie in a shard: the little of the Arrow IPC file format that format v1 uses (F10), without libarrow.
// Input is hostile until proved otherwise: every offset is checked against the bytes given.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace maskpipe {

using Bytes = std::span<const std::uint8_t>;

// A record batch in the file: `metadata` bytes at `offset`, then `body` bytes.
struct BatchPlace {
  std::int64_t offset;
  std::int64_t metadata;
  std::int64_t body;
};

// The length in bytes of the footer, from the last 10 bytes of the file: int32 length, "ARROW1".
inline constexpr std::int64_t tail_size = 10;
std::int64_t footer_size(Bytes tail, std::int64_t file_size);

// The record batches that the footer lists, in order. std::invalid_argument when it is no footer, a batch lies outside
// [0, file_size), or there are dictionaries.
std::vector<BatchPlace> read_footer(Bytes footer, std::int64_t file_size);

// Buffers of a record batch in the order of F10's schema, relative to the body.
struct Buffer {
  std::int64_t offset;
  std::int64_t length;
};

struct Node {
  std::int64_t length;
  std::int64_t nulls;
};

struct BatchLayout {
  std::int64_t rows;
  std::vector<Node> nodes;
  std::vector<Buffer> buffers;  // all inside [0, body)
};

// The layout that the metadata of a batch (BatchPlace::metadata bytes) states. std::invalid_argument when it is no
// uncompressed record batch or a buffer lies outside the body.
BatchLayout read_batch_layout(Bytes metadata, std::int64_t body);

}  // namespace maskpipe
