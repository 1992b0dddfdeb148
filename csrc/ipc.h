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

  std::int64_t end() const { return offset + metadata + body; }
};

// The length in bytes of the footer, from the last 10 bytes of the file: int32 length, "ARROW1".
inline constexpr std::int64_t tail_size = 10;
std::int64_t footer_size(Bytes tail, std::int64_t file_size);

// The record batches that the footer lists, one after the other. std::invalid_argument when it is no footer, there are
// dictionaries, or a batch begins before the end of the one before it or ends after `limit`.
std::vector<BatchPlace> read_footer(Bytes footer, std::int64_t limit);

// Columns and buffers of F10's schema, depth first.
inline constexpr std::size_t n_nodes = 33, n_buffers = 61;

// Buffers of a record batch in that order, relative to the body.
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

// Where the ids are. std::invalid_argument when the layout has not as many buffers as the format, or not as many bytes
// of ids as ids.
Buffer ids_place(const BatchLayout& layout);

}  // namespace maskpipe
