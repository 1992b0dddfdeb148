#include "ipc.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace maskpipe {
namespace {

[[noreturn]] void wrong(const std::string& what) { throw std::invalid_argument(what); }

template <typename Value>
Value load(Bytes bytes, std::int64_t at) {
  if (at < 0 || at > static_cast<std::int64_t>(bytes.size()) - static_cast<std::int64_t>(sizeof(Value))) {
    wrong("Arrow metadata points outside itself");
  }
  Value value;
  std::memcpy(&value, bytes.data() + at, sizeof(Value));
  return value;
}

// A flatbuffer table: fields by number, absent ones at -1.
class Table {
 public:
  Table(Bytes bytes, std::int64_t at) : bytes_(bytes), at_(at) {
    vtable_ = at - load<std::int32_t>(bytes, at);
    vtable_size_ = load<std::uint16_t>(bytes, vtable_);
  }

  static Table root(Bytes bytes) { return {bytes, load<std::uint32_t>(bytes, 0)}; }

  std::int64_t place(int field) const {
    const std::int64_t slot = 4 + 2 * field;
    if (slot + 2 > vtable_size_) return -1;
    const std::uint16_t offset = load<std::uint16_t>(bytes_, vtable_ + slot);
    return offset == 0 ? -1 : at_ + offset;
  }

  template <typename Value>
  Value scalar(int field, Value absent) const {
    const std::int64_t at = place(field);
    return at < 0 ? absent : load<Value>(bytes_, at);
  }

  // Where a table or vector field begins, or -1.
  std::int64_t target(int field) const {
    const std::int64_t at = place(field);
    return at < 0 ? -1 : at + load<std::uint32_t>(bytes_, at);
  }

  // Place of the first element and number of elements of a vector of `size` bytes each.
  std::pair<std::int64_t, std::int64_t> vector(int field, std::int64_t size) const {
    const std::int64_t at = target(field);
    if (at < 0) return {0, 0};
    const std::int64_t count = load<std::uint32_t>(bytes_, at);
    if (count * size > static_cast<std::int64_t>(bytes_.size()) - at - 4) wrong("Arrow metadata points outside itself");
    return {at + 4, count};
  }

  Bytes bytes() const { return bytes_; }

 private:
  Bytes bytes_;
  std::int64_t at_, vtable_, vtable_size_;
};

}  // namespace

std::int64_t footer_size(Bytes tail, std::int64_t file_size) {
  if (static_cast<std::int64_t>(tail.size()) != tail_size || std::memcmp(tail.data() + 4, "ARROW1", 6) != 0) {
    wrong("is no Arrow IPC file: it does not end with ARROW1");
  }
  const std::int64_t size = load<std::int32_t>(tail, 0);
  if (size < 8 || size > file_size - tail_size - 8) wrong("is no Arrow IPC file: its footer has no valid length");
  return size;
}

std::vector<BatchPlace> read_footer(Bytes footer, std::int64_t limit) {
  const Table table = Table::root(footer);
  if (table.vector(2, 24).second != 0) wrong("has Arrow dictionaries, which the format does not use");
  const auto [first, count] = table.vector(3, 24);
  std::vector<BatchPlace> out;
  out.reserve(static_cast<std::size_t>(count));
  for (std::int64_t k = 0; k < count; ++k) {
    const std::int64_t at = first + 24 * k;
    const BatchPlace place{load<std::int64_t>(footer, at), load<std::int32_t>(footer, at + 8),
                           load<std::int64_t>(footer, at + 16)};
    const std::int64_t free = out.empty() ? 8 : out.back().end();
    if (place.offset < free || place.metadata < 16 || place.body < 0 || place.offset > limit ||
        place.metadata > limit - place.offset || place.body > limit - place.offset - place.metadata) {
      wrong("record batch " + std::to_string(k) + " lies outside the file or in another one");
    }
    out.push_back(place);
  }
  return out;
}

BatchLayout read_batch_layout(Bytes metadata, std::int64_t body) {
  if (load<std::uint32_t>(metadata, 0) != 0xffffffffU) wrong("has a record batch without a message");
  const std::int64_t size = load<std::int32_t>(metadata, 4);
  if (size < 8 || size > static_cast<std::int64_t>(metadata.size()) - 8) wrong("has a message of no valid length");
  const Bytes bytes = metadata.subspan(8, static_cast<std::size_t>(size));
  const Table message = Table::root(bytes);
  constexpr std::uint8_t record_batch = 3;
  if (message.scalar<std::uint8_t>(1, 0) != record_batch || message.target(2) < 0)
    wrong("has a message that is no record batch");
  if (message.scalar<std::int64_t>(3, 0) != body)
    wrong("has a record batch whose body has another length than the footer says");
  const Table batch(bytes, message.target(2));
  if (batch.place(3) >= 0) wrong("is compressed; shards are not");
  BatchLayout out{batch.scalar<std::int64_t>(0, 0), {}, {}};
  const auto [nodes, node_count] = batch.vector(1, 16);
  for (std::int64_t k = 0; k < node_count; ++k) {
    out.nodes.push_back({load<std::int64_t>(bytes, nodes + 16 * k), load<std::int64_t>(bytes, nodes + 16 * k + 8)});
  }
  const auto [buffers, buffer_count] = batch.vector(2, 16);
  for (std::int64_t k = 0; k < buffer_count; ++k) {
    const Buffer buffer{load<std::int64_t>(bytes, buffers + 16 * k), load<std::int64_t>(bytes, buffers + 16 * k + 8)};
    if (buffer.offset < 0 || buffer.length < 0 || buffer.offset > body || buffer.length > body - buffer.offset) {
      wrong("has a buffer outside its record batch");
    }
    out.buffers.push_back(buffer);
  }
  return out;
}

Buffer ids_place(const BatchLayout& layout) {
  constexpr std::size_t ids_node = 1, ids = 2;
  if (layout.nodes.size() != n_nodes || layout.buffers.size() != n_buffers) {
    wrong("has " + std::to_string(layout.nodes.size()) + " columns and " + std::to_string(layout.buffers.size()) +
          " buffers, the format has " + std::to_string(n_nodes) + " and " + std::to_string(n_buffers));
  }
  const Buffer place = layout.buffers[ids];
  // Not more either: what is in no row has no hash.
  if (place.length % 4 != 0 || place.length / 4 != layout.nodes[ids_node].length) {
    wrong("has " + std::to_string(place.length) + " bytes of ids, of " + std::to_string(layout.nodes[ids_node].length) +
          " ids");
  }
  return place;
}

}  // namespace maskpipe
