"""Exports say what the dataset says, and a trainer that knows nothing of maskpipe computes the same loss from them."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import maskpipe
from maskpipe import demo_data
from maskpipe.errors import DatasetError, UsageError
from maskpipe.exports import Options, export
from maskpipe.exports.rows import IGNORE
from maskpipe.recipe import Recipe


def weighted(record: dict[str, Any]) -> bool:
    messages = record["messages"] if isinstance(record.get("messages"), list) else []
    return any(message.get("weight") not in (None, 0, 1) for message in messages if isinstance(message, dict))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo chats without those whose weights labels cannot express."""
    records = [json.loads(line) for line in demo_data.chats().read_bytes().split(b"\n") if line]
    out = tmp_path_factory.mktemp("export") / "out"
    maskpipe.prepare(
        [record for record in records if not weighted(record)],
        out,
        tokenizer=demo_data.tokenizer(),
        recipe=Recipe(sequence_length=512),
        workers=1,
    )
    return out


def read(directory: Path) -> list[dict[str, list[int]]]:
    return [row for file in sorted(directory.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_every_row_is_the_sequence_without_its_padding(dataset: Path, tmp_path: Path) -> None:
    made = export(dataset, tmp_path / "hf")
    rows = read(tmp_path / "hf")
    opened = maskpipe.open(dataset)
    assert made.sequences == len(rows) == len(opened)
    for row, sequence in zip(rows, opened, strict=True):
        filled = len(row["input_ids"])
        assert row["input_ids"] == sequence.input_ids[:filled].tolist()
        assert not np.any(sequence.segment_ids[filled:])
        assert row["position_ids"] == sequence.position_ids[:filled].tolist()
        for k, label in enumerate(row["labels"]):
            assert label == (row["input_ids"][k] if sequence.loss_mask[k] else IGNORE)
        assert sum(row["seq_lengths"]) == filled
        starts = list(itertools.accumulate([0, *row["seq_lengths"][:-1]]))
        assert [row["position_ids"][start] for start in starts] == [0] * len(starts)
        assert {row["labels"][start] for start in starts} == {IGNORE}
    assert sum(label != IGNORE for row in rows for label in row["labels"]) == made.loss_tokens
    assert made.loss_tokens == opened.manifest.totals.n_loss


def test_columns_are_lists_of_int64_and_the_card_finds_them(dataset: Path, tmp_path: Path) -> None:
    made = export(dataset, tmp_path / "hf")
    schema = pq.read_schema(tmp_path / "hf" / made.files[0])
    assert schema.names == ["input_ids", "labels", "position_ids", "seq_lengths"]
    assert {str(field.type.value_type) for field in schema} == {"int64"}
    origin = json.loads(schema.metadata[b"maskpipe"])
    assert origin["fingerprint"] == maskpipe.open(dataset).manifest.fingerprint
    assert "path: train-*.parquet" in (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")


def test_the_same_dataset_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("a", "b"):
        export(dataset, tmp_path / name)
        contents.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]


def test_an_existing_destination_is_refused_and_left_alone(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="already there"):
        export(dataset, tmp_path / "hf")
    assert [file.name for file in tmp_path.rglob("*")] == ["hf", "mine.txt"]


def test_weights_that_labels_cannot_say_are_refused_or_counted(tmp_path: Path) -> None:
    chat = {
        "messages": [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "First answer.", "weight": 0.5},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "Second answer.", "weight": 0},
        ]
    }
    made = maskpipe.prepare(
        [chat], tmp_path / "out", tokenizer=demo_data.tokenizer(), recipe=Recipe(sequence_length=64), workers=1
    )
    with pytest.raises(UsageError, match=r"0\.5.*--ignore-weights"):
        export(tmp_path / "out", tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    exported = export(tmp_path / "out", tmp_path / "hf", options=Options(ignore_weights=True))
    assert exported.reweighted == exported.loss_tokens == made.manifest.totals.n_loss > 0


def test_a_damaged_dataset_exports_nothing(dataset: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in dataset.iterdir():
        data = bytearray(file.read_bytes())
        if file.suffix == ".arrow":
            data[len(data) // 2] ^= 1
        (copy / file.name).write_bytes(data)
    with pytest.raises(DatasetError):
        export(copy, tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy"]


@pytest.mark.filterwarnings("default")
def test_datasets_loads_an_export_by_its_card(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    made = export(dataset, tmp_path / "hf")
    loaded = datasets.load_dataset(str(tmp_path / "hf"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == made.sequences
    assert loaded[0] == read(tmp_path / "hf")[0]


@pytest.mark.filterwarnings("default")
def test_trl_trains_one_step_with_the_loss_that_our_own_masks_give(dataset: Path, tmp_path: Path) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch = pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    trl = pytest.importorskip("trl", reason="needs trl")
    datasets = pytest.importorskip("datasets", reason="needs datasets")

    export(dataset, tmp_path / "hf")
    rows = datasets.load_dataset(str(tmp_path / "hf"), split="train", cache_dir=str(tmp_path / "cache")).select([0, 1])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(demo_data.tokenizer() / "tokenizer.json"), eos_token="<|done|>", pad_token="<|pad|>"
    )
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        vocab_size=maskpipe.open(dataset).manifest.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_implementation="eager",
        initializer_range=0.5,  # far from uniform, so that another mask or another context gives another loss
    )
    model = transformers.Qwen2ForCausalLM(config)
    expected = loss_by_hand(torch, model, dataset, rows=2)
    assert abs(loss_by_hand(torch, model, dataset, rows=2, shift=1) - expected) > 0.005
    assert abs(loss_by_hand(torch, model, dataset, rows=2, across=True) - expected) > 0.005

    before = model.lm_head.weight.detach().clone()
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "run"),
            padding_free=True,
            max_length=None,
            max_steps=1,
            per_device_train_batch_size=2,
            logging_steps=1,
            learning_rate=1e-3,
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == [pytest.approx(expected, abs=2e-4)]
    assert not torch.equal(before, model.lm_head.weight)


def loss_by_hand(torch: Any, model: Any, dataset: Path, rows: int, *, shift: int = 0, across: bool = False) -> float:
    """Mean of -log p over the targets with loss, each document alone, from maskpipe's own masks. Wrong ones, to see
    that it matters: the mask shifted, attention across documents."""
    total, count = 0.0, 0
    opened = maskpipe.open(dataset)
    with torch.no_grad():
        for index in range(rows):
            sequence = opened[index]
            mask = np.roll(sequence.loss_mask, shift)
            bounds = sequence.cu_seqlens.tolist()
            for start, stop in itertools.pairwise(bounds[:: len(bounds) - 1] if across else bounds):
                ids = torch.tensor(sequence.input_ids[start:stop].astype(np.int64))[None]
                logs = model(input_ids=ids).logits[0].log_softmax(-1)
                for k in range(1, stop - start):
                    if mask[start + k]:
                        total -= float(logs[k - 1, ids[0, k]])
                        count += 1
    return total / count
