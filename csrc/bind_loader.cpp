#include "bind_loader.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "arguments.h"
#include "dlpack.h"
#include "order.h"
#include "reader.h"
#include "slots.h"
#include "stream.h"

namespace py = pybind11;
using namespace pybind11::literals;

namespace maskpipe {
namespace {

std::vector<EpochShape> epoch_shapes(const py::object& rows, const py::object& blocks, const py::object& windows,
                                     bool shuffle) {
  const auto n_rows = view<std::int64_t>(rows, "rows"), block = view<std::int64_t>(blocks, "blocks"),
             window = view<std::int64_t>(windows, "windows");
  if (block.size() != n_rows.size() || window.size() != n_rows.size()) {
    throw py::value_error("blocks and windows must have one value per source");
  }
  std::vector<EpochShape> out;
  for (std::size_t s = 0; s < n_rows.size(); ++s) {
    out.push_back({static_cast<std::uint64_t>(n_rows[s]), shuffle, static_cast<std::uint64_t>(block[s]),
                   static_cast<std::uint64_t>(window[s])});
  }
  return out;
}

std::vector<Key> keys_of(const py::object& keys) {
  const auto words = view<std::uint64_t>(keys, "keys");
  if (words.size() % 4 != 0) throw py::value_error("keys must have four words per source");
  std::vector<Key> out;
  for (std::size_t k = 0; k < words.size(); k += 4) {
    out.push_back({words[k], words[k + 1], words[k + 2], words[k + 3]});
  }
  return out;
}

// One field of each.
template <typename Item, typename Value>
std::vector<Value> each(const std::vector<Item>& items, Value Item::* field) {
  std::vector<Value> out;
  out.reserve(items.size());
  for (const Item& item : items) out.push_back(item.*field);
  return out;
}

// Keeps a slot for as long as Python has an array over it.
py::capsule keeper(Slot&& slot) {
  auto kept = std::make_unique<Slot>(std::move(slot));
  py::capsule out(kept.get(), [](void* held) { delete static_cast<Slot*>(held); });
  kept.release();
  return out;
}

// A piece of memory that Python gave; its array may go only with the GIL.
Slot slot_of(const py::object& memory, std::size_t size) {
  std::uint8_t* at = writable<std::uint8_t>(memory, "memory", size);
  if (at == nullptr) throw py::type_error("memory must be a numpy array of uint8, got None");
  auto owner = std::shared_ptr<py::object>(new py::object(memory), [](py::object* held) {
    const py::gil_scoped_acquire gil;
    delete held;
  });
  return {at, std::move(owner)};
}

// Values as a tensor of DLPack, [rows, length] or [length] where rows is -1, which keeps their owner. Cheaper than an
// array of numpy where a tensor is wanted.
template <typename Value, typename Owner>
py::object to_capsule(Value* values, std::int64_t rows, std::int64_t length, Owner&& owner) {
  struct Kept {
    dlpack::ManagedTensor managed;
    std::int64_t shape[2];
    Owner owner;
  };
  const dlpack::DataType type{std::is_floating_point_v<Value> ? dlpack::reals
                              : std::is_signed_v<Value>       ? dlpack::integers
                                                              : dlpack::naturals,
                              sizeof(Value) * 8, 1};
  auto kept = std::make_unique<Kept>(Kept{{}, {rows, length}, std::move(owner)});
  const int skipped = rows < 0 ? 1 : 0;
  kept->managed = {{values, {}, 2 - skipped, type, kept->shape + skipped, nullptr, 0},
                   kept.get(),
                   [](dlpack::ManagedTensor* self) { delete static_cast<Kept*>(self->context); }};
  PyObject* out = PyCapsule_New(&kept->managed, dlpack::fresh, [](PyObject* capsule) {
    if (!PyCapsule_IsValid(capsule, dlpack::fresh)) return;  // somebody took it
    auto* held = static_cast<dlpack::ManagedTensor*>(PyCapsule_GetPointer(capsule, dlpack::fresh));
    held->deleter(held);
  });
  if (out == nullptr) throw py::error_already_set();
  (void)kept.release();
  return py::reinterpret_steal<py::object>(out);
}

template <typename Value>
py::object to_capsule(std::vector<Value>&& values) {
  Value* const data = values.data();
  const auto size = static_cast<std::int64_t>(values.size());
  return to_capsule(data, -1, size, std::move(values));
}

// Dense columns by their names in Python.
using Dense = py::object (*)(std::uint8_t* memory, std::int64_t rows, std::int64_t length, const Slot& slot);

template <typename Value>
py::object dense(std::uint8_t* memory, std::int64_t rows, std::int64_t length, const Slot& slot) {
  return to_capsule(reinterpret_cast<Value*>(memory), rows, length, Slot(slot));
}

constexpr struct {
  const char* name;
  std::int64_t ColumnPlaces::* place;
  Dense to_capsule;
} dense_columns[] = {
    {"ids32", &ColumnPlaces::ids32, dense<std::int32_t>},
    {"input_ids", &ColumnPlaces::ids, dense<std::int64_t>},
    {"labels", &ColumnPlaces::labels, dense<std::int64_t>},
    {"targets", &ColumnPlaces::targets, dense<std::int64_t>},
    {"position_ids", &ColumnPlaces::positions, dense<std::int64_t>},
    {"segment_ids", &ColumnPlaces::segments, dense<std::int32_t>},
    {"loss_weights", &ColumnPlaces::weights, dense<float>},
    {"role_ids", &ColumnPlaces::roles, dense<std::uint8_t>},
};

// What Python gets of a batch beside its dense columns, which keep the slot, not this. A capsule: an object of a class
// of pybind11 would take five times as long to come and go.
struct PyDelivered {
  std::shared_ptr<Reader> reader;
  Delivered batch;
  // Made once; tensors over them keep them.
  std::shared_ptr<Segments> segments;
  std::shared_ptr<BatchRuns> runs;

  static constexpr const char* name = "maskpipe.Delivered";

  static py::object to_python(std::unique_ptr<PyDelivered>&& given) {
    auto out = py::reinterpret_steal<py::object>(PyCapsule_New(given.get(), name, [](PyObject* capsule) {
      delete static_cast<PyDelivered*>(PyCapsule_GetPointer(capsule, name));
    }));
    if (!out) throw py::error_already_set();
    (void)given.release();
    return out;
  }

  static PyDelivered& of(const py::object& given) {
    auto* out = static_cast<PyDelivered*>(PyCapsule_GetPointer(given.ptr(), name));
    if (out == nullptr) throw py::error_already_set();
    return *out;
  }

  py::object fact(std::string_view asked) {
    if (asked == "cu_seqlens") return to_capsule(reader->cu_seqlens(*batch.job));
    if (asked == "sources") return to_capsule(each(batch.job->rows(), &Job::Row::source));
    if (asked == "rows") return to_capsule(each(batch.job->rows(), &Job::Row::row));
    const auto of = [](auto& values, const auto& owner) {
      return to_capsule(values.data(), -1, static_cast<std::int64_t>(values.size()), std::shared_ptr(owner));
    };
    if (asked.starts_with("run_")) {
      if (!runs) runs = std::make_shared<BatchRuns>(reader->runs(*batch.job));
      if (asked == "run_ends") return of(runs->ends, runs);
      if (asked == "run_roles") return of(runs->roles, runs);
      if (asked == "run_parts") return of(runs->parts, runs);
      if (asked == "run_loss") return of(runs->loss, runs);
      if (asked == "run_weights") return of(runs->weights, runs);
      throw py::key_error(std::string(asked));
    }
    if (!segments) segments = std::make_shared<Segments>(reader->segments(*batch.job));
    if (asked == "segment_numbers") return of(segments->numbers, segments);
    if (asked == "branches") return of(segments->branches, segments);
    if (asked == "pairs") return of(segments->pairs, segments);
    if (asked == "parents") return of(segments->parents, segments);
    if (asked == "scores") return of(segments->scores, segments);
    if (asked == "desirable") return of(segments->desirable, segments);
    throw py::key_error(std::string(asked));
  }
};

// The name of an attribute, as Python's own code has it: found without comparing letters.
py::str interned(const char* name) { return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name)); }

class PyStream {
 public:
  struct Column {
    py::str name;
    std::int64_t place;
    Dense to_capsule;
  };
  PyStream(std::vector<Column> asked, std::shared_ptr<Reader> reader, RunShape shape, const ColumnPlaces& places,
           std::function<Slot()> take)
      : columns(std::move(asked)), stream(std::move(reader), std::move(shape), places, std::move(take)) {}

  std::vector<Column> columns;
  Stream stream;

  // An object of `kind` with its attributes, of which `make` makes the columns; see _core.pyi. It comes into being
  // without its __init__, which would take as long as all the rest.
  py::object to_python(Delivered&& batch, const py::object& make, const py::object& kind, const py::object& run) const {
    py::dict attributes;
    const auto rows = static_cast<std::int64_t>(batch.job->rows().size());
    for (const Column& column : columns) {
      const py::object capsule =
          column.to_capsule(batch.slot.memory + column.place, rows, stream.reader()->sequence_length(), batch.slot);
      set(attributes, column.name, py::reinterpret_steal<py::object>(PyObject_CallOneArg(make.ptr(), capsule.ptr())));
    }
    std::unique_ptr<PyDelivered> given(new PyDelivered{stream.reader(), std::move(batch), nullptr, nullptr});
    set(attributes, given_name, PyDelivered::to_python(std::move(given)));
    set(attributes, run_name, run);
    auto* const type = reinterpret_cast<PyTypeObject*>(kind.ptr());
    const auto out = py::reinterpret_steal<py::object>(type->tp_alloc(type, 0));
    if (!out || PyObject_GenericSetDict(out.ptr(), attributes.ptr(), nullptr) != 0) throw py::error_already_set();
    return out;
  }

 private:
  static void set(py::dict& attributes, const py::str& name, const py::object& value) {
    if (!value || PyDict_SetItem(attributes.ptr(), name.ptr(), value.ptr()) != 0) throw py::error_already_set();
  }

  py::str given_name = interned("_given"), run_name = interned("_run");
};

py::tuple to_tuple(const Place& place) {
  py::tuple counts(place.sources.size()), credits(place.sources.size());
  for (std::size_t s = 0; s < place.sources.size(); ++s) {
    counts[s] = place.sources[s].count;
    credits[s] = place.sources[s].credit;
  }
  return py::make_tuple(counts, credits, place.position, place.within);
}

std::vector<SourcePlace> source_places(std::span<const std::int64_t> counts, std::span<const std::int64_t> credits) {
  if (counts.size() != credits.size()) throw py::value_error("expected one credit per count");
  std::vector<SourcePlace> out;
  for (std::size_t s = 0; s < counts.size(); ++s) out.push_back({counts[s], credits[s]});
  return out;
}

Place place_of(const py::object& place) {
  const auto fields = place.cast<py::tuple>();
  if (fields.size() != 4) throw py::value_error("a place has counts, credits, position and within");
  return {source_places(fields[0].cast<std::vector<std::int64_t>>(), fields[1].cast<std::vector<std::int64_t>>()),
          integer(fields[2], "position"), integer(fields[3], "within")};
}

Decision decision(const py::object& policy, const py::object& weights) {
  Decision out{};
  const auto table = view<float>(weights, "weights");
  if (table.size() != out.weights.size()) throw py::value_error("weights must have 256 * 8 values");
  std::ranges::copy(table, out.weights.begin());
  if (!policy.is_none()) out.policy = to_policy(policy);
  return out;
}

void bind_order(py::module_& m) {
  m.def(
      "rows_at",
      [](const py::object& rows, const py::object& blocks, const py::object& windows, bool shuffle,
         const py::object& keys, const py::object& sources, const py::object& counts) {
        const auto shapes = epoch_shapes(rows, blocks, windows, shuffle);
        const auto epoch_keys = keys_of(keys);
        const auto of = view<std::int32_t>(sources, "sources");
        const auto at = view<std::int64_t>(counts, "counts");
        if (of.size() != at.size()) throw py::value_error("expected one source per count");
        return to_numpy(without_gil([&] {
          std::vector<Stretch> stretches;
          add(stretches, of, at);
          return rows_at(shapes, epoch_keys, stretches);
        }));
      },
      "rows"_a, "blocks"_a, "windows"_a, "shuffle"_a, "keys"_a, "sources"_a, "counts"_a);
  const py::object interleaved_type = named_tuple(m, "Interleaved", "sources counts_before credits counts");
  m.def(
      "interleave",
      [interleaved_type](const py::object& rates, const py::object& credits, const py::object& counts,
                         const py::object& positions) {
        const auto rate = view<std::int64_t>(rates, "rates");
        auto places = source_places(view<std::int64_t>(counts, "counts"), view<std::int64_t>(credits, "credits"));
        const std::int64_t n = integer(positions, "positions");
        std::vector<std::int64_t> before;
        std::vector<std::int32_t> out = without_gil([&] { return interleave(rate, places, n, before); });
        return interleaved_type(to_numpy(std::move(out)), to_numpy(std::move(before)),
                                to_numpy(each(places, &SourcePlace::credit)),
                                to_numpy(each(places, &SourcePlace::count)));
      },
      "rates"_a, "credits"_a, "counts"_a, "positions"_a);
}

void bind_delivered(py::module_& m) {
  m.def(
      "delivered_fact",
      [](const py::object& given, std::string_view name) { return PyDelivered::of(given).fact(name); }, "given"_a,
      "name"_a);
  m.def(
      "delivered_place", [](const py::object& given) { return to_tuple(PyDelivered::of(given).batch.after); },
      "given"_a);
  m.def(
      "delivered_numbers",
      [](const py::object& given) {
        const RowTotals own = PyDelivered::of(given).batch.job->totals();
        return py::make_tuple(own.longest, own.tokens, own.shared);
      },
      "given"_a);
  m.def(
      "delivered_whole",
      [](const py::object& given) -> py::object {
        const std::optional<RowTotals> whole = PyDelivered::of(given).batch.whole();
        if (!whole) return py::none();
        return py::make_tuple(whole->tokens, whole->pairs, whole->weight, whole->rated);
      },
      "given"_a);
  m.def(
      "delivered_address",
      [](const py::object& given) {
        return reinterpret_cast<std::uintptr_t>(PyDelivered::of(given).batch.slot.memory);
      },
      "given"_a);
}

void bind_reader(py::module_& m) {
  py::class_<Pool, std::shared_ptr<Pool>>(m, "Pool")
      .def(py::init([](const py::object& size) {
             const std::int64_t bytes = integer(size, "size");
             if (bytes < 1) throw py::value_error("size must be at least 1");
             return std::make_shared<Pool>(static_cast<std::size_t>(bytes));
           }),
           "size"_a)
      .def("take", [](Pool& pool) {
        Slot slot = pool.take();
        std::uint8_t* const memory = slot.memory;
        return py::array_t<std::uint8_t>(static_cast<py::ssize_t>(pool.size()), memory, keeper(std::move(slot)));
      });
  py::class_<Reader, std::shared_ptr<Reader>>(m, "Reader")
      .def(py::init([](const py::list& sources, const py::object& sequence_length, const py::object& threads,
                       const std::string& verify, const std::string& io, bool random_access,
                       const py::object& cache_bytes, const py::object& open_files, const py::object& policy,
                       const py::object& weights) {
             std::vector<SourceShards> shards;
             for (const py::handle handle : sources) {
               const auto fields = handle.cast<py::tuple>();
               shards.push_back({fields[0].cast<std::string>(), fields[1].cast<std::vector<std::string>>(),
                                 owned(view<std::int64_t>(fields[2], "sizes")),
                                 owned(view<std::int64_t>(fields[3], "rows")),
                                 fields[4].cast<std::vector<std::string>>(), fields[5].cast<std::vector<std::string>>(),
                                 integer(fields[6], "batch_rows"), integer32(fields[7], "pad_id")});
             }
             if (verify != "every_read" && verify != "off") {
               throw py::value_error("verify must be every_read or off, got " + verify);
             }
             if (io != "pread" && io != "mmap") throw py::value_error("io must be pread or mmap, got " + io);
             const ReaderOptions options{integer(sequence_length, "sequence_length"),
                                         integer(threads, "threads"),
                                         verify == "off" ? Verify::off : Verify::every_read,
                                         io == "mmap" ? Io::mmap : Io::pread,
                                         random_access,
                                         integer(cache_bytes, "cache_bytes"),
                                         integer(open_files, "open_files")};
             auto reader = std::make_unique<Reader>(std::move(shards), options, decision(policy, weights));
             // In a forked process the threads are missing: the memory is all that may be touched, so it stays.
             return std::shared_ptr<Reader>(reader.release(), [](Reader* gone) {
               if (gone->is_here()) delete gone;
             });
           }),
           "sources"_a, "sequence_length"_a, "threads"_a, "verify"_a, "io"_a, "random_access"_a, "cache_bytes"_a,
           "open_files"_a, "policy"_a, "weights"_a)
      .def("blocks_decoded", &Reader::blocks_decoded)
      .def(
          "close_file",
          [](Reader& reader, const py::object& source, const py::object& number) {
            if (!reader.is_here()) throw std::logic_error("the reader belongs to another process");
            reader.close_file(static_cast<std::size_t>(integer(source, "source")),
                              static_cast<std::size_t>(integer(number, "number")));
          },
          "source"_a, "number"_a);
  py::class_<PyStream>(m, "Stream")
      .def(py::init([](const std::shared_ptr<Reader>& reader, const py::object& rows, const py::object& blocks,
                       const py::object& windows, bool shuffle, const py::object& keys, const py::object& global_batch,
                       const py::object& ranks, const py::object& rank, const py::object& batch, bool pad, bool totals,
                       const py::dict& columns, const py::object& size, const py::object& slots) {
             RunShape shape{epoch_shapes(rows, blocks, windows, shuffle),
                            keys_of(keys),
                            integer(global_batch, "global_batch"),
                            integer(ranks, "ranks"),
                            integer(rank, "rank"),
                            integer(batch, "batch"),
                            pad,
                            totals};
             ColumnPlaces places;
             std::vector<PyStream::Column> asked;
             for (const auto& known : dense_columns) {
               if (!columns.contains(known.name)) continue;
               places.*known.place = integer(columns[known.name], known.name);
               asked.push_back({interned(known.name), places.*known.place, known.to_capsule});
             }
             const auto bytes = static_cast<std::size_t>(integer(size, "size"));
             std::function<Slot()> take;
             if (py::isinstance<Pool>(slots)) {
               take = [pool = slots.cast<std::shared_ptr<Pool>>()] { return pool->take(); };
             } else {
               auto give = std::shared_ptr<py::object>(new py::object(slots), [](py::object* held) {
                 const py::gil_scoped_acquire gil;
                 delete held;
               });
               take = [give, bytes] {
                 const py::gil_scoped_acquire gil;
                 return slot_of((*give)(), bytes);
               };
             }
             return std::make_unique<PyStream>(std::move(asked), reader, std::move(shape), places, std::move(take));
           }),
           "reader"_a, "rows"_a, "blocks"_a, "windows"_a, "shuffle"_a, "keys"_a, "global_batch"_a, "ranks"_a, "rank"_a,
           "batch"_a, "pad"_a, "totals"_a, "columns"_a, "size"_a, "slots"_a)
      .def(
          "stand",
          [](PyStream& self, const py::object& place, const py::object& rates, const py::object& end) {
            Place from = place_of(place);
            auto mix = owned(view<std::int64_t>(rates, "rates"));
            const std::int64_t last = integer(end, "end");
            without_gil([&] { self.stream.stand(std::move(from), std::move(mix), last); });
          },
          "place"_a, "rates"_a, "end"_a)
      .def(
          "plan",
          [](const PyStream& self, const py::object& place) -> py::object {
            const Planner& planner = self.stream.planner();
            Planner::Plan plan;
            planner.plan(place_of(place), 1, plan);
            if (plan.batches.empty()) return py::none();
            const Job::Rows slice = Planner::rows(plan, plan.batches.front(), 0, planner.slice());
            return py::make_tuple(to_numpy(each(slice, &Job::Row::source)), to_numpy(each(slice, &Job::Row::row)),
                                  to_tuple(plan.batches.front().after));
          },
          "place"_a)
      .def("place", [](const PyStream& self) { return to_tuple(self.stream.place()); })
      .def(
          "place_after",
          [](const PyStream& self, const py::object& given) {
            return to_tuple(self.stream.place_after(integer(given, "given")));
          },
          "given"_a)
      .def("submit", [](PyStream& self) { return without_gil([&] { return self.stream.submit(); }); })
      .def("ahead", [](const PyStream& self) { return without_gil([&] { return self.stream.ahead(); }); })
      .def(
          "next",
          [](PyStream& self, const py::object& depth, const py::object& make, const py::object& kind,
             const py::object& run) -> py::object {
            const std::int64_t n = integer(depth, "depth");
            if (n < 0) throw py::value_error("depth must be at least 0");
            if (!PyType_Check(kind.ptr())) throw py::type_error("kind must be a class");
            auto batch = without_gil([&] { return self.stream.next(static_cast<std::size_t>(n)); });
            return batch ? self.to_python(std::move(*batch), make, kind, run) : py::none();
          },
          "depth"_a, "make"_a, "kind"_a, "run"_a);
}

void bind_ipc(py::module_& m) {
  static constexpr auto bytes_of = [](std::string_view text) {
    return Bytes(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
  };
  m.def(
      "footer_size",
      [](const py::bytes& tail, const py::object& file_size) {
        return footer_size(bytes_of(tail), integer(file_size, "file_size"));
      },
      "tail"_a, "file_size"_a);
  m.def(
      "read_footer",
      [](const py::bytes& footer, const py::object& limit) {
        py::list out;
        for (const BatchPlace& place : read_footer(bytes_of(footer), integer(limit, "limit"))) {
          out.append(py::make_tuple(place.offset, place.metadata, place.body));
        }
        return out;
      },
      "footer"_a, "limit"_a);
  m.def(
      "ids_place",
      [](const py::bytes& metadata, const py::object& body) {
        const Buffer ids = ids_place(read_batch_layout(bytes_of(metadata), integer(body, "body")));
        return py::make_tuple(ids.offset, ids.length);
      },
      "metadata"_a, "body"_a);
}

}  // namespace

Policy to_policy(const py::object& policy) {
  const auto fields = policy.cast<py::tuple>();
  return {fields[0].cast<LossRule>(), fields[1].cast<std::optional<std::vector<std::int32_t>>>(),
          fields[2].cast<bool>()};
}

void bind_loader(py::module_& m) {
  bind_order(m);
  bind_delivered(m);
  bind_reader(m);
  bind_ipc(m);
}

}  // namespace maskpipe
