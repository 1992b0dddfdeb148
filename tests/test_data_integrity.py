"""A byte that is not what the manifest says never reaches a batch: it is an error that names shard, region and rows."""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash

import maskpipe
from maskpipe import _core
from maskpipe.errors import DatasetError
from maskpipe.shards.batches import batch_hashes
from maskpipe.shards.format import REGION_SIZE
from maskpipe.shards.manifest import manifest_hash
from maskpipe.shards.reader import Dataset
from tests.made_datasets import chat, publish_documents

torch = pytest.importorskip("torch")
from maskpipe.data import Batch, Loader  # noqa: E402

LONG = os.environ.get("MASKPIPE_LONG") == "1"
TRIALS = 1000 if LONG else 16
LENGTH, GLOBAL = 512, 50
MESSAGE = re.compile(
    r"part-\d+-[0-9a-f]{16}\.arrow: (region \d+ \(bytes \d+ to \d+, (no )?rows|has \d+ bytes|cannot be)"
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,100 rows in two shards, of five regions and of one."""
    path = tmp_path_factory.mktemp("data") / "d"
    documents = [chat(LENGTH - row % 60, row, weighted=row % 5 == 0) for row in range(1100)]
    manifest = publish_documents(path, documents, sequence_length=LENGTH, rows_per_shard=1000, vocab_size=1000)
    assert [len(shard.regions) // 16 for shard in manifest.shards] == [5, 1]
    return path


def tensors(batch: Batch) -> list[torch.Tensor]:
    return [batch.input_ids, batch.labels, batch.position_ids, batch.cu_seqlens, batch.run_ends, batch.run_weights]


def loader(out: Path, **arguments: Any) -> Loader:
    return Loader(out, global_batch_size=GLOBAL, epochs=2, **arguments)


@pytest.fixture(scope="module")
def expected(out: Path) -> list[list[torch.Tensor]]:
    return [tensors(batch) for batch in loader(out)]


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def read_on(stream: Loader, expected: list[list[torch.Tensor]], first: int) -> str:
    """Reads to the end: every batch must be right. What was raised, or nothing."""
    try:
        for number, batch in enumerate(stream, first):
            for got, right in zip(tensors(batch), expected[number], strict=True):
                assert torch.equal(got, right), f"batch {number} is wrong and was given out"
    except DatasetError as error:
        assert MESSAGE.search(str(error)), error
        return str(error)
    return ""


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_a_flipped_bit_is_raised_before_the_batch(out: Path, expected: list[list[torch.Tensor]], io: Any) -> None:
    """Before opening, all are raised. While running, all are that are read again; what is not read is harmless."""
    shards = maskpipe.open(out).manifest.shards
    draw = random.Random(io)
    seen: Counter[str] = Counter()
    for trial in range(TRIALS):
        shard = draw.choice(shards)
        bit = draw.randrange(shard.size * 8)
        where = f"{shard.name}: region {bit // 8 // REGION_SIZE} (bytes "
        running = trial % 2 == 1
        # Without a cache facts are read again for each row, so flips in them are found too; slow, so not always.
        cache = 0 if trial % 8 < 2 else 256 << 20
        stream = loader(out, io=io, threads=trial % 3, prefetch=2, cache_bytes=cache)
        read = draw.randrange(1, 30) if running else 0
        for number in range(read):
            assert torch.equal(next(stream).input_ids, expected[number][0])
        flip(out / shard.name, bit)
        try:
            raised = read_on(stream, expected, read)
        finally:
            flip(out / shard.name, bit)
        assert where in raised or (running and not raised), (raised, where)
        seen["while running: " * running + ("raised" if raised else "not used")] += 1
    print(f"{TRIALS} flipped bits with {io}: {dict(seen)}, wrong batches 0")
    assert seen["raised"] == TRIALS // 2
    assert seen["while running: raised"] > (TRIALS // 4 if LONG else 0)


def test_a_truncated_shard_is_raised_before_the_batch(out: Path, expected: list[list[torch.Tensor]]) -> None:
    shards = maskpipe.open(out).manifest.shards
    draw = random.Random(1)
    seen: Counter[str] = Counter()
    for trial in range(TRIALS):
        shard = draw.choice(shards)
        path = out / shard.name
        size = draw.randrange(shard.size)
        running = trial % 2 == 1
        stream = loader(out, threads=trial % 3, prefetch=2)
        read = draw.randrange(1, 30) if running else 0
        for _ in range(read):
            next(stream)
        whole = path.read_bytes()
        os.truncate(path, size)
        try:
            raised = read_on(stream, expected, read)
        finally:
            path.write_bytes(whole)
        assert shard.name in raised or (running and not raised), (trial, raised)
        seen["while running: " * running + ("raised" if raised else "not used")] += 1
    print(f"{TRIALS} truncations: {dict(seen)}, wrong batches 0, deaths 0")
    assert seen["raised"] == TRIALS // 2
    assert seen["while running: raised"] > (TRIALS // 4 if LONG else 0)


def test_after_an_error_the_loader_stands_where_it_was(out: Path, expected: list[list[torch.Tensor]]) -> None:
    shard = maskpipe.open(out).manifest.shards[0]
    stream = loader(out, cache_bytes=0)
    batches = [tensors(next(stream)) for _ in range(3)]
    state = stream.state_dict()
    flip(out / shard.name, 8 * 1_500_000)
    try:
        for _ in range(2):
            with pytest.raises(DatasetError, match="region 1"):
                for batch in stream:
                    batches.append(tensors(batch))
                    state = stream.state_dict()
        assert stream.state_dict() == state
    finally:
        flip(out / shard.name, 8 * 1_500_000)
    batches += [tensors(batch) for batch in stream]
    assert len(batches) == len(expected)
    assert all(
        torch.equal(a, b) for got, right in zip(batches, expected, strict=True) for a, b in zip(got, right, strict=True)
    )


@pytest.mark.parametrize("io", ["pread", "mmap"])
@pytest.mark.parametrize("threads", [0, 2])
def test_a_shard_that_is_put_back_under_its_name_is_read(
    out: Path, expected: list[list[torch.Tensor]], tmp_path: Path, threads: int, io: Any
) -> None:
    """As the error advises: a copy of the file, renamed into place, which a file still open would not show."""
    shard = out / maskpipe.open(out).manifest.shards[0].name
    stream = loader(out, cache_bytes=0, threads=threads, io=io)
    batches = [tensors(next(stream)) for _ in range(3)]
    whole = shard.read_bytes()
    (tmp_path / "copy").write_bytes(whole)
    with shard.open("r+b") as file:  # the same file, as every descriptor sees it
        file.write(bytes(len(whole)))
    try:
        with pytest.raises(DatasetError, match="region"):
            batches.extend(map(tensors, stream))
    finally:
        (tmp_path / "copy").replace(shard)
    batches += map(tensors, stream)
    assert len(batches) == len(expected)
    assert all(
        torch.equal(a, b) for got, right in zip(batches, expected, strict=True) for a, b in zip(got, right, strict=True)
    )


def test_off_proves_nothing(out: Path, expected: list[list[torch.Tensor]]) -> None:
    """What that setting gives up, so that nobody thinks it does not."""
    shard = maskpipe.open(out).manifest.shards[0]
    stream = loader(out, verify="off", threads=0)
    flip(out / shard.name, 8 * 700_000)
    try:
        assert not all(torch.equal(next(stream).input_ids, expected[k][0]) for k in range(22))
    finally:
        flip(out / shard.name, 8 * 700_000)


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_every_bit_of_a_row_counts_and_none_beside_it(out: Path, expected: list[list[torch.Tensor]], io: Any) -> None:
    """However often a row was read before, its own bytes and no others are looked at."""
    shard, epoch = maskpipe.open(out).manifest.shards[1], len(expected) // 2
    stream = Loader(out, global_batch_size=GLOBAL, io=io, threads=0, shuffle=False)
    state = stream.state_dict()
    last = [next(stream).input_ids.clone() for _ in range(2 * epoch)][epoch - 1]
    place = (out / shard.name).read_bytes().index(last[-1].to(torch.int32).numpy().tobytes())
    draw = random.Random(2)
    for byte in [place - 1, place, place + 4 * LENGTH - 1, *(place + draw.randrange(4 * LENGTH) for _ in range(20))]:
        bit = 8 * byte + draw.randrange(8)
        flip(out / shard.name, bit)
        wrong = shard.rows - 1 - (byte < place)
        try:
            stream.load_state_dict(state)
            with pytest.raises(DatasetError, match=rf"region 0 .* the manifest says; needed for row {wrong}\b"):
                for _ in range(epoch):
                    next(stream)
        finally:
            flip(out / shard.name, bit)
    stream.load_state_dict(state)
    assert torch.equal([next(stream).input_ids for _ in range(epoch)][-1], last)


@pytest.mark.parametrize("io", ["pread", "mmap"])
@pytest.mark.parametrize("expand", ["host", "device"])
@pytest.mark.parametrize("length", [5, 64, 256, 301, 1000])
def test_a_row_of_any_length_is_copied_and_proved_whole(tmp_path: Path, length: int, expand: Any, io: Any) -> None:
    """Rows end inside a page, at its end and at no multiple of anything; ids are widened, or copied as they are."""
    manifest = publish_documents(
        tmp_path / "d", [chat(length, row) for row in range(3)], sequence_length=length, rows_per_shard=3
    )
    shard = tmp_path / "d" / manifest.shards[0].name
    rows = [torch.from_numpy(row.input_ids.copy()) for row in maskpipe.open(tmp_path / "d")]
    stream = Loader(tmp_path / "d", global_batch_size=3, io=io, expand=expand, threads=0, shuffle=False)
    state = stream.state_dict()
    for _ in range(3):
        assert torch.equal(next(stream).input_ids, torch.stack(rows).long())
    place = shard.read_bytes().index(rows[1].numpy().tobytes())
    draw = random.Random(length)
    for bit in {0, 32 * length - 1, *(draw.randrange(32 * length) for _ in range(20))}:
        flip(shard, 8 * place + bit)
        stream.load_state_dict(state)
        with pytest.raises(DatasetError, match=r"not what the manifest says; needed for row 1\b"):
            next(stream)
        flip(shard, 8 * place + bit)
    assert torch.equal(next(stream).input_ids, torch.stack(rows).long())


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_a_footer_may_lie_across_regions(tmp_path: Path, io: Any) -> None:
    """Where a region ends inside the footer, both are proved before a byte of it is used."""
    for rows in range(235, 255):
        path = tmp_path / str(rows)
        manifest = publish_documents(
            path, [chat(LENGTH, row) for row in range(rows)], sequence_length=LENGTH, rows_per_shard=rows
        )
        (shard,) = manifest.shards
        data = (path / shard.name).read_bytes()
        footer = shard.size - 10 - int.from_bytes(data[-10:-6], "little")
        if footer < REGION_SIZE < shard.size:
            break
    else:
        pytest.fail("no dataset of these has a footer across regions")
    right = torch.stack([torch.from_numpy(row.input_ids.copy()).long() for row in maskpipe.open(path)])
    assert torch.equal(next(Loader(path, global_batch_size=rows, shuffle=False, io=io)).input_ids, right)
    for byte in (footer, REGION_SIZE - 1, REGION_SIZE, shard.size - 11):
        flip(path / shard.name, 8 * byte)
        with pytest.raises(DatasetError, match=f"region {byte // REGION_SIZE} .*not what the manifest says"):
            next(Loader(path, global_batch_size=1, io=io))
        flip(path / shard.name, 8 * byte)


def test_hashes_that_were_written_wrong_are_refused(tmp_path: Path) -> None:
    """A manifest of bytes that are its own, with a hash of a batch that is not: never read as if it were."""
    publish_documents(tmp_path / "d", [chat(60, row) for row in range(9)], rows_per_shard=9)
    values = json.loads((tmp_path / "d" / "manifest.json").read_bytes())
    values["shards"][0]["batches"] = "0" * 16
    raw = json.dumps(values).encode()
    (tmp_path / "d" / "manifest.json").write_bytes(raw)
    (tmp_path / "d" / "manifest.sha256").write_bytes(manifest_hash(raw))
    with pytest.raises(DatasetError, match=r"region 0 .*not what their own hash says, though the region is .*row \d"):
        next(Loader(tmp_path / "d", global_batch_size=3))


def test_numbers_that_lie_under_right_hashes_are_refused_or_change_no_id(tmp_path: Path) -> None:
    """Who wrote them made all hashes anew: lengths, offsets, counts of the metadata, one after the other."""
    manifest = publish_documents(tmp_path / "d", [chat(45 + row, row) for row in range(4)], rows_per_shard=4)
    (shard,) = manifest.shards
    path = tmp_path / "d" / shard.name
    data = path.read_bytes()
    whole = next(Loader(tmp_path / "d", global_batch_size=4, shuffle=False, threads=0)).input_ids.clone()
    first, size, _ = _core.read_footer(data[-10 - _core.footer_size(data[-10:], len(data)) : -10], len(data))[0]
    seen: Counter[str] = Counter()
    for place in range(first, first + size, 8):
        for value in (-1, 8, 2**31 - 1, 2**62):
            forged = data[:place] + value.to_bytes(8, "little", signed=True) + data[place + 8 :]
            path.write_bytes(forged)
            regions, batches = xxhash.xxh3_64_hexdigest(forged), shard.batches
            with contextlib.suppress(ValueError):
                batches = batch_hashes(lambda size, offset, of=forged: of[offset : offset + size], len(forged))
            entry = replace(shard, regions=regions, batches=batches)
            dataset = Dataset(tmp_path / "d", replace(manifest, shards=(entry,)))
            try:
                batch = next(Loader(dataset, global_batch_size=4, shuffle=False, threads=0, io="mmap"))
            except DatasetError as error:
                assert shard.name in str(error), (place, value, error)
                seen["refused"] += 1
            else:
                assert torch.equal(batch.input_ids, whole)
                seen["the same ids"] += 1
    print(f"{seen.total()} numbers of a record batch: {dict(seen)}")
    assert seen["refused"] > 200


@pytest.mark.parametrize("what", ["missing", "link", "directory", "pipe"])
def test_what_is_no_shard_is_named(tmp_path: Path, what: str) -> None:
    manifest = publish_documents(tmp_path / "d", [chat(60, row) for row in range(9)], rows_per_shard=9)
    path = tmp_path / "d" / manifest.shards[0].name
    path.rename(tmp_path / "moved")
    if what == "link":
        path.symlink_to(tmp_path / "moved")
    elif what == "directory":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    with pytest.raises(DatasetError, match=path.name):
        next(Loader(tmp_path / "d", global_batch_size=3))


MEMORY = """
import resource, sys
from pathlib import Path
from maskpipe.data import Loader

def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

steps = int(sys.argv[2])
loader = Loader(sys.argv[1], global_batch_size=50, threads=2)
for step in range(1, steps + 1):
    next(loader)
    if step == steps // 10:
        first = rss()
print(first, rss())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_does_not_grow(out: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(out), "5000"], capture_output=True, text=True, check=True, timeout=600
    )
    first, last = map(int, done.stdout.split())
    print(f"RSS after 500 batches {first / 2**20:.1f} MiB, after 5,000 {last / 2**20:.1f} MiB")
    assert last < first * 1.05


@pytest.mark.parametrize("io", ["pread", "mmap"])
def test_bytes_that_change_to_and_fro_are_in_no_batch(out: Path, expected: list[list[torch.Tensor]], io: Any) -> None:
    """Ids, facts, and what says where they lie: a batch is right, or it is an error that names a region."""
    shard = maskpipe.open(out).manifest.shards[0]
    data = (out / shard.name).read_bytes()
    first, size, _ = _core.read_footer(data[-10 - _core.footer_size(data[-10:], len(data)) : -10], len(data))[0]
    places = [*range(first, first + size, 101), *range(first + size, first + REGION_SIZE, 40_009)]
    seen: Counter[str] = Counter()
    ended = threading.Event()

    def change() -> None:
        with (out / shard.name).open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
            for place in itertools.cycle(places):
                for changed in (0x80, 0):
                    mapping[place] = data[place] ^ changed
                    ended.wait(0.0003)
                if ended.is_set():
                    return

    writer = threading.Thread(target=change)
    writer.start()
    try:
        stream, number = loader(out, io=io, threads=2, prefetch=2, cache_bytes=0), 0
        while (seen["right"] < 5 * TRIALS or seen["raised"] < TRIALS) and seen.total() < 400 * TRIALS:
            try:
                batch = next(stream)
            except DatasetError as error:
                assert MESSAGE.search(str(error)), error
                seen["raised"] += 1
                continue
            except StopIteration:
                stream, number = loader(out, io=io, threads=2, prefetch=2, cache_bytes=0), 0
                continue
            for got, right in zip(tensors(batch), expected[number], strict=True):
                assert torch.equal(got, right), f"batch {number} is wrong and was given out"
            number += 1
            seen["right"] += 1
    finally:
        ended.set()
        writer.join()
    print(f"bytes that change to and fro, with {io}: {dict(seen)}, wrong batches 0")
    assert seen["right"] and seen["raised"]
