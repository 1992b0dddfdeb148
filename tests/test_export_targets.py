"""Each target's reader gets the same tokens, borders and targets that the dataset has."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

import maskpipe
from maskpipe import demo_data
from maskpipe.errors import UsageError
from maskpipe.exports import Options, export
from maskpipe.exports.megatron_bridge import METADATA, eos_id
from maskpipe.exports.olmo import token_dtype
from maskpipe.exports.rows import IGNORE
from maskpipe.roles import Flag
from maskpipe.tokenizer import Tokenizer
from tests.test_repack import TOKENIZER, chat, prepare, reasoning, words

Pairs = list[tuple[int, int]]
"""Per target: (the token before it, the target)."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    records = [chat(1 + k % 4, 3 + k % 20) for k in range(60)] + [reasoning(2, 5 + k) for k in range(5)]
    return prepare(records, tmp_path_factory.mktemp("export") / "out", sequence_length=256)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Plain text, cut where rows end: fragments, some of one token."""
    texts = [{"text": words(2 + row % 7, row)} for row in range(300)]
    recipe = {"objective": "pretrain", "packing": "concat_split", "sequence_length": 16}
    return prepare(texts, tmp_path_factory.mktemp("export") / "text", **recipe)


def documents_of(out: Path) -> list[tuple[list[int], list[int]]]:
    """Ids and loss of each document or fragment, in order, from the facts alone."""
    with maskpipe.open(out) as dataset:
        return [(d.input_ids.tolist(), (d.flags & Flag.LOSS > 0).astype(int).tolist()) for d in dataset.documents()]


def pairs_of(documents: list[tuple[list[int], list[int]]]) -> Pairs:
    return [(ids[k - 1], ids[k]) for ids, loss in documents for k in range(1, len(ids)) if loss[k]]


# -- megatron-bridge


def read_megatron(directory: Path, eos: int) -> tuple[list[list[int]], Pairs]:
    """The rules of GPTSFTPackedParquetDataset and GPTSFTPackedDataset.collate_fn, Megatron-Bridge 0.6.2: its documents,
    and what its loss is over. `answer_only_loss` is True."""
    documents, pairs = [], []
    for path in sorted(directory.glob("*.parquet")):
        table = pq.read_table(path)
        assert {"input_ids", "loss_mask", "seq_start_id"} <= set(table.schema.names)
        for row in table.to_pylist():
            ids, mask, starts = row["input_ids"], row["loss_mask"], row["seq_start_id"]
            assert len(mask) == len(ids) and starts[0] == 0  # validate_row
            assert all(a <= b for a, b in itertools.pairwise(starts)) and starts[-1] < len(ids)
            boundaries = [*starts, len(ids)]
            for start, end in itertools.pairwise(boundaries):
                documents.append(ids[start:end])
                tokens, labels, loss = ids[start : end - 1], ids[start + 1 : end], mask[start : end - 1]
                for token, label, counts in zip(tokens, labels, loss, strict=True):
                    if counts and token != eos:  # loss_mask[tokens == eos_id] = 0
                        pairs.append((token, label))
    return documents, pairs


@pytest.mark.parametrize("which", ["dataset", "text"])
def test_megatron_bridge_reads_the_same_documents_and_targets(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    out: Path = request.getfixturevalue(which)
    made = export(out, tmp_path / "mb", "megatron-bridge")
    eos = eos_id(Tokenizer.load(out))
    assert eos is not None
    documents, pairs = read_megatron(tmp_path / "mb", eos)
    ours = documents_of(out)
    assert documents == [ids for ids, _ in ours if len(ids) > 1]
    assert pairs == pairs_of(ours)
    assert len(pairs) == made.loss_tokens == maskpipe.open(out).manifest.totals.n_loss
    assert made.counted["skipped_tokens"] == sum(len(ids) == 1 for ids, _ in ours)
    schema = pq.read_schema(next((tmp_path / "mb").glob("*.idx.parquet")))
    assert [str(field.type.value_type) for field in schema] == ["int32", "int8", "int32"]


def test_the_mask_of_megatron_bridge_is_one_off_from_labels(dataset: Path, tmp_path: Path) -> None:
    """With the mask where the target stands, which is the usual mistake, its loss would be over other tokens."""
    export(dataset, tmp_path / "mb", "megatron-bridge")
    row = pq.read_table(next((tmp_path / "mb").glob("*.parquet"))).to_pylist()[0]
    sequence = maskpipe.open(dataset)[0]
    filled = int(sequence.cu_seqlens[-1])
    assert row["loss_mask"] == [*sequence.loss_mask[1:filled].tolist(), 0]
    assert row["loss_mask"] != sequence.loss_mask[:filled].tolist()


def test_targets_behind_an_eos_are_refused_or_counted(tmp_path: Path) -> None:
    """train_on=all trains the newline behind the stop token, which this reader takes the loss from."""
    out = prepare([chat(3, 5)] * 4, tmp_path / "out", sequence_length=256, train_on=("all",))
    eos = eos_id(TOKENIZER)
    assert eos is not None
    lost = sum(before == eos for before, _ in pairs_of(documents_of(out)))
    assert lost > 0
    with pytest.raises(UsageError, match=r"targets? right behind the eos token .*--allow-lost-targets"):
        export(out, tmp_path / "mb", "megatron-bridge")
    made = export(out, tmp_path / "mb", "megatron-bridge", options=Options(allow_lost_targets=True))
    assert made.counted["lost_targets"] == lost
    assert len(read_megatron(tmp_path / "mb", eos)[1]) == made.loss_tokens - lost
    assert f"{lost:,} targets that this reader takes the loss from" in str(made)


def test_the_metadata_says_what_megatron_bridge_would_have_noted(dataset: Path, tmp_path: Path) -> None:
    export(dataset, tmp_path / "mb", "megatron-bridge")
    (noted,) = json.loads((tmp_path / "mb" / METADATA).read_text())
    rows = [row for path in sorted((tmp_path / "mb").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    lengths = [np.diff([*row["seq_start_id"], len(row["input_ids"])]) - 1 for row in rows]
    assert noted["dataset_max_seqlen"] == max(int(row.max()) for row in lengths)
    assert noted["max_samples_per_bin"] == max(map(len, lengths))
    assert noted["min_packed_seqlen"] == min(int(row.sum()) for row in lengths)
    assert noted["pack_size"] == 256


# -- olmo


def read_olmo(directory: Path) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], list[tuple[int, int]]]:
    """All tokens, label masks and document borders, as OLMo-core 3.0.0 reads such files."""
    dtype = np.dtype(json.loads((directory / "dataset.json").read_text())["dtype"])
    ids, masks, borders = [], [], []
    at = 0
    for path in sorted(directory.glob("token_ids_part_*.npy")):
        mask = path.with_name(path.name.replace("token_ids", "labels_mask"))
        ids.append(np.fromfile(path, dtype))
        masks.append(np.fromfile(mask, np.bool_))
        assert len(ids[-1]) == len(masks[-1])
        metadata = path.with_name(path.name.replace(".npy", ".csv.gz"))
        if metadata.exists():
            with gzip.open(metadata, "rt") as lines:
                borders += [tuple(at + int(word) for word in line.split(",")) for line in lines]
        at += len(ids[-1])
    return np.concatenate(ids), np.concatenate(masks), borders  # type: ignore[return-value]


@pytest.mark.parametrize("which", ["dataset", "text"])
def test_olmo_reads_the_same_documents_and_targets(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    out: Path = request.getfixturevalue(which)
    made = export(out, tmp_path / "olmo", "olmo")
    ids, mask, borders = read_olmo(tmp_path / "olmo")
    assert [(ids[a:b].tolist(), mask[a:b].astype(int).tolist()) for a, b in borders] == documents_of(out)
    assert int(mask.sum()) == made.loss_tokens == maskpipe.open(out).manifest.totals.n_loss


def test_rows_across_documents_are_fixed_and_have_no_target_at_a_border(dataset: Path, tmp_path: Path) -> None:
    made = export(dataset, tmp_path / "olmo", "olmo", options=Options(across_documents=True))
    ids, mask, borders = read_olmo(tmp_path / "olmo")
    assert not borders and len(ids) == 256 * made.sequences
    with maskpipe.open(dataset) as opened:
        for k, sequence in enumerate(opened):
            assert ids[256 * k : 256 * (k + 1)].tolist() == sequence.input_ids.tolist()
            assert mask[256 * k : 256 * (k + 1)].tolist() == (sequence.loss_mask > 0).tolist()
    # get_labels: labels = ids where the mask is, else -100, moved one to the left
    labels = np.where(mask, ids.astype(np.int64), IGNORE).reshape(-1, 256)[:, 1:]
    before = ids.reshape(-1, 256)[:, :-1][labels != IGNORE]
    assert list(zip(before.tolist(), labels[labels != IGNORE].tolist(), strict=True)) == pairs_of(documents_of(dataset))
    assert "attends across documents" in (tmp_path / "olmo" / "README.md").read_text()


@pytest.mark.parametrize(("size", "name"), [(256, "uint8"), (257, "uint16"), (65536, "uint16"), (151936, "uint32")])
def test_the_token_type_is_the_one_that_olmo_core_assumes(size: int, name: str) -> None:
    assert token_dtype(size).name == name


@pytest.mark.filterwarnings("default")
def test_the_reader_of_olmo_core_gives_our_labels(dataset: Path, tmp_path: Path) -> None:
    module = pytest.importorskip("olmo_core.data.numpy_dataset", reason="needs ai2-olmo-core")
    utils = pytest.importorskip("olmo_core.data.utils", reason="needs ai2-olmo-core")
    export(dataset, tmp_path / "olmo", "olmo")
    described = json.loads((tmp_path / "olmo" / "dataset.json").read_text())
    paths = sorted(map(str, (tmp_path / "olmo").glob("token_ids_part_*.npy")))
    eos = eos_id(TOKENIZER)
    common = {
        "sequence_length": 256, "pad_token_id": described["pad_id"], "eos_token_id": eos,
        "vocab_size": described["vocab_size"], "dtype": getattr(np, described["dtype"]), "generate_doc_lengths": True,
        "label_mask_paths": [path.replace("token_ids", "labels_mask") for path in paths],
    }  # fmt: skip
    reader = module.NumpyPackedFSLDataset(*paths, **common, use_array_if_local=False)
    reader.work_dir = tmp_path / "work"
    reader.prepare()
    found: Pairs = []
    documents = []
    for k in range(len(reader)):
        item = reader[k]
        labels = utils.get_labels({name: value[None] for name, value in item.items() if name != "doc_lens"})[0]
        ids = item["input_ids"]
        found += [(int(ids[i]), int(labels[i])) for i in range(len(ids)) if labels[i] != IGNORE]
        at = 0
        for length in item["doc_lens"].tolist():
            documents.append(ids[at : at + length].tolist())
            at += length
    ours = documents_of(dataset)
    assert sorted(found) == sorted(pairs_of(ours))
    padding = [document for document in documents if set(document) == {described["pad_id"]}]
    assert sorted(d for d in documents if d not in padding) == sorted(ids for ids, _ in ours)


# -- trl


@pytest.mark.parametrize("unpack", [False, True])
def test_trl_rows_are_what_its_collator_takes(dataset: Path, tmp_path: Path, unpack: bool) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    trainer = pytest.importorskip("trl.trainer.sft_trainer", reason="needs trl")
    made = export(dataset, tmp_path / "trl", "trl", options=Options(unpack=unpack))
    rows = [row for path in sorted((tmp_path / "trl").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert list(rows[0]) == ["input_ids", "labels"] + ([] if unpack else ["seq_lengths"])
    ours = documents_of(dataset)
    found: Pairs = []
    documents = []
    for k in range(0, len(rows), 3):
        batch = trainer.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=not unpack)(rows[k : k + 3])
        shifted = torch.nn.functional.pad(batch["labels"], (0, 1), value=IGNORE)[:, 1:]  # as causal LM losses do
        for ids, labels in zip(batch["input_ids"].tolist(), shifted.tolist(), strict=True):
            found += [(a, b) for a, b in zip(ids, labels, strict=True) if b != IGNORE]
        if not unpack:
            bounds = batch["cu_seq_lens_q"].tolist()
            flat = batch["input_ids"][0].tolist()
            documents += [flat[a:b] for a, b in itertools.pairwise(bounds)]
    assert found == pairs_of(ours)
    assert len(found) == made.loss_tokens
    assert unpack or documents == [ids for ids, _ in ours]


# -- what all have in common


@pytest.mark.parametrize("to", ["hf", "trl", "megatron-bridge", "olmo"])
def test_every_target_counts_the_same_says_what_is_lost_and_is_deterministic(
    to: Any, dataset: Path, tmp_path: Path
) -> None:
    contents = []
    for name in ("a", "b"):
        made = export(dataset, tmp_path / name, to)
        contents.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
        assert {*made.files, "README.md"} == contents[-1].keys()
    totals = maskpipe.open(dataset).manifest.totals
    assert (made.tokens, made.loss_tokens, made.sequences) == (totals.n_tokens, totals.n_loss, totals.sequences)
    assert contents[0] == contents[1]
    card = contents[0]["README.md"].decode()
    assert "roles, parts" in card and f"{totals.n_loss:,} of them targets" in card
    assert "roles, parts" in str(made) and f"{totals.n_loss:,} with loss" in str(made)


@pytest.mark.parametrize("to", ["trl", "megatron-bridge", "olmo"])
def test_weights_are_refused_by_every_target(to: Any, tmp_path: Path) -> None:
    record = chat(1, 4)
    record["messages"][1]["weight"] = 0.5
    out = prepare([record], tmp_path / "out", sequence_length=64)
    with pytest.raises(UsageError, match=r"0\.5.*--ignore-weights"):
        export(out, tmp_path / "new", to)
    made = export(out, tmp_path / "new", to, options=Options(ignore_weights=True))
    assert made.reweighted == made.loss_tokens > 0


def test_options_that_a_target_does_not_know_are_refused(dataset: Path, tmp_path: Path) -> None:
    for to, options in (("olmo", Options(unpack=True)), ("hf", Options(across_documents=True))):
        with pytest.raises(UsageError, match=f"has no meaning for --to {to}"):
            export(dataset, tmp_path / "new", to, options=options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must be one of hf, trl, trl-dpo, megatron-bridge, olmo"):
        export(dataset, tmp_path / "new", "webdataset")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_the_demo_tokenizer_has_an_eos() -> None:
    assert eos_id(TOKENIZER) == eos_id(Tokenizer.load(demo_data.tokenizer())) is not None
