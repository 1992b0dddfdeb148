"""Attempts to have a changed dataset read as if it were whole. Each must end in a DatasetError that names the file.

one bit flipped          any bit of any file that the manifest covers, and of the manifest and its hash
a file cut or longer     at every length
files gone, added, swapped, renamed, from another dataset, or of an older run
hashes made to fit       a forger who seals the change: the rules of the format and the fingerprint are left
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from maskpipe.errors import DatasetError
from maskpipe.shards.manifest import Manifest, fingerprint, manifest_hash
from maskpipe.shards.reader import open as open_dataset
from maskpipe.shards.reader import read_manifest
from maskpipe.shards.verify import check_file, check_shard_bytes, verify
from tests.made_datasets import chats, publish_documents
from tests.test_format import restore, snapshot, write_bytes

OUTSIDE = {"README.md", "run.json"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three rows of 16 tokens in two shards, with embedded files, rejects and dropped documents."""
    publish_documents(tmp_path / "out", chats([16, 9, 5, 12]), sequence_length=16, rows_per_shard=2)
    return tmp_path / "out"


def covered(out: Path) -> list[str]:
    """Shards, manifest and hash, recipe, rejects, dropped, template."""
    return sorted(set(os.listdir(out)) - OUTSIDE)


def byte_checks(out: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """The part of opening and verifying that looks at the bytes of one file; verify calls exactly these."""
    manifest = open_dataset(out).manifest
    yield "manifest.json", lambda: read_manifest(out)
    yield "manifest.sha256", lambda: read_manifest(out)
    for file in manifest.files:
        yield file.name, lambda file=file: check_file(out, file)  # type: ignore[misc]
    for shard in manifest.shards:
        yield shard.name, lambda shard=shard: check_shard_bytes(out, shard)  # type: ignore[misc]


def test_every_single_bit_flip_of_every_file_is_detected(tmp_path: Path) -> None:
    out = tmp_path / "out"
    publish_documents(out, chats([16, 9]), sequence_length=16)
    checks = list(byte_checks(out))
    assert sorted(name for name, _ in checks) == covered(out)
    flips = 0
    for name, check in checks:
        check()
        data = (out / name).read_bytes()
        with open(out / name, "r+b", buffering=0) as file:
            descriptor = file.fileno()
            for at, byte in enumerate(data):
                for bit in range(8):
                    os.pwrite(descriptor, bytes([byte ^ 1 << bit]), at)
                    try:
                        check()
                    except DatasetError as error:
                        assert str(out) in str(error)
                        flips += 1
                    else:
                        raise AssertionError(f"{name}: bit {bit} of byte {at} was flipped and nobody noticed")
                os.pwrite(descriptor, bytes([byte]), at)
        check()
    assert flips == 8 * sum((out / name).stat().st_size for name in covered(out))
    verify(out)


def test_every_truncation_of_every_file_is_detected(out: Path) -> None:
    files = snapshot(out)
    for name, check in byte_checks(out):
        for length in reversed(range(len(files[name]))):
            os.truncate(out / name, length)
            with pytest.raises(DatasetError, match=str(out)):
                check()
        (out / name).write_bytes(files[name])
    for name in covered(out):
        for more in (b"\0", b"\n", files[name]):
            if files[name] + more != files[name]:
                (out / name).write_bytes(files[name] + more)
                with pytest.raises(DatasetError, match=str(out)):
                    verify(out)
        (out / name).write_bytes(files[name])
    verify(out)


def test_random_damage_is_detected_by_verify_and_before_any_row_is_returned(out: Path) -> None:
    """Bits, bytes, runs of zeros: through the public functions, whole."""
    files = snapshot(out)
    rng = random.Random(20)
    names = [name for name in covered(out) if files[name]]
    for _ in range(150):
        name = rng.choice(names)
        data = bytearray(files[name])
        at = rng.randrange(len(data))
        match rng.randrange(3):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = (data[at] + rng.randrange(1, 256)) % 256
            case _:
                length = rng.randrange(1, 600)
                if not any(data[at : at + length]):
                    continue
                data[at : at + length] = bytes(len(data[at : at + length]))
        (out / name).write_bytes(data)
        with pytest.raises(DatasetError, match=str(out)):
            verify(out)
        if name.endswith(".arrow") or name.startswith("manifest"):
            with pytest.raises(DatasetError, match=str(out)):
                list(open_dataset(out))
        (out / name).write_bytes(files[name])
    verify(out)


def test_the_message_names_file_place_and_remedy(out: Path) -> None:
    shard = open_dataset(out).manifest.shards[1]
    data = bytearray((out / shard.name).read_bytes())
    data[1000] ^= 4
    (out / shard.name).write_bytes(data)
    for read in (lambda: verify(out), lambda: open_dataset(out)[2]):
        with pytest.raises(DatasetError) as caught:
            read()
        assert str(caught.value) == (
            f"{out / shard.name}: region 0 (bytes 0 to {len(data)}) is not what the manifest says; copy the file again "
            "from where the dataset came from, or prepare the dataset anew"
        )
    open_dataset(out)[0]  # the other shard is whole


def test_a_file_that_is_missing_is_missed(out: Path) -> None:
    files = snapshot(out)
    for name in covered(out):
        (out / name).unlink()
        with pytest.raises(DatasetError, match=name):
            verify(out)
        (out / name).write_bytes(files[name])
    for name in OUTSIDE:
        (out / name).unlink()
    verify(out)


def test_swapped_and_renamed_shards_are_noticed(out: Path) -> None:
    files = snapshot(out)
    first, second = (shard.name for shard in open_dataset(out).manifest.shards)
    (out / first).write_bytes(files[second])
    (out / second).write_bytes(files[first])
    for read in (lambda: verify(out), lambda: open_dataset(out)[0], lambda: open_dataset(out)[2]):
        with pytest.raises(DatasetError, match=r"bytes, the manifest says|is not what the manifest says"):
            read()
    restore(out, files)
    (out / first).rename(out / "part-00002-0000000000000000.arrow")
    with pytest.raises(DatasetError, match=f"{first} is missing"):
        verify(out)


def test_a_manifest_of_another_run_does_not_fit(out: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    publish_documents(other, chats([16, 9, 6, 12]), sequence_length=16, rows_per_shard=2)
    files, foreign = snapshot(out), snapshot(other)
    for names in (("manifest.json",), ("manifest.sha256",), ("manifest.json", "manifest.sha256")):
        restore(out, {**files, **{name: foreign[name] for name in names}})
        with pytest.raises(DatasetError, match=str(out)):
            verify(out)
            raise AssertionError("the manifest of another dataset was accepted")
    mixed = {**files, **{name: data for name, data in foreign.items() if name.startswith("part-00001")}}
    restore(out, mixed)
    assert set(mixed) - set(files)
    with pytest.raises(DatasetError, match="is no part of this dataset"):
        verify(out)


def test_shards_in_another_order_have_another_fingerprint(tmp_path: Path) -> None:
    """A forger swaps two shards, renames them to their new places and seals the manifest."""
    out = tmp_path / "out"
    publish_documents(out, chats([16] * 4), sequence_length=16, rows_per_shard=2)
    values = json.loads((out / "manifest.json").read_bytes())
    for k, shard in enumerate(reversed(values["shards"])):
        name = f"part-{k:05d}-{shard['sha256'][:16]}.arrow"
        (out / shard["name"]).rename(out / name)
        shard["name"] = name
    values["shards"].reverse()
    seal(out, json.dumps(values).encode())
    assert len(list(open_dataset(out))) == 4  # each row is whole
    with pytest.raises(DatasetError, match="the fingerprint is not that of the rows"):
        verify(out)


def seal(out: Path, raw: bytes) -> None:
    (out / "manifest.json").write_bytes(raw)
    (out / "manifest.sha256").write_bytes(manifest_hash(raw))


def test_sealed_changes_of_a_manifest_are_refused_or_mean_the_same(out: Path) -> None:
    """Random edits with a fitting manifest.sha256: a DatasetError, never another exception. What passes differs at most
    in the names of sources and in space."""
    raw = (out / "manifest.json").read_bytes()
    manifest = open_dataset(out).manifest
    rng = random.Random(7)
    passed = 0
    for _ in range(400):
        data = bytearray(raw)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.choice(b'0123456789abcdef"{}[],: \\-.eE')
                case 1:
                    del data[at : at + rng.choice((1, 2, 20))]
                case 2:
                    data[at:at] = rng.choice((b"0", b"1", b" ", b'"', b"null", b"[]", b'"x": 1,', b"-", b"\xff"))
                case _:
                    end = rng.randrange(at, min(len(data), at + 60))
                    data[at:at] = data[at:end]
        seal(out, bytes(data))
        try:
            changed = open_dataset(out).manifest
            verify(out)
        except DatasetError:
            continue
        passed += 1
        names = [source.name for source in changed.sources]
        assert len(names) == len(manifest.sources)
        same = {**vars(changed), "sources": manifest.sources}
        assert Manifest(**{key: value for key, value in same.items() if key != "totals"}) == manifest
        assert [(s.sha256, s.records) for s in changed.sources] == [(s.sha256, s.records) for s in manifest.sources]
    assert 0 < passed < 80


def test_sealed_damage_of_a_shard_is_refused_or_means_the_same(out: Path) -> None:
    """Random bytes changed in a shard, with fitting hashes and counts: what Arrow, the rules of the format and the
    fingerprint notice. What passes is a byte that nobody reads, such as padding between buffers."""
    rows = [row.input_ids.tobytes() + row.runs.tobytes() + row.documents.tobytes() for row in open_dataset(out)]
    shard = open_dataset(out).manifest.shards[0]
    data = (out / shard.name).read_bytes()
    rng = random.Random(11)
    refused = 0
    for _ in range(120):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            at = rng.randrange(len(changed))
            changed[at] = rng.choice((0, 1, 127, 128, 255, changed[at] ^ 1 << rng.randrange(8)))
        write_bytes(out, bytes(changed))
        try:
            verify(out)
        except DatasetError:
            refused += 1
        else:
            after = [
                row.input_ids.tobytes() + row.runs.tobytes() + row.documents.tobytes() for row in open_dataset(out)
            ]
            assert after == rows
    assert refused > 60


def test_a_forged_fingerprint_is_noticed(out: Path) -> None:
    manifest = open_dataset(out).manifest
    values = json.loads((out / "manifest.json").read_bytes())
    forged = fingerprint(manifest, [b"something else"])
    seal(out, json.dumps({**values, "fingerprint": forged}).encode())
    with pytest.raises(DatasetError, match="the fingerprint is not that of the rows"):
        verify(out)


def test_a_copy_is_as_good_as_the_original(out: Path, tmp_path: Path) -> None:
    shutil.copytree(out, tmp_path / "copy")
    assert verify(tmp_path / "copy") == verify(out)
    assert open_dataset(tmp_path / "copy").manifest == open_dataset(out).manifest
