"""The loader against HF datasets and a C gather, in one run on one machine; CPU time per sequence.

    python benchmarks/bench_loader.py [--rows 6400] [--sequence-length 2048] [--repeats 5] [--shards 10000] [--json]

Rows of random ids with documents of 300 to 1,100 tokens and loss on about half of them, warm page cache, batches of
16 in random order, one thread. A full batch is ids, labels, positions (int64) and boundaries. HF datasets keeps the
same four columns (boundaries padded to one size, so that DataLoader can collate them) and gives torch tensors.
`verify` at its default: every read is proved. The runs take turns, those that are compared one after the other. A time
is the best of its repeats; a ratio or difference is the median over the turns of that of the two runs of a turn, which
a neighbour on the machine shifts less than two best times that come from different moments.

The C gather reads the same bytes: rows in random order from the same shards at the same places, through the same page
cache, with pread into one buffer or from one mapping per shard, and widens them to int64 in one buffer that is used
again for every batch, as the loader's is here. It is favoured by what it need not do: where each row lies (file, place)
was looked up before the clock starts, it plans nothing, proves nothing, and makes no tensor. It is compiled for this
very processor, the loader for any.

Order is measured in calls of 16,384 indices, whose arrays the second cache holds: it is what a loader asks for at once
or more, and longer arrays would measure the memory too, of which the rest of a run leaves little.

Bars at 2,048 tokens: pread 10 and 20 times, mmap 15 and 25 times faster than HF datasets and HF + DataLoader; ids
alone at most 1.5 times the C gather; proving at most 10 % of the throughput; at most 5 µs of prefetch per sequence;
order 20 ns per index, set up in 1 ms for 10^8 rows. Exit code 1 where one is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import maskpipe
from maskpipe import _core
from maskpipe.data import Loader
from maskpipe.data.order import epoch_key
from maskpipe.document import Document
from maskpipe.recipe import Recipe
from tests.made_datasets import chat, publish_documents

BATCH = 16
LOADERS = 3
"""That read their first epoch in one turn."""
GATHER = r"""
#include <stdint.h>
#include <unistd.h>
void gather_pread(const int32_t* files, const int64_t* offsets, const int64_t* rows, int64_t n, int64_t length,
                  int32_t* scratch, int64_t* restrict out) {
  for (int64_t k = 0; k < n; k++) {
    if (pread(files[rows[k]], scratch, length * 4, offsets[rows[k]]) != length * 4) return;
    for (int64_t j = 0; j < length; j++) out[k * length + j] = scratch[j];
  }
}
void gather_mmap(const int32_t* const* ids, const int64_t* rows, int64_t n, int64_t length, int64_t* restrict out) {
  for (int64_t k = 0; k < n; k++) {
    const int32_t* row = ids[rows[k]];
    for (int64_t j = 0; j < length; j++) out[k * length + j] = row[j];
  }
}
"""


def make_dataset(path: Path, rows: int, length: int) -> maskpipe.Dataset:
    draw = np.random.default_rng(0)
    documents: list[Document] = []
    for _ in range(rows):
        left = length
        while left:
            n = int(draw.integers(300, 1100))
            n = left if n > left - 64 else n
            message = (np.arange(n) // 85).astype(np.int32)
            flags = np.where(message % 2 == 1, 3, 0).astype(np.uint8)
            documents.append(
                Document(
                    input_ids=draw.integers(10, 1000, n).astype(np.int32),
                    role_ids=np.where(message % 2, 3, 2).astype(np.uint8),
                    part_ids=np.ones(n, np.uint8),
                    flags=flags,
                    message_ids=message,
                    weights=None,
                    source=0,
                    row=len(documents),
                    turn=-1,
                    verdicts={},
                )
            )
            left -= n
    publish_documents(
        path, documents, sequence_length=length, rows_per_shard=1280, recipe=Recipe(sequence_length=length)
    )
    return maskpipe.open(path)


def hf_dataset(dataset: maskpipe.Dataset, path: Path) -> Any:
    import datasets

    segments = max(len(row.cu_seqlens) for row in dataset)

    def rows() -> Any:
        for row in dataset:
            ends = np.full(segments, len(row), np.int64)
            ends[: len(row.cu_seqlens)] = row.cu_seqlens
            yield {
                "input_ids": row.input_ids,
                "labels": row.labels,
                "position_ids": row.position_ids,
                "cu_seqlens": ends,
            }

    kinds = {"input_ids": "int32", "labels": "int64", "position_ids": "int32", "cu_seqlens": "int64"}
    features = datasets.Features({name: datasets.Sequence(datasets.Value(kind)) for name, kind in kinds.items()})
    made = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(path))
    return made.with_format("torch")


def c_gather(path: Path, dataset: maskpipe.Dataset, batch: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Both gathers over the shards of `dataset`, by pointers to row numbers. Checked: they give the dataset's ids."""
    (path / "gather.c").write_text(GATHER)
    subprocess.run(
        ["cc", "-O3", "-march=native", "-shared", "-fPIC", str(path / "gather.c"), "-o", str(path / "gather.so")],
        check=True,
    )
    library = ctypes.CDLL(str(path / "gather.so"))
    length = dataset.manifest.sequence_length
    kept: list[Any] = []  # what the pointers point to
    files, offsets, addresses = [], [], []
    for shard in dataset.manifest.shards:
        name = dataset.path / shard.name
        file, mapped = name.open("rb"), np.memmap(name, np.uint8, "r")
        column = pa.ipc.open_file(pa.py_buffer(mapped))
        for number in range(column.num_record_batches):
            of_batch = column.get_batch(number).column("input_ids")
            begin = of_batch.flatten().buffers()[1].address
            for row in range(len(of_batch)):
                files.append(file.fileno())
                addresses.append(begin + row * length * 4)
                offsets.append(addresses[-1] - mapped.ctypes.data)
        kept += [file, mapped, column]
    scratch, out = np.empty(length, np.int32), np.empty((batch, length), np.int64)
    tables = np.array(files, np.int32), np.array(offsets, np.int64), np.array(addresses, np.uint64)
    kept += [scratch, out, *tables]

    def pointer(array: Any) -> ctypes.c_void_p:
        return ctypes.c_void_p(array.ctypes.data)

    descriptors, places, ids = map(pointer, tables)
    staging, target = pointer(scratch), pointer(out)
    count, size = ctypes.c_int64(batch), ctypes.c_int64(length)

    def with_pread(rows: ctypes.c_void_p) -> Any:
        library.gather_pread(descriptors, places, rows, count, size, staging, target)
        return kept

    def with_mmap(rows: ctypes.c_void_p) -> Any:
        library.gather_mmap(ids, rows, count, size, target)
        return kept

    some = np.linspace(0, len(dataset) - 1, batch).astype(np.int64)
    for gather in (with_pread, with_mmap):
        out.fill(-1)
        gather(pointer(some))
        for k, row in enumerate(some.tolist()):
            np.testing.assert_array_equal(out[k], dataset[row].input_ids)
    return with_pread, with_mmap


def use(batch: Any, full: bool) -> None:
    """Tensors are made when they are asked for."""
    batch.input_ids.data_ptr()
    if full:
        for tensor in (batch.labels, batch.position_ids, batch.cu_seqlens):
            tensor.data_ptr()


def measure(rows: int, length: int, repeats: int, batch: int) -> dict[str, list[float]]:
    """CPU µs per sequence of every run, in every turn."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        dataset = make_dataset(path / "shards", rows, length)
        steps = len(dataset) // batch
        order = (
            np.random.default_rng(1).permutation(len(dataset))[: steps * batch].astype(np.int64).reshape(steps, batch)
        )

        def ours(**arguments: Any) -> Callable[[], None]:
            stream = Loader(dataset, global_batch_size=batch, **{"threads": 0, **arguments})
            for _ in range(steps + steps // 2):
                next(stream)
            full = "columns" not in arguments

            def run() -> None:
                for _ in range(steps):
                    use(next(stream), full)

            return run

        def first_epochs(verify: Any) -> Callable[[], None]:
            def run() -> None:
                for _ in range(LOADERS):
                    stream = Loader(dataset, global_batch_size=batch, threads=0, verify=verify)
                    for _ in range(steps):
                        use(next(stream), True)

            return run

        hf = hf_dataset(dataset, path / "hf")

        def hf_rows() -> None:
            for of in order:
                got = hf[of.tolist()]
                {key: value if isinstance(value, torch.Tensor) else torch.stack(value) for key, value in got.items()}

        def hf_loader() -> None:
            sampler = torch.utils.data.BatchSampler(order.reshape(-1).tolist(), batch, False)
            for _ in torch.utils.data.DataLoader(hf, batch_sampler=sampler):
                pass

        with_pread, with_mmap = c_gather(path, dataset, batch)
        pointers = [ctypes.c_void_p(of.ctypes.data) for of in order]
        runs: dict[str, Callable[[], None]] = {
            "HF + DataLoader": hf_loader,
            "full, mmap": ours(io="mmap"),
            "HF datasets": hf_rows,
            "full, pread": ours(),
            "full, pread, off": ours(verify="off"),
            "full, pread, 2 threads": ours(threads=2),
            "full, pread, first epoch": first_epochs("every_read"),
            "full, pread, off, first epoch": first_epochs("off"),
            "ids, pread": ours(columns=()),
            "C gather, pread": lambda: [with_pread(of) for of in pointers] and None,
            "ids, pread, off": ours(columns=(), verify="off"),
            "ids, mmap": ours(columns=(), io="mmap"),
            "C gather, mmap": lambda: [with_mmap(of) for of in pointers] and None,
            "ids, mmap, off": ours(columns=(), io="mmap", verify="off"),
        }
        us: dict[str, list[float]] = {label: [] for label in runs}
        for _ in range(repeats):
            for label, run in runs.items():
                begin = time.process_time()
                run()
                epochs = LOADERS if "first epoch" in label else 1
                us[label].append((time.process_time() - begin) / (epochs * steps * batch) * 1e6)
    return us


def measure_order(repeats: int) -> dict[str, float]:
    key, count = np.array(epoch_key(0, "x"), np.uint64), 1 << 14
    at, sources = np.arange(count), np.zeros(count, np.int32)
    sizes = [10**3, 10**4, 10**5, 10**6, 10**7, 10**8]
    out = {f"{n:,}": float("inf") for n in sizes}
    for _ in range(50 * repeats):
        for n in sizes:
            arguments = (np.array([n]), np.array([1]), np.array([0]), True, key)
            begin = time.process_time()
            _core.rows_at(*arguments, sources, at)
            out[f"{n:,}"] = min(out[f"{n:,}"], (time.process_time() - begin) / count * 1e9)
    begin = time.perf_counter()
    _core.rows_at(*arguments, sources[:1], at[:1])
    out["set up at 10^8, ms"] = (time.perf_counter() - begin) * 1e3
    return out


def measure_open(shards: int) -> dict[str, float]:
    """CPU seconds from a path to a loader, and to its first batch, with so many shards of one short row each."""
    with tempfile.TemporaryDirectory() as name:
        documents = [chat(60, row) for row in range(shards)]
        publish_documents(Path(name) / "d", documents, sequence_length=64, rows_per_shard=1)
        begin = time.process_time()
        stream = Loader(Path(name) / "d", global_batch_size=8, threads=0)
        opened = time.process_time() - begin
        next(stream).input_ids.data_ptr()
        return {f"{shards:,} shards": opened, "and the first batch": time.process_time() - begin}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6400)
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shards", type=int, default=0, help="also open a dataset of so many shards (10000 is a bar)")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    turns = measure(options.rows, options.sequence_length, options.repeats, options.batch)
    us = {label: min(of) for label, of in turns.items()}

    def ratio(label: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(turns[label], turns[to], strict=True))

    def difference(label: str, to: str) -> float:
        return statistics.median(a - b for a, b in zip(turns[label], turns[to], strict=True))

    order = measure_order(options.repeats)
    opened = measure_open(options.shards) if options.shards else {}
    proving = {when: 1 - ratio(f"full, pread, off{when}", f"full, pread{when}") for when in ("", ", first epoch")}
    bars = [
        ("HF datasets / full pread", ratio("HF datasets", "full, pread"), ">=", 10.0),
        ("HF + DataLoader / full pread", ratio("HF + DataLoader", "full, pread"), ">=", 20.0),
        ("HF datasets / full mmap", ratio("HF datasets", "full, mmap"), ">=", 15.0),
        ("HF + DataLoader / full mmap", ratio("HF + DataLoader", "full, mmap"), ">=", 25.0),
        ("ids pread / C gather pread", ratio("ids, pread", "C gather, pread"), "<=", 1.5),
        ("ids mmap / C gather mmap", ratio("ids, mmap", "C gather, mmap"), "<=", 1.5),
        *((f"proving{when}, share of the throughput", share, "<=", 0.1) for when, share in proving.items()),
        ("prefetch, µs per sequence", difference("full, pread, 2 threads", "full, pread"), "<=", 5.0),
        ("order, ns per index, slowest", max(v for k, v in order.items() if "set" not in k), "<=", 20.0),
        ("order, set up at 10^8, ms", order["set up at 10^8, ms"], "<=", 1.0),
        *((f"open {label}, CPU s", value, "<=", 1.0) for label, value in opened.items() if "shards" in label),
    ]
    first = {
        "HF datasets / first epoch": ratio("HF datasets", "full, pread, first epoch"),
        "HF + DataLoader / first epoch": ratio("HF + DataLoader", "full, pread, first epoch"),
    }
    if options.json:
        machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        out = {"us_per_sequence": us, "turns": turns, "first_epoch": first, "order_ns": order}
        print(json.dumps({**out, "bars": bars, **machine, **vars(options)}, indent=1))
    else:
        for label, value in us.items():
            print(f"{label:32} {value:8.2f} µs/sequence")
        for label, value in order.items():
            print(f"order {label:26} {value:8.2f} {'' if 'ms' in label else 'ns/index'}")
        for label, value in first.items():
            print(f"{label:32} {value:8.2f} (a new loader: its facts are decoded in it)")
    for label, value in opened.items() if not options.json else ():
        print(f"open {label:27} {value:8.2f} CPU s")
    missed = False
    for label, value, sign, bar in bars:
        holds = value >= bar if sign == ">=" else value <= bar
        missed |= not holds
        print(f"{'ok  ' if holds else 'MISS'} {label}: {value:.2f} (bar {sign} {bar:g})", file=sys.stderr)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
