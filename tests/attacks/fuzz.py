"""Mutants by the ten thousand: chat lines, shards, manifests. A mutant is refused, or means what it says; nothing else.

    python -m tests.attacks.fuzz lines 50000 --seed 1      shards 100000      loads 30000      manifests 100000

Run under AddressSanitizer and UBSan by `make fuzz`. A failing mutant is written to the directory of `--keep`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from maskpipe import demo_data
from maskpipe.chat import Conversation, read_record
from maskpipe.encoder import Encoder
from maskpipe.errors import DatasetError, RecordError
from maskpipe.recipe import Recipe
from maskpipe.shards import rows as rows_module
from maskpipe.shards.batches import batch_hashes
from maskpipe.shards.format import REGION_SIZE
from maskpipe.shards.manifest import Manifest, Shard, manifest_hash
from maskpipe.shards.reader import Dataset, ShardReader
from maskpipe.shards.reader import open as open_dataset
from maskpipe.shards.verify import verify
from maskpipe.sources import open_sources
from maskpipe.tokenizer import Tokenizer
from tests.made_datasets import chats, publish_documents
from tests.reference.check import violations

# --- chat lines -------------------------------------------------------------------------------------------------------

SEEDS = [
    '{"messages": [{"role": "user", "content": "Hi é🎉"}, '
    '{"role": "assistant", "content": "Hello\\n\\u00e9\\ud83c\\udf89"}]}',
    '{"conversations": [{"from": "human", "value": "1.0 or 1?"}, {"from": "gpt", "value": "1e0", "weight": 0.5}]}',
    '{"prompt": "a\\tb", "completion": " c\u2028d"}',
    '{"instruction": "x", "input": null, "output": "y", "n": -0.0, "m": 12345678901234567890}',
    '{"messages": [{"role": "user", "content": [{"type": "text", "text": "p"}]}, '
    '{"role": "assistant", "content": null, "tool_calls": [{"type": "function", '
    '"function": {"name": "f", "arguments": {"b": 1, "a": [true, null, 1.50]}}}]}, '
    '{"role": "tool", "content": "{\\"r\\": 1}"}, '
    '{"role": "assistant", "content": "done", "reasoning_content": "so"}], '
    '"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]}',
    '[{"role": "user", "content": ""}, {"role": "assistant", "content": " ", "train": false}]',
]
PIECES = [
    *'{}[]",:\\\t u0', '""', "null", "true", "false", "NaN", "Infinity", "-Infinity", "1e999", "-0", "0.1e-7",
    "01", "1.",
    "9" * 40, "9" * 4301, "\\ud800", "\\udc00", "\\ud83c\\udf89", "\\u0000", "\\u0022", "\\/", "\x00", "\x1f", "\x7f",
    "\u2028", "\ufeff", "\ue000", "\U0010ffff", '"role"', '"content"', '"messages"', '"role": "user"',
    '"weight": 2',
    '"content": "a", ', "[" * 30, "{" * 3, '{"a":' * 210, "/**/", "<|done|>", "<|turn|>assistant\n", "<think>", "'",
]  # fmt: skip


def mutated_tree(value: Any, chance: random.Random) -> Any:
    """The value with one thing in it changed that leaves it JSON."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        key = chance.choice(list(value))
        match chance.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, chance.choice(WORDS): chance.choice(VALUES)}
            case 2:
                return dict(sorted(value.items(), key=lambda item: chance.random()))
            case 3:
                return {chance.choice(WORDS) if k == key else k: v for k, v in value.items()}
        return {k: mutated_tree(v, chance) if k == key else v for k, v in value.items()}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        match chance.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value, value[at]]
        return [mutated_tree(entry, chance) if number == at else entry for number, entry in enumerate(value)]
    if isinstance(value, str) and chance.random() < 0.7:
        at = chance.randrange(len(value) + 1)
        return value[:at] + chance.choice(TEXTS) + value[at:]
    return chance.choice(VALUES)


WORDS = (
    "role",
    "content",
    "from",
    "value",
    "weight",
    "train",
    "system",
    "tools",
    "text",
    "name",
    "id",
    "messages",
    "é",
)
TEXTS = (
    "", " ", "\n", "\r\n", "\t", "\0", "<|done|>", "<|turn|>user\n", "<think>", "</think>", "é", "e\u0301",
    "🎉",
    "\u2028", "\ufeff", "\ue000", "\U0010ffff", "{{ 7 * 7 }}", "{% if %}", "a" * 500, "\u202e", "\x1b[0m",
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 0.5, 1e300, 10**30, "", " ", "user", "assistant", "system", "tool", [], {}, ["a"],
    {"a": 1}, [{"type": "text", "text": "t"}], "[1]", '{"a": 1}', [None],
)  # fmt: skip


def mutated_text(chance: random.Random) -> bytes:
    value = json.loads(chance.choice(SEEDS))
    for _ in range(chance.choice((1, 1, 2, 4))):
        value = mutated_tree(value, chance)
    style = {"ensure_ascii": chance.random() < 0.5, "separators": chance.choice([None, (",", ":"), (" ,  ", "\t: ")])}
    return json.dumps(value, **style).encode()


def mutated_line(chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        return mutated_text(chance)
    line = bytearray(chance.choice(SEEDS).encode())
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 8))):
        at = chance.randrange(len(line) + 1)
        match chance.randrange(9):
            case 0:
                line[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del line[at : at + chance.choice((1, 1, 2, 9, 40))]
            case 2 | 3 | 4:
                line[at : at + chance.choice((0, 0, 1, 4))] = chance.choice(PIECES).encode()
            case 5:  # a part of the line again
                start = chance.randrange(len(line) + 1)
                line[at:at] = line[start : start + chance.randrange(1, 60)]
            case 6:
                other = chance.choice(SEEDS).encode()
                start = chance.randrange(len(other))
                line[at:at] = other[start : start + chance.randrange(1, 60)]
            case 7:  # one string in the place of another
                strings = [part for part in bytes(line).split(b'"') if part]
                if strings:
                    changed = bytes(line).replace(chance.choice(strings), chance.choice(strings), 1)
                    line = bytearray(changed)
            case 8:
                line = line[:at]
    text = bytes(line).replace(b"\n", b" ").replace(b"\r", b" ")
    return text if text.strip() else b"0"


def tree(text: str) -> Any:
    """What Python's json reads, with the order of keys, double keys and the kinds of numbers in sight."""
    return json.loads(
        text,
        object_pairs_hook=lambda pairs: ("object", pairs),
        parse_int=lambda digits: ("int", int(digits)),
        parse_float=lambda digits: ("float", float(digits).hex()),
    )


def tree_of(value: Any) -> Any:
    if isinstance(value, dict):
        return ("object", [(key, tree_of(entry)) for key, entry in value.items()])
    if isinstance(value, list):
        return [tree_of(entry) for entry in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    return ("int", value) if isinstance(value, int) else ("float", value.hex())


def fuzz_lines(count: int, seed: int, keep: Callable[[bytes], None]) -> Counter[str]:
    chance = random.Random(seed)
    recipe = Recipe(sequence_length=4096)
    encoder = Encoder(Tokenizer.load(demo_data.tokenizer()), recipe)
    twin = Encoder(Tokenizer.load(demo_data.tokenizer()), recipe)
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=fast_directory()) as directory:
        path = Path(directory) / "a.jsonl"
        while (done := sum(results.values())) < count:
            lines = [mutated_line(chance) for _ in range(min(200, count - done))]
            # The first line says what the file is; it is not a mutant.
            path.write_bytes(b"\n".join([SEEDS[0].encode(), *lines]) + b"\n")
            found = [record for _, _, record in open_sources(path).records()][1:]
            if len(found) != len(lines):
                keep(path.read_bytes())
                raise AssertionError(f"{len(lines)} lines were read as {len(found)} records")
            for line, record in zip(lines, found, strict=True):
                try:
                    results[judge_line(line, record, encoder, twin)] += 1
                except BaseException:
                    keep(line)
                    raise
    return results


def judge_line(line: bytes, record: Any, encoder: Encoder, twin: Encoder) -> str:
    if isinstance(record, RecordError):
        return f"refused {record.reason}"
    assert tree_of(record) == tree(line.decode("utf-8")), "accepted, with another meaning than Python's json gives it"
    try:
        parsed = read_record(record, encoder.recipe)
    except RecordError as error:
        return f"no conversation: {error.reason}"
    same = read_record(json.loads(line), twin.recipe)
    assert parsed == same, "another conversation than from Python's json"
    encoded = encoder.encode(parsed)
    if encoded.refused is not None:
        return f"not encoded: {encoded.refused.reason}"
    tokens = sum(len(document) for document in encoded.documents)
    gone = sum(n for name, n in encoded.counts.items() if name.startswith(("tokens_truncated", "tokens_dropped_")))
    assert tokens + gone == encoded.counts["tokens"], "tokens do not add up"
    if isinstance(parsed, Conversation):
        spoken = {index for index, message in enumerate(parsed.messages) if message["role"] == "assistant"}
        for document in encoded.documents:
            trained = set(document.message_ids[document.loss_mask > 0].tolist())
            assert trained <= spoken, "loss on a message that is not the assistant's"
    return "encoded"


# --- shards -----------------------------------------------------------------------------------------------------------

INTERESTING = (0, 1, -1, 2, 3, 7, 15, 16, 17, 255, 256, 999, 1000, 0x7FFFFFFF, -0x80000000, 0x7FFFFFFE, 64, 4096)


def mutated_bytes(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        at = chance.randrange(len(out)) if out else 0
        match chance.randrange(10):
            case 0 | 1 | 2:
                out[at] ^= 1 << chance.randrange(8)
            case 3:
                out[at] = chance.randrange(256)
            case 4 | 5 | 6:  # one aligned number
                at -= at % 4
                out[at : at + 4] = chance.choice(INTERESTING).to_bytes(4, "little", signed=True)
            case 7:
                out[at : at + 8] = chance.choice((0, 1, 8, 64, 2**31, 2**63 - 1)).to_bytes(8, "little")
            case 8:
                start = chance.randrange(len(out))
                length = chance.choice((4, 8, 64, 300))
                out[at : at + length] = out[start : start + length]
            case 9:
                if chance.random() < 0.5:
                    del out[at : at + chance.choice((1, 4, 8, 64))]
                else:
                    out = out[:at]
        if not out:
            return b""
    return bytes(out)


def mutated_rows(rows: rows_module.Rows, chance: random.Random) -> rows_module.Rows:
    """One or two values of the arrays changed: valid Arrow, so that the rules of the format are what is left."""
    changed = {name: np.array(value) for name, value in vars(rows).items()}
    for _ in range(chance.choice((1, 1, 2))):
        name = chance.choice(
            [key for key in ("input_ids", "runs", "documents", "verdicts", "weights", "n_loss") if changed[key].size]
        )
        array = changed[name].reshape(-1)
        at = chance.randrange(array.size)
        number = chance.choice((*INTERESTING, int(array[at]) + 1 if array.dtype.names is None else 5))
        if array.dtype.names is None:
            array[at] = np.clip(number, -(2**31), 2**31 - 1)
            continue
        field = chance.choice(array.dtype.names)
        kind = array.dtype[field]
        near = int(array[field][at]) + chance.choice((-1, 1)) if chance.random() < 0.5 and kind.kind in "iu" else number
        with np.errstate(all="ignore"):
            array[field][at] = np.array(near).astype(kind) if kind.kind in "iu" else np.float32(number)
    return rows_module.Rows(**changed)


def arrow_file(rows: rows_module.Rows, schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as stream:
        stream.write_batch(rows_module.to_batch(rows, schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def raw_of(rows: rows_module.Rows) -> list[bytes]:
    return [np.ascontiguousarray(value).tobytes() for value in vars(rows).values()]


def twin_finds(rows: rows_module.Rows, manifest: Manifest) -> bool:
    """Does the slow twin of the core's check find anything wrong?"""
    for r in range(len(rows)):
        runs = rows.runs[rows.run_offsets[r] : rows.run_offsets[r + 1]]
        documents = rows.documents[rows.document_offsets[r] : rows.document_offsets[r + 1]]
        facts = [(int(run["role"]), int(run["part"]), int(run["flags"]), int(run["message"])) for run in runs]
        if violations(
            rows.input_ids[r].tolist(), runs["end"].tolist(), facts, documents["end"].tolist(), int(rows.n_loss[r]),
            manifest.sequence_length, manifest.vocab_size,
        ):  # fmt: skip
            return True
    return False


def fuzz_shards(count: int, seed: int, keep: Callable[[bytes], None]) -> Counter[str]:
    chance = random.Random(seed)
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=fast_directory()) as directory:
        out = Path(directory) / "out"
        publish_documents(out, chats([16, 9, 5, 40]), sequence_length=48)
        manifest = open_dataset(out).manifest
        entry = manifest.shards[0]
        path = out / entry.name
        good = path.read_bytes()
        reader = ShardReader(out, manifest, 0)
        rows = reader.batch(0)
        schema = reader._stream.schema
        before, whole = rows_module.digests(rows), raw_of(rows)
        reader.close()
        while sum(results.values()) < count:
            kind = chance.choice(("bytes", "bytes", "rows", "unsealed"))
            data = arrow_file(mutated_rows(rows, chance), schema) if kind == "rows" else mutated_bytes(good, chance)
            if data == good:
                continue
            put(path, data)
            sealed = manifest if kind == "unsealed" else replace(manifest, shards=(with_hashes(entry, data),))
            try:
                results[f"{kind} {judge_shard(out, sealed, before, whole)}"] += 1
            except BaseException:
                keep(data)
                raise
            assert kind != "unsealed" or not results["unsealed same rows"], "changed bytes passed under their old hash"
    return results


def put(path: Path, data: bytes) -> None:
    """In the same file each time: no directory is touched."""
    with open(path, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, 0)
        os.ftruncate(file.fileno(), len(data))


def with_hashes(entry: Shard, data: bytes) -> Shard:
    """The entry of a shard that has these bytes, as far as hashes go."""
    regions = "".join(xxhash.xxh3_64_hexdigest(data[at : at + REGION_SIZE]) for at in range(0, len(data), REGION_SIZE))
    try:
        batches = batch_hashes(lambda size, offset: data[offset : offset + size], len(data))
    except ValueError:
        batches = ""
    if len(batches) != len(entry.batches):  # of no use to anyone: the manifest would be refused
        batches = entry.batches
    return Shard(entry.name, len(data), entry.sha256, regions, batches, entry.counts)


def judge_shard(out: Path, manifest: Manifest, before: bytes, whole: list[bytes]) -> str:
    try:
        reader = ShardReader(out, manifest, 0)
    except DatasetError:
        return "refused"
    try:
        rows = reader.batch(0)
    except DatasetError:
        return "refused"
    finally:
        reader.close()
    assert not twin_finds(rows, manifest), "rows that break a rule passed"
    try:
        rows_module.count(rows)
        after = rows_module.digests(rows)
    except ValueError:
        return "refused"
    if after == before:
        assert raw_of(rows) == whole, "other rows with the digests of the right ones"
        return "same rows"
    return "other rows, so another fingerprint"


# --- shards, through the loader's own reader --------------------------------------------------------------------------


def fuzz_loads(count: int, seed: int, keep: Callable[[bytes], None]) -> Counter[str]:
    from maskpipe.data import Loader

    chance = random.Random(seed)
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=fast_directory()) as directory:
        made = []
        for number, (length, documents) in enumerate(((48, [16, 9, 5, 40]), (301, [300, 77, 150, 299, 31, 12]))):
            out = Path(directory) / str(number)
            manifest = publish_documents(out, chats(documents), sequence_length=length, rows_per_shard=len(documents))
            good = (out / manifest.shards[0].name).read_bytes()
            right = next(Loader(out, global_batch_size=len(open_dataset(out)), shuffle=False, threads=0))
            made.append((out, manifest, good, right.input_ids.clone()))
        while sum(results.values()) < count:
            out, manifest, good, ids = chance.choice(made)
            data = mutated_bytes(good, chance)
            if data == good or not data:
                continue
            (entry,) = manifest.shards
            put(out / entry.name, data)
            kind = chance.choice(("sealed", "sealed", "sealed", "unsealed"))
            sealed = manifest if kind == "unsealed" else replace(manifest, shards=(with_hashes(entry, data),))
            verify = "off" if kind == "sealed" and chance.random() < 0.3 else "every_read"
            loader = Loader(
                Dataset(out, sealed), global_batch_size=len(ids), shuffle=False, verify=verify,
                threads=chance.choice((0, 0, 0, 2)), io=chance.choice(("pread", "mmap")),
                train_on=chance.choice((None, "assistant")),
                columns=("labels", "targets", "position_ids", "loss_weights"),
            )  # fmt: skip
            try:
                results[f"{kind} {verify} {judge_load(loader, entry.name, ids if verify != 'off' else None)}"] += 1
            except BaseException:
                keep(data)
                raise
            finally:
                loader.close()  # a mapped file that is read ahead must not shrink
            assert not results["unsealed every_read read"], "changed bytes passed under their old hash"
    return results


def judge_load(loader: Any, name: str, ids: Any) -> str:
    """ids: what the batch must hold, if it is anything that is sure."""
    try:
        batch = next(loader)
    except DatasetError as error:
        assert name in str(error), f"names no shard: {error}"
        return "refused"
    assert ids is None or bool((batch.input_ids == ids).all()), "other ids under the hashes of their rows"
    labels, runs, ends = batch.labels, batch.run_ends.tolist(), batch.cu_seqlens.tolist()
    assert bool(((labels == batch.input_ids) | (labels == -100)).all()), "a label that is not the token's id"
    assert int(batch.position_ids.min()) == 0 and int(batch.position_ids.max()) < 2 * loader.sequence_length
    for places in (runs, ends[1:]):
        assert places[-1] == labels.numel() and places == sorted(set(places)), "runs or segments do not tile the batch"
    assert bool((batch.loss_weights >= 0).all()), "a negative weight"
    return "read"


# --- manifests --------------------------------------------------------------------------------------------------------


def mutated_json(raw: bytes, chance: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        at = chance.randrange(len(data))
        match chance.randrange(6):
            case 0:
                data[at] = chance.choice(b'0123456789abcdef"{}[],: \\-.eE')
            case 1:
                del data[at : at + chance.choice((1, 2, 20))]
            case 2:
                more = (b"0", b"1", b" ", b'"', b"null", b"[]", b'"x": 1,', b"-", b"\xff", b"1e5", b"\\u0030", b"../")
                data[at:at] = chance.choice(more)
            case 3:
                end = chance.randrange(at, min(len(data), at + 60))
                data[at:at] = data[at:end]
            case 4:  # a digit for a digit: what parses most often
                digits = [place for place in range(at, min(len(data), at + 400)) if 48 <= data[place] <= 57]
                if digits:
                    data[chance.choice(digits)] = chance.choice(b"0123456789")
            case 5:
                data[at] ^= 1 << chance.randrange(8)
    return bytes(data)


def fuzz_manifests(count: int, seed: int, keep: Callable[[bytes], None]) -> Counter[str]:
    chance = random.Random(seed)
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=fast_directory()) as directory:
        out = Path(directory) / "out"
        publish_documents(out, chats([16, 9, 5, 12]), sequence_length=16, rows_per_shard=2)
        raw = (out / "manifest.json").read_bytes()
        right = open_dataset(out).manifest
        while sum(results.values()) < count:
            data = mutated_json(raw, chance)
            if data == raw:
                continue
            try:
                results[judge_manifest(out, data, right)] += 1
            except BaseException:
                keep(data)
                raise
    return results


def judge_manifest(out: Path, data: bytes, right: Manifest) -> str:
    try:
        changed = Manifest.from_json(data)
    except DatasetError:
        return "refused"
    if changed == right:
        return "says the same"
    (out / "manifest.json").write_bytes(data)
    (out / "manifest.sha256").write_bytes(manifest_hash(data))
    try:
        verify(out)
    except DatasetError:
        return "refused by verify"
    names = {"sources": tuple(replace(source, name="") for source in right.sources)}
    same = replace(changed, sources=tuple(replace(source, name="") for source in changed.sources))
    assert same == replace(right, **names), "another manifest passed"
    return "other names of sources"


# --- running them -----------------------------------------------------------------------------------------------------

CAMPAIGNS = {"lines": fuzz_lines, "shards": fuzz_shards, "loads": fuzz_loads, "manifests": fuzz_manifests}


def fast_directory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=CAMPAIGNS)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"))
    given = parser.parse_args()

    def keep(data: bytes) -> None:
        given.keep.mkdir(parents=True, exist_ok=True)
        (given.keep / f"{given.what}-{given.seed}").write_bytes(data)
        print(f"the mutant is in {given.keep / f'{given.what}-{given.seed}'}", file=sys.stderr)

    begun = time.process_time()
    results = CAMPAIGNS[given.what](given.count, given.seed, keep)
    print(f"{sum(results.values()):,} {given.what}, seed {given.seed}, {time.process_time() - begun:.0f} s of CPU")
    for name, number in results.most_common():
        print(f"{number:8,}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
