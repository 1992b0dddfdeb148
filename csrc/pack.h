// Packing: lengths of documents -> which documents share a bin. Nothing is cut here, and no bin holds more than
// `capacity` tokens.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace maskpipe {

// Documents of bin b: order[offsets[b] .. offsets[b + 1]). Bins stand in order of creation, the documents of a bin in
// order of placement. Every document stands in `order` exactly once.
struct Packing {
  std::vector<std::int64_t> order;    // [documents] indices of documents
  std::vector<std::int64_t> offsets;  // [bins + 1], starts with 0, strictly increasing
};

// Best-fit decreasing. Documents are placed longest first (equal lengths: lower index first), each in the fullest bin
// that still has room; of equally full bins the one whose last placement is the oldest; a new bin when none has room.
// Works on counts per length: whole groups of equal bins move at once, so the cost is O(documents + lengths *
// log(capacity)) where `lengths` counts the different ones; memory depends on the documents, never on the capacity.
// capacity is in [1, 2^31 - 1] and every length in [1, capacity], else std::invalid_argument naming
// the index; at most 2^32 - 1 documents.
Packing best_fit(std::span<const std::int32_t> lengths, std::int64_t capacity);

// First fit in the order given: each document goes into the oldest bin that has room. O(documents * log(bins)).
// Ranges and errors as in best_fit.
Packing first_fit(std::span<const std::int32_t> lengths, std::int64_t capacity);

}  // namespace maskpipe
