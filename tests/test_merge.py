"""Merged datasets hold what their parts hold: every record, token and loss token of every source, once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import maskpipe
from maskpipe import demo_data, merge, partitions, repack
from maskpipe.errors import DatasetError, RecordError, UsageError
from maskpipe.recipe import Recipe
from maskpipe.shards.verify import verify
from maskpipe.sources import limits
from maskpipe.tokenizer import Tokenizer
from tests.made_datasets import chat as made_chat
from tests.made_datasets import publish_documents
from tests.test_repack import TOKENIZER, bytes_of, chat, prepare, reasoning


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], list[Path]]:
    """Three sources, and a dataset of each: one with a rejected record, one with turns apart and documents cut."""
    tmp = tmp_path_factory.mktemp("three")
    given: list[Any] = [
        demo_data.chats(),
        [chat(1, 5), {"messages": []}, chat(2, 9)],
        [reasoning(3, 200), *(reasoning(2, 4 + k) for k in range(5))],
    ]
    recipe = {"sequence_length": 1024, "on_bad_record": "reject"}
    return given, [prepare(source, tmp / f"part{k}", **recipe) for k, source in enumerate(given)]


def facts(out: Path) -> tuple[Counter[tuple[int, str]], list[tuple[int, ...]]]:
    """Per source, tokens, loss tokens and documents; and the rows' ids and loss, in order."""
    counted: Counter[tuple[int, str]] = Counter()
    rows = []
    with maskpipe.open(out) as dataset:
        for document in dataset.documents():
            counted[document.source, "documents"] += 1
            counted[document.source, "tokens"] += len(document)
            counted[document.source, "loss"] += int(document.loss_mask.sum())
        rows = [(*row.input_ids.tolist(), *row.flags.tolist(), *row.role_ids.tolist()) for row in dataset]
    return counted, rows


def test_every_token_of_every_source_is_there_once(three: tuple[list[Any], list[Path]], tmp_path: Path) -> None:
    parts = three[1]
    made = merge.merge(parts, tmp_path / "all")
    verify(tmp_path / "all")
    expected: Counter[tuple[int, str]] = Counter()
    rows = []
    for k, part in enumerate(parts):
        counted, own = facts(part)
        expected.update({(source + k, what): n for (source, what), n in counted.items()})
        rows += own
    assert facts(tmp_path / "all") == (expected, rows)
    manifests = [maskpipe.open(part).manifest for part in parts]
    assert made.manifest.records == sum(m.records for m in manifests)
    assert made.manifest.records_kept == sum(m.records_kept for m in manifests)
    assert made.manifest.rejected == {"bad_record": 1} or sum(made.manifest.rejected.values()) == 1
    assert [s.sha256 for s in made.manifest.sources] == [s.sha256 for m in manifests for s in m.sources]
    assert '"source": 1' in (tmp_path / "all" / "rejects.jsonl").read_text()


def test_f36_a_merged_dataset_packed_anew_is_one_preparation_of_all_sources(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", 4 << 10)
    monkeypatch.setattr(partitions, "PARTITION_TOKENS", 4000)
    monkeypatch.setattr(partitions, "PARTITION_SEQUENCES", 1)
    files = []
    lines = demo_data.chats().read_bytes().splitlines(keepends=True)
    for k in range(3):
        files.append(tmp_path / f"{k}.jsonl")
        files[-1].write_bytes(b"".join(lines[k::3]))
        prepare(files[-1], tmp_path / f"part{k}", sequence_length=1024)
    merge.merge([tmp_path / f"part{k}" for k in range(3)], tmp_path / "merged")
    repack.repack(tmp_path / "merged", tmp_path / "again")
    assert bytes_of(tmp_path / "again") == bytes_of(prepare(files, tmp_path / "whole", sequence_length=1024))


def test_append_prepares_with_the_datasets_own_recipe_and_tokenizer(
    three: tuple[list[Any], list[Path]], tmp_path: Path
) -> None:
    given, parts = three
    before = bytes_of(parts[0])
    made = merge.append(parts[0], given[2], tmp_path / "new", workers=1)
    merge.merge([parts[0], parts[2]], tmp_path / "merged")
    assert bytes_of(tmp_path / "new") == bytes_of(tmp_path / "merged")
    assert bytes_of(parts[0]) == before
    assert made.manifest.recipe == maskpipe.open(parts[0]).manifest.recipe
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "new"]


def test_f35_merging_is_associative(three: tuple[list[Any], list[Path]], tmp_path: Path) -> None:
    a, b, c = three[1]
    merge.merge([a, b], tmp_path / "ab")
    merge.merge([tmp_path / "ab", c], tmp_path / "ab_c")
    merge.merge([b, c], tmp_path / "bc")
    merge.merge([a, tmp_path / "bc"], tmp_path / "a_bc")
    assert bytes_of(tmp_path / "ab_c") == bytes_of(tmp_path / "a_bc")


def test_a_source_that_is_there_already_is_refused_or_counted(
    three: tuple[list[Any], list[Path]], tmp_path: Path
) -> None:
    given, parts = three
    with pytest.raises(UsageError, match=r"its source chats.jsonl is in .*part0 already.*--allow-repeats"):
        merge.append(parts[0], given[0], tmp_path / "new", workers=1)
    assert list(tmp_path.iterdir()) == []
    made = merge.merge([parts[0], parts[0]], tmp_path / "twice", allow_repeats=True)
    verify(tmp_path / "twice")
    assert made.repeated == ("chats.jsonl",)
    assert made.manifest.totals.n_loss == 2 * made.parts[0][1].totals.n_loss


def test_unequal_recipes_name_the_key_that_differs(three: tuple[list[Any], list[Path]], tmp_path: Path) -> None:
    other = prepare([chat(1, 4)], tmp_path / "other", sequence_length=512, on_bad_record="reject", train_on=("all",))
    with pytest.raises(UsageError, match=r"sequence_length is 1024 and 512; train_on is \['assistant'\] and \['all'\]"):
        merge.merge([three[1][0], other], tmp_path / "new")
    shorter = prepare([chat(1, 4)], tmp_path / "shorter", sequence_length=512, on_bad_record="reject")
    with pytest.raises(UsageError, match="repack changes sequence_length"):
        merge.merge([three[1][0], shorter], tmp_path / "new")


def test_unequal_tokenizers_are_refused(three: tuple[list[Any], list[Path]], tmp_path: Path) -> None:
    files = dict(TOKENIZER.files)
    name = next(name for name in files if name == "tokenizer.json")
    files[name] = files[name] + b"\n"
    recipe = Recipe(sequence_length=1024, on_bad_record="reject")
    maskpipe.prepare([chat(1, 4)], tmp_path / "other", tokenizer=Tokenizer(files, "other"), recipe=recipe, workers=1)
    with pytest.raises(UsageError, match=r"different tokenizers: tokenizer\.json differs"):
        merge.merge([three[1][0], tmp_path / "other"], tmp_path / "new")


def test_a_dataset_without_chunks_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        publish_documents(tmp_path / name, [made_chat(20, row) for row in range(4)])
    with pytest.raises(UsageError, match=r"has no chunks\.jsonl"):
        merge.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "new", allow_repeats=True)


def test_damage_and_taken_names_publish_nothing(three: tuple[list[Any], list[Path]], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in three[1][1].iterdir():
        data = bytearray(file.read_bytes())
        if file.suffix == ".arrow":
            data[len(data) // 2] ^= 1
        (copy / file.name).write_bytes(data)
    with pytest.raises(DatasetError):
        merge.merge([three[1][0], copy], tmp_path / "new")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        merge.append(three[1][0], [chat(1, 4)], copy)
    with pytest.raises(UsageError, match="at least two"):
        merge.merge([copy], tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


def test_deduplicated_datasets_are_not_merged(tmp_path: Path) -> None:
    """They may say the same, and nothing in them tells."""
    for name, records in (("a", [chat(1, 5), chat(2, 5)]), ("b", [chat(2, 5), chat(3, 5)])):
        prepare(records, tmp_path / name, deduplicate=True)
    with pytest.raises(UsageError, match=r"its recipe deduplicates.*prepare all sources together"):
        merge.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_append_says_that_caps_and_weights_name_other_sources(tmp_path: Path) -> None:
    prepare([chat(1, 5)], tmp_path / "a", source_weights={"iterable": 2.0})
    with pytest.raises(UsageError, match="its recipe has source_weights, which name its own sources"):
        merge.append(tmp_path / "a", [chat(2, 5)], tmp_path / "all")


def test_an_append_that_was_stopped_goes_on_under_the_same_name(tmp_path: Path) -> None:
    prepare([chat(1, 5)], tmp_path / "a")
    with pytest.raises(RecordError):
        merge.append(tmp_path / "a", [chat(2, 5), {"messages": 3}], tmp_path / "all")
    assert [path.name for path in tmp_path.iterdir() if "all" in path.name] in ([], ["all.more.partial"])
    merge.append(tmp_path / "a", [chat(2, 5)], tmp_path / "all")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "all"]


def test_a_split_dataset_grows_by_merging_side_with_side(tmp_path: Path) -> None:
    """As append advises: then each side holds what one preparation of everything puts there."""
    lines = demo_data.chats().read_bytes().splitlines(keepends=True)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for k, file in enumerate(files):
        file.write_bytes(b"".join(lines[k::2]))
        prepare(file, tmp_path / f"out{k}", sequence_length=1024, validation=0.3)
    with pytest.raises(UsageError, match="merge train with train and validation with validation"):
        merge.append(tmp_path / "out0" / "train", files[1], tmp_path / "new")
    whole = prepare(files, tmp_path / "whole", sequence_length=1024, validation=0.3)
    for side in ("train", "validation"):
        merge.merge([tmp_path / "out0" / side, tmp_path / "out1" / side], tmp_path / side)
        assert facts(tmp_path / side)[0] == facts(whole / side)[0]
