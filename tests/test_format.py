"""docs/FORMAT.md, rule by rule: what a rule allows is read, what breaks it is refused with a message that says so.

Rows that break a rule are written with everything else in order: hashes, counts and fingerprint are those of the broken
rows, so that only the rule itself can refuse them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from maskpipe.errors import DatasetError
from maskpipe.recipe import Recipe
from maskpipe.roles import Flag, Part, Role, Verdict
from maskpipe.shards import rows as rows_module
from maskpipe.shards.batches import batch_hashes
from maskpipe.shards.format import (
    DOCUMENT_DTYPE,
    REGION_SIZE,
    Branch,
    batch_rows,
    sequence_schema,
    shard_metadata,
)
from maskpipe.shards.manifest import Counts, Shard, fingerprint, manifest_hash, recipe_fingerprint
from maskpipe.shards.reader import ShardReader
from maskpipe.shards.reader import open as open_dataset
from maskpipe.shards.rows import Rows, to_batch
from maskpipe.shards.verify import verify
from tests.made_datasets import PAD_ID, VOCAB_SIZE, chat, chats, publish_documents

FORMAT_MD = Path(__file__).resolve().parents[1] / "docs" / "FORMAT.md"
LENGTHS = [40, 64, 3, 17, 33, 25, 64, 8, 11, 50, 29, 31]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Six rows of 64 tokens in one shard; row 0 is one document and full, row 2 ends with padding."""
    publish_documents(tmp_path / "out", chats(LENGTHS), rows_per_shard=100)
    return tmp_path / "out"


def seal(out: Path, values: dict[str, Any]) -> None:
    raw = json.dumps(values).encode()
    (out / "manifest.json").write_bytes(raw)
    (out / "manifest.sha256").write_bytes(manifest_hash(raw))


def manifest_values(out: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((out / "manifest.json").read_bytes())
    return values


def edit_manifest(out: Path, **changes: Any) -> None:
    seal(out, {**manifest_values(out), **changes})


def read_rows(out: Path) -> Rows:
    """All rows of the first shard."""
    return ShardReader(out, open_dataset(out).manifest, 0).batch(0)


def forge(out: Path, change: Callable[[Rows], Rows | None]) -> None:
    """Changes the rows of the first shard and brings everything that depends on them in order."""
    manifest = open_dataset(out).manifest
    rows = read_rows(out)
    rows = Rows(**{name: values.copy() for name, values in vars(rows).items()})
    rows = change(rows) or rows
    metadata = shard_metadata(
        recipe_fingerprint=manifest.recipe_sha256,
        sequence_length=manifest.sequence_length,
        vocab_size=manifest.vocab_size,
        pad_id=manifest.pad_id,
    )
    write_arrow(out, [to_batch(rows, sequence_schema(manifest.sequence_length, metadata))], rows)


def write_arrow(out: Path, batches: list[pa.RecordBatch], rows: Rows | None = None, **options: Any) -> None:
    """Puts another Arrow file in the place of the first shard, with its hashes in the manifest, and what it counts."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as stream:
        for batch in batches:
            stream.write_batch(batch)
    write_bytes(out, sink.getvalue().to_pybytes(), rows)


def write_bytes(out: Path, data: bytes, rows: Rows | None = None) -> None:
    manifest = open_dataset(out).manifest
    (old, *others) = manifest.shards
    sha256 = hashlib.sha256(data).hexdigest()
    regions = "".join(xxhash.xxh3_64_hexdigest(data[at : at + REGION_SIZE]) for at in range(0, len(data), REGION_SIZE))
    try:
        counts = old.counts if rows is None else rows_module.count(rows)
    except ValueError:  # a role or part that has no name: what is counted does not matter, the rows are read first
        counts = old.counts
    if sum(counts.tokens.values()) != counts.sequences * manifest.sequence_length:
        counts = old.counts
    try:
        batches = batch_hashes(lambda size, offset: data[offset : offset + size], len(data))
    except ValueError:  # not of the format, so readers refuse it before they look at these
        batches = old.batches
    if len(batches) != len(old.batches):
        batches = old.batches
    shard = Shard(f"part-00000-{sha256[:16]}.arrow", len(data), sha256, regions, batches, counts)
    (out / old.name).unlink()
    (out / shard.name).write_bytes(data)
    made = replace(manifest, shards=(shard, *others))
    if rows is not None and not others:
        made = replace(made, fingerprint=fingerprint(made, [rows_module.digests(rows)]))
    raw = made.to_json()
    (out / "manifest.json").write_bytes(raw)
    (out / "manifest.sha256").write_bytes(manifest_hash(raw))


def refused(out: Path, message: str, *, row: bool = True) -> None:
    """verify refuses the dataset, and so does reading a row, with this message."""
    with pytest.raises(DatasetError, match=message):
        verify(out)
    if row:
        with pytest.raises(DatasetError, match=message):
            open_dataset(out)[0]


def refused_manifest(out: Path, message: str, **changes: Any) -> None:
    before = manifest_values(out)
    edit_manifest(out, **changes)
    with pytest.raises(DatasetError, match=message) as caught:
        open_dataset(out)
    assert "manifest.json" in str(caught.value)
    seal(out, before)
    open_dataset(out)


def test_every_rule_has_a_test() -> None:
    rules = {int(number) for number in re.findall(r"^- \*\*F(\d+)\*\*", FORMAT_MD.read_text(), re.MULTILINE)}
    here = Path(__file__)
    texts = [here.read_text(), here.with_name("test_merge.py").read_text()]  # F35 and F36 are about several datasets
    tests = {int(number) for text in texts for number in re.findall(r"^def test_f(\d+)_", text, re.MULTILINE)}
    assert rules == tests == set(range(1, max(rules) + 1))


def test_a_forged_dataset_that_breaks_no_rule_is_read(out: Path) -> None:
    forge(out, lambda rows: None)
    verify(out)
    open_dataset(out)[0]


# Directory


def test_f01_opening_demands_a_manifest_and_its_hash(out: Path) -> None:
    import subprocess

    assert subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=out, capture_output=True).returncode == 0
    for name, message in (("manifest.json", r"has no manifest\.json"), ("manifest.sha256", r"has no manifest\.sha256")):
        data = (out / name).read_bytes()
        (out / name).unlink()
        with pytest.raises(DatasetError, match=message):
            open_dataset(out)
        for changed in (data + b" ", data[:-1], data.swapcase(), b""):
            (out / name).write_bytes(changed)
            with pytest.raises(DatasetError, match=r"is not what manifest\.sha256 says"):
                open_dataset(out)
        (out / name).write_bytes(data)
    with pytest.raises(DatasetError, match="no such directory"):
        open_dataset(out / "nowhere")


def test_f01_opening_reads_no_shard(out: Path) -> None:
    (shard,) = open_dataset(out).manifest.shards
    (out / shard.name).unlink()
    dataset = open_dataset(out)
    assert len(dataset) == 6
    with pytest.raises(DatasetError, match=f"{shard.name}: cannot be opened"):
        dataset[0]


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/passwd",
        "..",
        ".hidden",
        "a/b",
        "a\\b",
        "README.md",
        "a b",
        "",
        "x\n",
        "é",
        "run.json",
        "manifest.json",
    ],
)
def test_f02_names_stay_inside_the_directory(out: Path, name: str) -> None:
    files = manifest_values(out)["files"]
    refused_manifest(out, "is no name that a manifest may list", files=[*files, {**files[0], "name": name}])


def test_f02_no_name_is_listed_twice(out: Path) -> None:
    files = manifest_values(out)["files"]
    refused_manifest(out, "listed twice", files=[*files, files[0]])


def test_f02_links_and_pipes_are_not_followed(out: Path) -> None:
    (shard,) = open_dataset(out).manifest.shards
    (out / shard.name).rename(out.parent / "elsewhere.arrow")
    (out / shard.name).symlink_to(out.parent / "elsewhere.arrow")
    refused(out, "is a symbolic link")
    (out / shard.name).unlink()
    os.mkfifo(out / shard.name)
    refused(out, "is no regular file")
    (out / shard.name).unlink()
    (out / shard.name).mkdir()
    refused(out, "is no regular file")


def test_f03_what_is_not_listed_is_outside_or_refused(out: Path) -> None:
    for name in ("report.html", ".gitattributes", "README.md", "run.json"):
        (out / name).write_text("anything")
    verify(out)
    for name in ("part-00001-0000000000000000.arrow", "extra.json", "notes"):
        (out / name).write_text("anything")
        with pytest.raises(DatasetError, match=f"{name} is no part of this dataset"):
            verify(out)
        (out / name).unlink()


def test_f04_unknown_major_versions_are_refused_and_minor_ones_may_add_keys(out: Path) -> None:
    refused_manifest(
        out, r"format 2\.0 is not known to this maskpipe, which reads 1\.x; update maskpipe", format="2.0", new=1
    )
    refused_manifest(out, r"format 0\.9 is not known", format="0.9")
    for text in ("1", "1.0.0", "1.00", "a.b", "", "1.-1", "١.0"):
        refused_manifest(out, "is no format version", format=text)
    refused_manifest(out, "not a maskpipe manifest", format=1.0)
    refused_manifest(out, "unknown keys \\['new'\\]", new=1)
    refused_manifest(out, "label_version must be at least 1", label_version=0)
    edit_manifest(out, format="1.7", new={"anything": 1})
    assert open_dataset(out).manifest.format == (1, 7)


# Manifest


def test_f05_manifests_are_parsed_strictly(out: Path) -> None:
    values = manifest_values(out)
    for key in values:
        rest = {name: value for name, value in values.items() if name != key}
        seal(out, rest)
        with pytest.raises(DatasetError, match=r"missing keys|not a maskpipe manifest"):
            open_dataset(out)
    seal(out, values)
    for key, value in values.items():
        refused_manifest(out, "must be|expected|not a maskpipe manifest", **{key: None})
        if isinstance(value, int):
            refused_manifest(out, "must be int", **{key: str(value)})
            refused_manifest(out, "must be int", **{key: True})
            refused_manifest(out, "must be int", **{key: float(value)})
            refused_manifest(out, "out of range", **{key: -1})
            refused_manifest(out, "out of range", **{key: 2**63})
    (shard,) = values["shards"]
    refused_manifest(out, r"shards\[0\]: unknown keys \['more'\]", shards=[{**shard, "more": 1}])
    refused_manifest(out, r"shards\[0\]: expected an object", shards=[7])
    raw = (out / "manifest.json").read_bytes()
    for text, message in (
        (raw.replace(b'"pad_id"', b'"pad_id": 1, "pad_id"', 1), "the key 'pad_id' stands twice"),
        (raw.replace(b'"pad_id": 7', b'"pad_id": NaN', 1), "NaN is no JSON number"),
        (raw + b"{}", "not valid JSON"),
        (b"\xff" + raw, "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a maskpipe manifest"),
        (b"", "not valid JSON"),
    ):
        (out / "manifest.json").write_bytes(text)
        (out / "manifest.sha256").write_bytes(manifest_hash(text))
        with pytest.raises(DatasetError, match=message):
            open_dataset(out)


def test_f06_the_recipe_is_the_same_in_all_places(out: Path) -> None:
    recipe = manifest_values(out)["recipe"]
    assert Recipe.load(out / "recipe.yaml").to_dict() == recipe
    refused_manifest(out, "recipe_sha256 is not the hash of recipe", recipe={**recipe, "packing": "none"})
    other = {**recipe, "sequence_length": 65}
    refused_manifest(
        out, "the recipe asks for sequence_length 65", recipe=other, recipe_sha256=recipe_fingerprint(other)
    )
    text = (out / "recipe.yaml").read_bytes().replace(b"packing: best_fit", b"packing: none")
    (out / "recipe.yaml").write_bytes(text)
    relist(out, "recipe.yaml")
    with pytest.raises(DatasetError, match=r"recipe\.yaml: is not the recipe in manifest\.json"):
        verify(out)


def relist(out: Path, name: str) -> None:
    """Brings a file's entry in the manifest in order with what the file now holds."""
    data = (out / name).read_bytes()
    entry = {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_manifest(out, files=[entry if file["name"] == name else file for file in manifest_values(out)["files"]])


def test_f07_the_files_of_the_ledger_are_listed(out: Path) -> None:
    files = manifest_values(out)["files"]
    assert [file["name"] for file in files] == ["chat_template.jinja", "dropped.jsonl", "recipe.yaml", "rejects.jsonl"]
    for name in ("dropped.jsonl", "recipe.yaml", "rejects.jsonl"):
        refused_manifest(out, rf"\['{name}'\] is not listed", files=[file for file in files if file["name"] != name])
    for sha256 in ("0" * 63, "A" * 64, "g" * 64):
        refused_manifest(out, "is no SHA-256", files=[{**files[0], "sha256": sha256}, *files[1:]])
    edit_manifest(out, files=[{**files[0], "size": 15}, *files[1:]])
    with pytest.raises(DatasetError, match=r"chat_template\.jinja: has 14 bytes, the manifest says 15"):
        verify(out)


def test_f08_shards_have_their_place_and_hash_in_their_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish_documents(out, chats(LENGTHS), rows_per_shard=2)
    first, second, third = manifest_values(out)["shards"]
    assert first["name"] == f"part-00000-{hashlib.sha256((out / first['name']).read_bytes()).hexdigest()[:16]}.arrow"
    refused_manifest(out, r"shards\[0\] .* stands at place 0", shards=[second, first, third])
    refused_manifest(out, r"shards\[1\] .* stands at place 1", shards=[first, third])
    refused_manifest(out, "does not carry the hash", shards=[{**first, "sha256": "0" * 64}, second, third])
    for name in ("part-0-0000000000000000.arrow", "shard.arrow", "part-00000-../../x.arrow"):
        refused_manifest(out, "is no name of a shard", shards=[{**first, "name": name}, second, third])
    empty = {**first["counts"], "sequences": 0}
    refused_manifest(out, r"shards\[0\] .* has no rows", shards=[{**first, "counts": empty}, second, third])


def test_f09_regions_tile_the_shard(tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish_documents(out, chats([1 << 16] * 9), sequence_length=1 << 16, rows_per_shard=9)
    (shard,) = manifest_values(out)["shards"]
    data = (out / shard["name"]).read_bytes()
    assert len(data) == shard["size"] > 2 * REGION_SIZE
    hashes = [shard["regions"][at : at + 16] for at in range(0, len(shard["regions"]), 16)]
    assert hashes == [xxhash.xxh3_64_hexdigest(data[at : at + REGION_SIZE]) for at in range(0, len(data), REGION_SIZE)]
    for regions in (shard["regions"][:-16], shard["regions"] + "0" * 16, shard["regions"][:-1], ""):
        refused_manifest(out, "regions do not tile", shards=[{**shard, "regions": regions}])
    for text in ("é", "\ud800"):
        refused_manifest(out, "no hexadecimal", shards=[{**shard, "regions": text * len(shard["regions"])}])
    edit_manifest(out, shards=[{**shard, "regions": "g" * len(shard["regions"])}])
    refused(out, r"region \d \(bytes \d+ to \d+\) is not what the manifest says")


def test_f37_batches_are_hashes_of_record_batches_without_their_ids(tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish_documents(out, chats([1 << 16] * 9), sequence_length=1 << 16, rows_per_shard=9)
    (shard,) = manifest_values(out)["shards"]
    data = (out / shard["name"]).read_bytes()
    ids = [row.input_ids.tobytes() for row in open_dataset(out)]
    stream = pa.BufferReader(data)
    stream.seek(8)
    pa.ipc.read_message(stream)  # the schema
    hashes, begin = [], 0
    for rows in (ids[:4], ids[4:8], ids[8:]):
        pa.ipc.read_message(stream)
        batch = data[begin : stream.tell()]
        begin = stream.tell()
        before, found, after = batch.partition(b"".join(rows))
        assert found
        hashes.append(xxhash.xxh3_64_hexdigest(before + after))
    assert shard["batches"] == "".join(hashes)
    for batches in (shard["batches"][:-16], shard["batches"] + "0" * 16, shard["batches"][:-1], ""):
        refused_manifest(out, "hex digits of batches, its 9 rows need 48", shards=[{**shard, "batches": batches}])
    refused_manifest(out, "no hexadecimal", shards=[{**shard, "batches": "é" * 48}])
    without = {key: value for key, value in shard.items() if key != "batches"}  # as they were before this rule
    refused_manifest(out, r"missing keys \['batches'\]; another version .*: prepare the dataset anew", shards=[without])
    edit_manifest(out, shards=[{**shard, "batches": "0" * 48}])
    refused(out, "batches are not the hashes of its record batches", row=False)


def test_f37_nothing_lies_between_the_ids_of_rows(out: Path) -> None:
    """A buffer of ids that is longer than its rows, as Arrow allows, would hold bytes without a hash."""
    (shard,) = manifest_values(out)["shards"]
    data = (out / shard["name"]).read_bytes()
    length = struct.pack("<q", 4 * 384)
    at = next(at for at in range(0, len(data), 8) if data[at : at + 8] == length)
    write_bytes(out, data[:at] + struct.pack("<q", 4 * 384 + 8) + data[at + 8 :])
    refused(out, "bytes of ids, of 384 ids", row=False)


# Shards


def test_f10_shards_are_uncompressed_arrow_files_of_one_schema(out: Path) -> None:
    (shard,) = open_dataset(out).manifest.shards
    stream = pa.ipc.open_file(str(out / shard.name))
    expected = {
        "maskpipe.format": "1.0",
        "maskpipe.label_version": "2",
        "maskpipe.recipe": Recipe(sequence_length=64).fingerprint(),
    }
    expected |= {
        "maskpipe.sequence_length": "64",
        "maskpipe.vocab_size": str(VOCAB_SIZE),
        "maskpipe.pad_id": str(PAD_ID),
    }
    assert {key.decode(): value.decode() for key, value in stream.schema.metadata.items()} == expected
    batch = stream.get_batch(0)
    ids = np.concatenate([row.input_ids for row in open_dataset(out)])
    assert ids.tobytes() in (out / shard.name).read_bytes()

    def schema(change: Callable[[str], pa.Field | None], metadata: dict[str, str] | None = None) -> pa.Schema:
        fields = [change(field.name) or field for field in batch.schema]
        return pa.schema(fields, metadata or expected)

    other_metadata = [{**expected, "maskpipe.pad_id": "8"}, {**expected, "more": "x"}, {"maskpipe.format": "1.0"}]
    for metadata in other_metadata:
        write_arrow(out, [batch.replace_schema_metadata(metadata)])
        refused(out, "has another schema or metadata")
    nullable = pa.field("n_loss", pa.int32())
    write_arrow(
        out,
        [pa.RecordBatch.from_arrays(batch.columns, schema=schema(lambda name: nullable if name == "n_loss" else None))],
    )
    refused(out, "has another schema or metadata")
    wide = batch.set_column(4, pa.field("n_loss", pa.int64(), nullable=False), batch.column("n_loss").cast(pa.int64()))
    write_arrow(out, [wide])
    refused(out, "has another schema or metadata")
    write_arrow(out, [batch.drop_columns(["weights"])])
    refused(out, "has another schema or metadata")
    nulls = pa.array([None, *batch.column("n_loss").to_pylist()[1:]], pa.int32())
    write_arrow(out, [pa.RecordBatch.from_arrays([*batch.columns[:4], nulls, batch.columns[5]], schema=batch.schema)])
    refused(out, "has null in n_loss")
    inner = pa.array([None, *batch.column("runs").flatten().field("end").to_pylist()[1:]], pa.int32())
    runs = batch.column("runs").flatten()
    runs = pa.StructArray.from_arrays([inner, *runs.flatten()[1:]], fields=list(runs.type))
    lists = pa.ListArray.from_arrays(batch.column("runs").offsets, runs, type=batch.schema.field("runs").type)
    write_arrow(out, [batch.set_column(1, batch.schema.field("runs"), lists)])
    refused(out, r"has null in runs\.item\.end")


def test_f10_a_stream_is_no_shard(out: Path) -> None:
    (shard,) = open_dataset(out).manifest.shards
    stream = pa.ipc.open_file(str(out / shard.name))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, stream.schema) as written:
        written.write_batch(stream.get_batch(0))
    write_bytes(out, sink.getvalue().to_pybytes())
    refused(out, "is no Arrow IPC file")


def test_f11_batches_have_a_fixed_number_of_rows(tmp_path: Path) -> None:
    assert [batch_rows(length) for length in (64, 8192, 1 << 18, (1 << 18) + 1, 2**31 - 1)] == [4096, 32, 1, 1, 1]
    out = tmp_path / "out"
    length = 1 << 16
    publish_documents(out, chats([length] * 9), sequence_length=length, rows_per_shard=9)
    (shard,) = open_dataset(out).manifest.shards
    stream = pa.ipc.open_file(str(out / shard.name))
    batches = [stream.get_batch(k) for k in range(stream.num_record_batches)]
    assert [batch.num_rows for batch in batches] == [4, 4, 1]
    write_arrow(out, [batches[0], batches[2], batches[1]])
    refused(out, "record batch 1 has 1 rows, expected 4", row=False)
    write_arrow(out, [batches[0], batches[1]])
    refused(out, "has 2 record batches, expected 3")


# Rows


def set_values(structs: Any, index: int, **values: Any) -> None:
    for name, value in values.items():
        structs[name][index] = value


def test_f12_runs_tile_the_row(out: Path) -> None:
    def end_late(rows: Rows) -> None:
        rows.runs["end"][rows.run_offsets[1] - 1] = 65

    def end_early(rows: Rows) -> None:
        rows.runs["end"][-1] = 63  # the padding of the last row

    def go_back(rows: Rows) -> None:
        rows.runs["end"][1] = rows.runs["end"][0]

    for change, message in (
        (end_late, "ends at 65"),
        (end_early, "runs end at 63"),
        (go_back, "row 0, token 2: a run"),
    ):
        before = snapshot(out)
        forge(out, change)
        refused(out, message)
        restore(out, before)


def snapshot(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def restore(out: Path, files: dict[str, bytes]) -> None:
    for path in out.iterdir():
        path.unlink()
    for name, data in files.items():
        (out / name).write_bytes(data)


def forge_each(out: Path, *changes: tuple[Callable[[Rows], Rows | None], str]) -> None:
    files = snapshot(out)
    for change, message in changes:
        forge(out, change)
        refused(out, message)
        restore(out, files)
    verify(out)


def test_f13_runs_are_as_few_as_possible(out: Path) -> None:
    def repeat(rows: Rows) -> None:
        set_values(rows.runs, 1, **{name: rows.runs[name][0] for name in ("role", "part", "flags", "message")})

    forge_each(out, (repeat, "a run repeats the facts of the one after it"))


def test_f13_a_document_may_end_between_two_runs_that_say_the_same(tmp_path: Path) -> None:
    document = chat(2, 0)
    publish_documents(tmp_path / "out", [document, replace(document, row=1), replace(document, row=2)])
    (row,) = open_dataset(tmp_path / "out")
    assert row.runs["end"].tolist() == [2, 4, 6, 64]
    verify(tmp_path / "out")


def test_f14_values_are_those_of_the_format(out: Path) -> None:
    assert [int(role) for role in Role] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 255]
    assert [int(part) for part in Part] == [0, 1, 2, 3, 4, 5, 6]
    assert [int(flag) for flag in Flag] == [1, 2, 4, 8, 16]
    forge_each(
        out,
        (lambda rows: set_values(rows.runs, 0, role=9), "role 9 is not known"),
        (lambda rows: set_values(rows.runs, 0, part=7), "part 7 is not known"),
        (lambda rows: set_values(rows.runs, 0, flags=32), "flags 32 have an unknown bit"),
        (lambda rows: set_values(rows.runs, 0, message=-2), "message -2 is below -1"),
    )


def test_f15_documents_lie_one_after_the_other_in_the_row(out: Path) -> None:
    def cross(rows: Rows) -> None:
        rows.documents["end"][rows.document_offsets[3]] += 1  # the first of two documents in row 3

    def none(rows: Rows) -> Rows:
        """Row 2 without a document, and all padding."""
        keep = np.ones(len(rows.documents), bool)
        keep[rows.document_offsets[2] : rows.document_offsets[3]] = False
        gone = rows.document_offsets[3] - rows.document_offsets[2]
        runs = np.concatenate([rows.runs[: rows.run_offsets[2]], rows.runs[:1], rows.runs[rows.run_offsets[3] :]])
        set_values(runs, rows.run_offsets[2], end=64, role=0, part=0, flags=0, message=-1)
        run_offsets = rows.run_offsets.copy()
        run_offsets[3:] -= rows.run_offsets[3] - rows.run_offsets[2] - 1
        document_offsets = rows.document_offsets.copy()
        document_offsets[3:] -= gone
        per_document = np.diff(rows.verdict_offsets)
        rows.input_ids[2], rows.n_loss[2] = PAD_ID, 0
        return replace(
            rows,
            runs=runs,
            run_offsets=run_offsets,
            documents=rows.documents[keep],
            document_offsets=document_offsets,
            verdicts=rows.verdicts[np.repeat(keep, per_document)],
            verdict_offsets=np.concatenate([[0], np.cumsum(per_document[keep])]),
        )

    forge_each(
        out,
        (cross, "row 3, token .* goes on over the end of a document"),
        (lambda rows: set_values(rows.documents, 0, end=65, length=65), "ends at 65; the row has 64 tokens"),
        (lambda rows: set_values(rows.documents, 0, end=0), "ends at 0"),
        (none, "row 2 holds no document"),
    )


def test_f16_padding_is_what_follows_the_last_document(out: Path) -> None:
    last = 5  # the only row that is not full
    assert open_dataset(out)[last].cu_seqlens[-1] < 64

    def change(**values: Any) -> Callable[[Rows], None]:
        return lambda rows: set_values(rows.runs, rows.run_offsets[last + 1] - 1, **values)

    def other_id(rows: Rows) -> None:
        rows.input_ids[last, -1] = PAD_ID + 1

    def inside(rows: Rows) -> None:
        set_values(rows.runs, 0, role=0, part=0, message=-1)

    forge_each(
        out,
        (change(role=7), "role 7 after the end of the last document"),
        (change(part=1), "padding has part 1"),
        (change(flags=1), "padding has .* flags 1"),
        (change(message=0), "padding has .* message 0"),
        (other_id, f"row 5, token 63: padding has id {PAD_ID + 1}, not pad_id {PAD_ID}"),
        (inside, "padding inside a document"),
    )


def test_f16_a_document_may_hold_the_padding_id(tmp_path: Path) -> None:
    document = replace(chat(20, 0), input_ids=np.full(20, PAD_ID, np.int32))
    publish_documents(tmp_path / "out", [document], dropped=[])
    (row,) = open_dataset(tmp_path / "out")
    assert row.cu_seqlens.tolist() == [0, 20]
    np.testing.assert_array_equal(row.loss_mask[:20], document.loss_mask)
    verify(tmp_path / "out")


def test_f17_loss_is_only_where_a_token_is_predicted(out: Path) -> None:
    def first_token(rows: Rows) -> None:
        rows.runs["flags"][0] |= Flag.LOSS
        rows.n_loss[0] += 2

    def straddling(rows: Rows) -> None:
        run = int(np.argmax(rows.runs["flags"] & Flag.LOSS > 0))
        rows.runs["flags"][run] |= Flag.STRADDLES

    def count(rows: Rows) -> None:
        rows.n_loss[4] += 1

    def padding(rows: Rows) -> None:
        rows.runs["flags"][-1] = Flag.LOSS
        rows.n_loss[5] += 64 - rows.runs["end"][-2]

    forge_each(
        out,
        (first_token, "row 0, token 0: the first token of a document has loss"),
        (straddling, "a straddling token has loss"),
        (count, "row 4, token 64: .*loss"),
        (padding, "padding has .* flags 2"),
    )


def test_f17_every_token_but_the_first_can_be_a_target(tmp_path: Path) -> None:
    """Pretraining: one document fills the row, 63 of its 64 tokens are targets."""
    document = chat(64, 0)
    flags = np.full(64, int(Flag.SAMPLED | Flag.LOSS), np.uint8)
    publish_documents(tmp_path / "out", [replace(document, flags=flags)], dropped=[])
    (row,) = open_dataset(tmp_path / "out")
    assert row.n_loss == 63
    assert row.loss_mask.tolist() == [0] + [1] * 63


def test_f18_ids_are_in_the_vocabulary(out: Path) -> None:
    def put(value: int) -> Callable[[Rows], None]:
        def change(rows: Rows) -> None:
            rows.input_ids[1, 3] = value

        return change

    outside = "outside the vocabulary of 1000"
    forge_each(out, (put(VOCAB_SIZE), f"row 1, token 3: id 1000 is {outside}"), (put(-1), f"id -1 is {outside}"))
    refused_manifest(out, "pad_id 1000 is not in the vocabulary", pad_id=1000)


def test_f38_ids_xxh3_is_the_hash_of_the_ids(out: Path) -> None:
    (shard,) = open_dataset(out).manifest.shards
    batch = pa.ipc.open_file(str(out / shard.name)).get_batch(0)
    hashes = batch.column("ids_xxh3").to_pylist()
    ids = [np.array(row, "<i4").tobytes() for row in batch.column("input_ids").to_pylist()]
    assert hashes == [xxhash.xxh3_64_intdigest(row) for row in ids]
    hashes[2] ^= 1
    column = batch.schema.get_field_index("ids_xxh3")
    write_arrow(out, [batch.set_column(column, batch.schema.field(column), pa.array(hashes, pa.uint64()))])
    refused(out, "record batch 0: row 2: ids_xxh3 is not that of its ids")


def test_f19_documents_come_from_listed_records(out: Path) -> None:
    forge_each(
        out,
        (lambda rows: set_values(rows.documents, 0, source=-1), "a document has no origin"),
        (lambda rows: set_values(rows.documents, 0, row=-1), "a document has no origin"),
        (lambda rows: set_values(rows.documents, 0, turn=-2), "a turn below -1"),
    )
    files = snapshot(out)
    for change, message in (
        ({"source": 2}, "a source that the manifest does not list"),
        ({"row": 12}, "from record 12 of source 0, which has 12 records"),
    ):
        forge(out, lambda rows, change=change: set_values(rows.documents, 0, **change))  # type: ignore[misc]
        refused(out, message, row=False)
        restore(out, files)


def test_f20_fragments_lie_in_their_document(out: Path) -> None:
    forge_each(
        out,
        (lambda rows: set_values(rows.documents, 0, start=-1), "a fragment lies outside its document"),
        (lambda rows: set_values(rows.documents, 0, start=1), "a fragment lies outside its document"),
        (lambda rows: set_values(rows.documents, 0, length=63), "a fragment lies outside its document"),
    )


def test_f20_cut_documents_are_complete(tmp_path: Path) -> None:
    out = tmp_path / "out"
    recipe = Recipe(objective="pretrain", packing="concat_split", sequence_length=64)
    publish_documents(out, chats([150, 100, 70]), method="concat_split", recipe=recipe, rows_per_shard=100)
    verify(out)
    places = open_dataset(out)[0].documents[["start", "length"]].tolist()
    assert places == [(0, 150)]
    files = snapshot(out)
    for fragment, change in ((0, {"length": 151}), (1, {"start": 63}), (2, {"length": 151}), (1, {"row": 1})):
        forge(out, lambda rows, f=fragment, c=change: set_values(rows.documents, f, **c))  # type: ignore[misc]
        refused(out, "is not complete at token|cut documents begin", row=False)
        restore(out, files)


def test_f21_verdicts_are_known_and_in_order(out: Path) -> None:
    assert [int(verdict) for verdict in Verdict] == [1, 2, 4]
    forge_each(
        out,
        (lambda rows: set_values(rows.verdicts, 0, verdict=8), "a verdict has an unknown bit"),
        (lambda rows: set_values(rows.verdicts, 0, message=-1), "a verdict belongs to no message"),
        (lambda rows: set_values(rows.verdicts, 1, message=1), "not in order of messages, each once"),
    )


def test_f22_weights_are_exceptions_in_order(out: Path) -> None:
    assert len(read_rows(out).weights) > 2

    def drop_row(rows: Rows) -> None:
        rows.weights["end"][-1] = 65

    forge_each(
        out,
        (lambda rows: set_values(rows.weights, 0, weight=1), "a weight of 1 is no exception"),
        (lambda rows: set_values(rows.weights, 0, weight=-1), "a weight is negative or not finite"),
        (lambda rows: set_values(rows.weights, 0, weight=np.nan), "a weight is negative or not finite"),
        (lambda rows: set_values(rows.weights, 0, start=rows.weights["end"][0]), "a weight range is empty"),
        (
            lambda rows: set_values(rows.weights, 1, start=rows.weights["end"][0] - 1),
            "begins before the one before it ends",
        ),
        (drop_row, "a weight range ends outside the row"),
    )


def test_f23_pairs_are_whole_or_absent(out: Path) -> None:
    at = 2  # the first of two documents in a row

    def pair(first: dict[str, Any], second: dict[str, Any]) -> Callable[[Rows], None]:
        def change(rows: Rows) -> None:
            row = int(np.argmax(np.diff(rows.document_offsets) > 1))
            at = rows.document_offsets[row]
            set_values(rows.documents, at, **{"pair": 5, "branch": Branch.PROMPT, **first})
            set_values(rows.documents, at + 1, **{"pair": 5, "branch": Branch.CHOSEN, "parent": 1, **second})

        return change

    files = snapshot(out)
    forge(out, pair({"score": 0.5, "branch": Branch.CHOSEN}, {"label": 1, "branch": Branch.REJECTED, "parent": 0}))
    verify(out)
    dataset = open_dataset(out)
    documents = np.concatenate([row.documents for row in dataset])
    assert documents["pair"].tolist().count(5) == 2
    assert sorted(documents["label"].tolist()) == [-1] * 11 + [1]
    assert np.isnan(documents["score"]).sum() == 11
    restore(out, files)
    forge_each(
        out,
        (lambda rows: set_values(rows.documents, at, branch=Branch.CHOSEN), "a branch without a pair"),
        (lambda rows: set_values(rows.documents, at, pair=1), "a branch without a pair"),
        (lambda rows: set_values(rows.documents, at, branch=4, pair=1), "an unknown branch"),
        (pair({}, {}), "a pair has not one chosen and one rejected branch"),
        (pair({"branch": Branch.CHOSEN}, {"parent": 0}), "a pair has not one chosen and one rejected branch"),
        (pair({"branch": Branch.CHOSEN}, {"pair": 6, "branch": 3, "parent": 0}), "a pair has not one chosen"),
        (pair({}, {"pair": 6}), "parent is not the prompt of its pair"),
        (pair({}, {"parent": 2}), "parent is not in its row"),
        (pair({}, {"parent": -1}), "parent is not in its row"),
        (pair({"parent": 0}, {"branch": Branch.PROMPT}), "a document with a parent is no branch"),
        (lambda rows: set_values(rows.documents, at, score=np.inf), "score is not finite"),
    )


def test_f23_null_is_never_a_value(out: Path) -> None:
    manifest = open_dataset(out).manifest
    stream = pa.ipc.open_file(str(out / manifest.shards[0].name))
    batch = stream.get_batch(0)
    documents = batch.column("documents").flatten()
    for name, value, text in (
        ("pair", -1, "pair holds -1"),
        ("parent", 0, "parent holds 0"),
        ("score", np.nan, "score holds nan"),
    ):
        index = documents.type.get_field_index(name)
        children = documents.flatten()
        children[index] = pa.array([value] * len(documents), children[index].type)
        changed = pa.StructArray.from_arrays(children, fields=list(documents.type))
        lists = pa.ListArray.from_arrays(
            batch.column("documents").offsets, changed, type=batch.schema.field("documents").type
        )
        write_arrow(out, [batch.set_column(2, batch.schema.field("documents"), lists)])
        refused(out, f"{text}, which must be null")


# Counts


def test_f24_counts_are_those_of_the_rows(out: Path) -> None:
    values = manifest_values(out)
    (shard,) = values["shards"]
    counts = shard["counts"]
    for name, value in counts.items():
        if name == "sequences":
            continue
        if isinstance(value, int):
            changed: Any = max(0, value - 1)
        elif name == "tokens":  # the sum must hold, else the manifest refuses itself
            a, b = "user.content", "user.scaffold"
            changed = {**value, a: value[a] - 1, b: value[b] + 1}
        else:
            key = sorted(value)[0]
            changed = {**value, key: value[key] - 1}
        other = {**counts, name: changed}
        totals = {**values["totals"], name: changed}
        totals["signals_per_sequence"] = round(sum(other["loss"].values()) / other["sequences"], 3)
        edit_manifest(out, shards=[{**shard, "counts": other}], totals=totals)
        with pytest.raises(DatasetError, match=rf"{name} differ from what the manifest counts|that do not add up"):
            verify(out)
    seal(out, values)
    refused_manifest(out, "has 7 rows but 384 tokens", shards=[{**shard, "counts": {**counts, "sequences": 7}}])
    more = {**counts, "loss": {**counts["loss"], "user.content": 10**6}}
    refused_manifest(out, r"more loss than tokens in \['user.content'\]", shards=[{**shard, "counts": more}])
    refused_manifest(
        out, "'me.content' is no role and part", shards=[{**shard, "counts": {**counts, "loss": {"me.content": 1}}}]
    )
    zero = {**counts, "loss": {**counts["loss"], "user.content": 0}}
    refused_manifest(out, "must be a positive integer", shards=[{**shard, "counts": zero}])


def test_f24_fragments_count_their_document_once(tmp_path: Path) -> None:
    recipe = Recipe(objective="pretrain", packing="concat_split", sequence_length=64)
    manifest = publish_documents(tmp_path / "out", chats([150, 100, 70]), method="concat_split", recipe=recipe)
    assert (manifest.totals.documents, manifest.totals.fragments) == (3, 7)
    assert manifest.totals.verdicts == {"exact": 3, "history_differs+no_stop": 2}  # row 0 was made for turn 1


def test_f25_totals_are_sums(tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = publish_documents(out, chats(LENGTHS), rows_per_shard=2)
    assert Counts.total(shard.counts for shard in manifest.shards) == manifest.totals
    totals = manifest_values(out)["totals"]
    assert totals["fill"] == round(sum(LENGTHS) / 384, 6)
    assert totals["signals_per_sequence"] == round(manifest.totals.n_loss / 6, 3)
    refused_manifest(out, "totals are not the sum of the shards", totals={**totals, "cuts": totals["cuts"] + 1})
    refused_manifest(out, "totals are not the sum of the shards", totals={**totals, "loss": {}})
    refused_manifest(out, r"totals\.fill does not follow", totals={**totals, "fill": 1.0})
    refused_manifest(out, r"totals\.signals_per_sequence does not", totals={**totals, "signals_per_sequence": 1.0})


def test_f26_every_record_is_kept_or_rejected(out: Path) -> None:
    values = manifest_values(out)
    records, sources = values["records"], values["sources"]
    refused_manifest(out, "13 records read, but 12 are kept, rejected or left out", records={**records, "kept": 11})
    many = {**records, "left_out": {"duplicate": 1}}
    refused_manifest(out, "13 records read, but 14 are kept, rejected or left out", records=many)
    refused_manifest(out, "left_out", records={**records, "left_out": {"duplicate": -1}})
    refused_manifest(out, "14 records read, but the sources have 13", records={**records, "read": 14, "kept": 13})
    more = [{**sources[0], "records": 13}, sources[1]]
    edit_manifest(out, records={**records, "read": 14, "kept": 13}, sources=more)
    refused(out, "the shards hold 12 records, manifest.json says 13", row=False)
    seal(out, values)
    line = {"source": 0, "row": 3, "reason": "bad_json", "message": ""}
    (out / "rejects.jsonl").write_text(json.dumps(line) + "\n")
    relist(out, "rejects.jsonl")
    refused(out, r"rejects\.jsonl:1: record 3 of source 0 is kept or rejected already", row=False)


def test_f27_rejects_are_those_that_are_counted(out: Path) -> None:
    good = (out / "rejects.jsonl").read_text()
    assert json.loads(good)["message"] == "no é record \ud800"
    entry = json.loads(good)
    for text, message in (
        ("", "rejects are not those that manifest.json counts"),
        (good + good, r"rejects\.jsonl:2: record 0 of source 1 is kept or rejected already"),
        (good.replace("bad_json", "other"), "rejects are not those"),
        ("{\n", r"rejects\.jsonl:1: not valid JSON"),
        (json.dumps({**entry, "more": 1}) + "\n", r"rejects\.jsonl:1: expected the keys source, row, reason, message"),
        (json.dumps({**entry, "row": True}) + "\n", "expected the keys"),
        (json.dumps({**entry, "row": 9}) + "\n", "names a record that no source has"),
        (json.dumps({**entry, "source": -1}) + "\n", "names a record that no source has"),
        (good.rstrip("\n"), "does not end with a newline"),
    ):
        (out / "rejects.jsonl").write_text(text)
        relist(out, "rejects.jsonl")
        refused(out, message, row=False)


def test_f28_dropped_documents_are_those_that_are_counted(out: Path) -> None:
    good = (out / "dropped.jsonl").read_text()
    for text, message in (
        ("", "dropped documents are not those that manifest.json counts"),
        (good.replace("train_on", "other"), "dropped documents are not those"),
        (good + good, "dropped documents are not those"),
        ("[]\n", r"dropped\.jsonl:1: expected the keys source, row, turn, policy"),
    ):
        (out / "dropped.jsonl").write_text(text)
        relist(out, "dropped.jsonl")
        refused(out, message, row=False)


def test_f29_role_names_are_sorted(out: Path) -> None:
    assert manifest_values(out)["role_names"] == ["critic", "narrator"]
    for names in (["narrator", "critic"], ["critic", "critic"]):
        refused_manifest(out, "role_names are not sorted, each once", role_names=names)
    refused_manifest(out, "role_names: expected strings", role_names=[1])


# Identity


def test_f30_the_digest_of_a_row_is_that_of_its_packed_facts(out: Path) -> None:
    """Built here with struct.pack, field by field."""
    rows = read_rows(out)
    expected = b""
    for r, row in enumerate(open_dataset(out)):
        verdicts = [entry for of in row.verdicts for entry in of.tolist()]
        parts = [struct.pack("<4i", len(row.runs), len(row.documents), len(verdicts), len(row.weight_ranges))]
        parts += [struct.pack("<i", token) for token in row.input_ids.tolist()]
        parts += [struct.pack("<iBBBi", *run) for run in row.runs.tolist()]
        for document in row.documents.tolist():
            parts.append(struct.pack("<iiqiiiqBi", *document[:9]) + b"\0\0\xc0\x7f" + struct.pack("<b", document[10]))
        parts += [struct.pack("<i", len(of)) for of in row.verdicts]
        parts += [struct.pack("<iB", *verdict) for verdict in verdicts]
        parts += [struct.pack("<iif", *weight) for weight in row.weight_ranges.tolist()]
        expected += hashlib.sha256(b"".join(parts)).digest()
        assert DOCUMENT_DTYPE.itemsize == 46
        assert rows_module.digests(rows)[32 * r : 32 * r + 32] == expected[-32:]
    assert rows_module.digests(rows) == expected


def test_f31_the_fingerprint_covers_meaning_and_rows(tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = publish_documents(out, chats(LENGTHS), rows_per_shard=2)
    header = (
        '{"format":1,"label_version":2,"pad_id":7,"recipe":"'
        + manifest.recipe_sha256
        + '","role_names":["critic","narrator"],'
        '"sequence_length":64,"sources":[["' + "a" * 64 + '",12],["' + "b" * 64 + '",1]],"vocab_size":1000}\n'
    )
    digests = b"".join(
        rows_module.digests(ShardReader(out, manifest, number).batch(0)) for number in range(len(manifest.shards))
    )
    assert manifest.fingerprint == hashlib.sha256(header.encode() + digests).hexdigest()
    values = manifest_values(out)
    edit_manifest(out, sources=[{**values["sources"][0], "name": "renamed.jsonl"}, values["sources"][1]])
    verify(out)  # a name is no part of the identity
    edit_manifest(out, sources=[{**values["sources"][0], "sha256": "c" * 64}, values["sources"][1]])
    refused(out, "the fingerprint is not that of the rows and the recipe", row=False)


def test_f32_bytes_follow_from_documents_plan_and_recipe(tmp_path: Path) -> None:
    for name in ("a", "b"):
        publish_documents(tmp_path / name, chats(LENGTHS), rows_per_shard=2)
    assert snapshot(tmp_path / "a") == snapshot(tmp_path / "b")


# Reading and writing


def test_f33_hashes_are_compared_before_arrow_sees_a_byte(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard,) = open_dataset(out).manifest.shards
    data = bytearray((out / shard.name).read_bytes())
    data[-20] ^= 1  # in the footer, where Arrow begins to read
    (out / shard.name).write_bytes(bytes(data))
    seen = []
    real = pa.PythonFile

    class Watched:
        def __init__(self, file: Any) -> None:
            self._file = file
            self.closed = False

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def read(self, size: int = -1) -> bytes:
            seen.append(self._file.read(size))
            return seen[-1]

    monkeypatch.setattr("maskpipe.shards.reader.pa.PythonFile", lambda file, mode: real(Watched(file), mode=mode))
    with pytest.raises(DatasetError, match=r"region 0 \(bytes 0 to \d+\) is not what the manifest says"):
        open_dataset(out)[0]
    assert seen == []
    (out / shard.name).write_bytes(bytes(data) + b"\0")
    with pytest.raises(DatasetError, match=f"has {len(data) + 1} bytes, the manifest says {len(data)}"):
        open_dataset(out)[0]


def test_f33_offsets_that_lie_are_refused_after_the_hash(out: Path) -> None:
    """Hashes in order, but the lists of runs run backwards: what validate(full=True) is for."""
    (shard,) = open_dataset(out).manifest.shards
    stream = pa.ipc.open_file(str(out / shard.name))
    batch = stream.get_batch(0)
    offsets = batch.column("runs").offsets.to_numpy().copy()
    data = (out / shard.name).read_bytes()
    changed = offsets.copy()
    changed[2] = 2**30
    assert data.count(offsets.tobytes()) == 1
    write_bytes(out, data.replace(offsets.tobytes(), changed.tobytes()))
    refused(out, "is not valid Arrow")


def test_f34_the_manifest_is_renamed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from maskpipe.shards import writer

    events: list[tuple[str, str]] = []
    real_rename, real_fsync = os.rename, os.fsync

    def rename(source: Any, target: Any) -> None:
        events.append(("rename", Path(target).name))
        real_rename(source, target)

    def fsync(descriptor: int) -> None:
        events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        real_fsync(descriptor)

    monkeypatch.setattr(writer.os, "rename", rename)
    monkeypatch.setattr(writer.os, "fsync", fsync)
    publish_documents(tmp_path / "out", chats(LENGTHS), rows_per_shard=2)
    names = [name for kind, name in events if kind == "rename"]
    assert names[-2:] == ["manifest.sha256", "manifest.json"]
    assert set(names) == set(os.listdir(tmp_path / "out"))
    for at, (kind, _) in enumerate(events):
        if kind == "rename":  # its own bytes are on the disk; before the manifest, the names of all others are too
            assert events[at - 1][0] == "fsync"
    assert events[-3:] == [("fsync", "out"), ("rename", "manifest.json"), ("fsync", "out")]


# Other readers


def code(name: str) -> str:
    found = re.search(rf"```python {name}\n(.*?)```", FORMAT_MD.read_text(), re.DOTALL)
    assert found, name
    return found[1]


@pytest.mark.parametrize("reader", ["pyarrow", "datasets", "polars", "duckdb"])
def test_the_readers_named_in_the_document_read_ids_and_masks(
    tmp_path: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(reader, reason=f"{reader} is not installed")
    out = tmp_path / "out"
    manifest = publish_documents(out, chats(LENGTHS), rows_per_shard=2)
    if reader == "datasets":
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        datasets.disable_progress_bars()
    dataset = open_dataset(out)
    for i in range(len(dataset)):
        names: dict[str, Any] = {"paths": [str(out / shard.name) for shard in manifest.shards], "i": i}
        exec(code(reader) + code("mask"), names)
        np.testing.assert_array_equal(np.asarray(names["ids"]), dataset[i].input_ids)
        np.testing.assert_array_equal(names["loss_mask"], dataset[i].loss_mask)
        assert names["loss_mask"].sum() == dataset[i].n_loss


def test_a_token_takes_at_most_4_2_bytes_where_documents_are_long(tmp_path: Path) -> None:
    """Chats as real ones are above 1,000 tokens: 1,650 tokens on average, 13.5 runs, 3 turns."""
    documents = []
    for row in range(200):
        length = 1100 if row % 2 else 2200
        token = np.arange(length)
        message, within = token * 6 // length, np.diff(np.searchsorted(token * 6 // length, np.arange(7)))[0]
        place = token - message * within
        assistant = message % 2 == 1
        documents.append(
            replace(
                chat(length, row),
                role_ids=np.where(assistant, int(Role.ASSISTANT), int(Role.USER)).astype(np.uint8),
                part_ids=np.select([place < 3, place == within - 1], [5, 6], 1).astype(np.uint8),
                flags=np.where(assistant & (place >= 3), 3, 0).astype(np.uint8),
                message_ids=message.astype(np.int32),
                verdicts=dict.fromkeys((1, 3, 5), Verdict.EXACT),
            )
        )
    manifest = publish_documents(tmp_path / "out", documents, sequence_length=3300, rows_per_shard=1000)
    (shard,) = manifest.shards
    assert 13 <= sum(len(row.runs) for row in open_dataset(tmp_path / "out")) / len(documents) <= 14
    assert manifest.totals.padding == 0
    assert shard.size / manifest.totals.n_tokens <= 4.2
