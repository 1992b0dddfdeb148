"""The audit of what other tools prepared: what is read, what is clean, and what is said of what cannot be read."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import maskpipe
from maskpipe import demo_data
from maskpipe.auditing.foreign import audit_foreign
from maskpipe.auditing.report import Report
from maskpipe.encoder import Encoder
from maskpipe.errors import DatasetError, UsageError
from maskpipe.exports import Options, export
from tests import foreign_data
from tests.foreign_data import Chat


def chat(first: str, answer: str, system: str = "") -> list[dict[str, Any]]:
    start = [{"role": "system", "content": system}] if system else []
    return [*start, {"role": "user", "content": first}, {"role": "assistant", "content": answer}]


def encoded(messages: list[list[dict[str, Any]]], tokenizer: maskpipe.Tokenizer) -> list[Chat]:
    encoder = Encoder(tokenizer, maskpipe.Recipe())
    out = []
    for row, chat_messages in enumerate(messages):
        for document in encoder.encode(maskpipe.Conversation(messages=chat_messages, row=row)).documents:
            out.append(
                Chat(
                    document.input_ids.tolist(),
                    document.loss_mask.tolist(),
                    document.role_ids.tolist(),
                    document.sampled.tolist(),
                    document.part_ids.tolist(),
                )
            )
    return out


@cache
def demo() -> maskpipe.Tokenizer:
    """One object: what its template writes is learnt once."""
    return maskpipe.Tokenizer.load(demo_data.tokenizer())


@pytest.fixture(scope="module")
def tokenizer() -> maskpipe.Tokenizer:
    return demo()


@pytest.fixture(scope="module")
def chats(tokenizer: maskpipe.Tokenizer) -> list[Chat]:
    return encoded(
        [
            chat("What is in the box?", "A cat."),
            chat("And now?", "\nStill a cat, I think.", "Be brief."),
            [*chat("One?", "Two."), *chat("Three?", "Four.")],
            [*chat(" leading space", ""), *chat("again", "fine ")],
            chat("Which river is longer?", "The one in the north, by far. It has more water, too."),
        ],
        tokenizer,
    )


def clean(report: Report) -> None:
    assert [str(finding) for finding in (*report.errors, *report.warnings)] == []


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "out"
    maskpipe.prepare(demo_data.chats(), out, tokenizer=demo_data.tokenizer(), recipe=maskpipe.Recipe())
    return out


@pytest.mark.parametrize(
    ("target", "options", "kind"),
    [
        ("hf", {}, "hf"),
        ("hf", {"unpack": True}, "hf"),
        ("trl", {}, "trl"),
        ("trl", {"unpack": True}, "hf"),
        ("megatron-bridge", {"allow_lost_targets": True}, "megatron-bridge"),
        ("olmo", {}, "olmo"),
    ],
)
def test_our_own_exports_are_clean(prepared: Path, tmp_path: Path, target: Any, options: Any, kind: str) -> None:
    made = export(prepared, tmp_path / "theirs", target, options=Options(ignore_weights=True, **options))
    report = audit_foreign(tmp_path / "theirs", demo())
    clean(report)
    assert report.kind == kind
    assert (report.tokens, report.coverage.metric("loss_tokens")) == (made.tokens, made.loss_tokens)
    assert report.coverage.values["located_documents"] == report.coverage.values["documents"]


def test_rows_of_several_conversations_without_borders_are_an_error(prepared: Path, tmp_path: Path) -> None:
    export(prepared, tmp_path / "theirs", "olmo", options=Options(ignore_weights=True, across_documents=True))
    report = audit_foreign(tmp_path / "theirs", demo())
    assert [finding.code for finding in report.errors] == ["MP203"]


@pytest.mark.parametrize("name", ["assistant_masks", "completion_mask", "loss_mask"])
def test_masks_are_read_like_labels(chats: list[Chat], tmp_path: Path, name: str) -> None:
    report = audit_foreign(foreign_data.write_saved(tmp_path / "d", foreign_data.with_mask(name)(chats)), demo())
    clean(report)
    assert report.rows == len(chats)
    assert report.coverage.metric("loss_tokens") == sum(sum(chat.loss) for chat in chats)
    assert any(line.startswith(f"{name}: 1 where a target has loss") for line in report.coverage.values["read_as"])


def test_a_directory_of_splits_and_the_command_line(
    chats: list[Chat], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from maskpipe.cli import main

    root = tmp_path / "saved"
    for split in ("train", "test"):
        foreign_data.write_saved(root / split, foreign_data.packed(chats))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(SystemExit) as ended:
        main(["audit", str(root), "--tokenizer", str(demo_data.tokenizer()), "--format", "json"])
    assert ended.value.code == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["rows"], printed["levels"]["error"], printed["coverage"]["turns"]["turns"]) == (4, 0, 14)
    assert printed["coverage"]["read_as"][0] == "recognised as hf"


def test_padded_rows_with_pad_equal_to_a_stop_token_are_clean(
    chats: list[Chat], tmp_path: Path, tokenizer: maskpipe.Tokenizer
) -> None:
    stop = tokenizer.added_tokens["<|done|>"]
    columns = foreign_data.padded(chats, stop)
    clean(audit_foreign(foreign_data.write_parquet(tmp_path / "with", columns), tokenizer))
    del columns["attention_mask"]
    clean(audit_foreign(foreign_data.write_parquet(tmp_path / "without", columns), tokenizer))


def test_raw_arrays_without_a_description_use_the_type_of_the_vocabulary(
    chats: list[Chat], tmp_path: Path, tokenizer: maskpipe.Tokenizer
) -> None:
    report = audit_foreign(foreign_data.write_olmo(tmp_path / "d", chats, np.uint16), tokenizer)
    clean(report)
    assert "number type: uint16, the smallest that holds the vocabulary of 4,000" in report.coverage.values["read_as"]


def test_text_without_turns_is_checked_as_far_as_it_goes_and_that_is_said(
    tmp_path: Path, tokenizer: maskpipe.Tokenizer
) -> None:
    texts = [tokenizer.ids(["Plain words, and no turn in them."])[0].tolist() for _ in range(3)]
    columns = {"input_ids": texts, "labels": texts}
    report = audit_foreign(foreign_data.write_parquet(tmp_path / "d", columns), tokenizer)
    clean(report)
    assert [(finding.code, finding.count) for finding in report.notes] == [("MP321", 3)]


def test_columns_that_cannot_be_read_are_an_error_with_their_name(chats: list[Chat], tmp_path: Path) -> None:
    tokenizer = demo()
    with pytest.raises(UsageError, match="no such file"):
        audit_foreign(tmp_path / "nowhere", tokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="nothing here that the audit can read"):
        audit_foreign(tmp_path / "empty", tokenizer)
    pq.write_table(pa.table({"text": ["raw chats"]}), tmp_path / "raw.parquet")
    with pytest.raises(UsageError, match=r"no column input_ids \(found text\)"):
        audit_foreign(tmp_path / "raw.parquet", tokenizer)
    pq.write_table(pa.table({"input_ids": [3, 4]}), tmp_path / "flat.parquet")
    with pytest.raises(UsageError, match="a list of numbers per row is needed"):
        audit_foreign(tmp_path / "flat.parquet", tokenizer)
    rows = pa.array([[1, 2], None], pa.list_(pa.int64()))
    pq.write_table(pa.table({"input_ids": rows}), tmp_path / "null.parquet")
    with pytest.raises(DatasetError, match=r"row 1 has no input_ids \(null\)"):
        audit_foreign(tmp_path / "null.parquet", tokenizer)
    saved = foreign_data.write_saved(tmp_path / "saved", foreign_data.unpacked(chats))
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DatasetError, match=r"data-00001-of-00002\.arrow"):
        audit_foreign(saved, tokenizer)
    with pytest.raises(UsageError, match="give its tokenizer with --tokenizer"):
        maskpipe.audit(saved)


def test_batches_of_arrays_lists_and_objects_are_read_alike(chats: list[Chat], tokenizer: maskpipe.Tokenizer) -> None:
    padded = foreign_data.padded(chats, tokenizer.pad_id)
    arrays = {name: np.array(rows) for name, rows in padded.items()}

    class Batch:
        def __init__(self, data: dict[str, Any]) -> None:
            self.data = data

    for batch in (padded, arrays, Batch(arrays)):
        report = maskpipe.audit_batches([batch, batch], tokenizer)
        clean(report)
        assert (report.kind, report.rows) == ("batches", 2 * len(chats))
    assert maskpipe.audit_batches(iter([arrays] * 5), tokenizer, limit=2).rows == 2 * len(chats)


def test_a_padding_free_batch_is_read_with_its_bounds(chats: list[Chat], tokenizer: maskpipe.Tokenizer) -> None:
    packed = foreign_data.packed(chats, per_row=len(chats))
    bounds = np.concatenate([[0], np.cumsum(packed["seq_lengths"][0])])
    batch = {name: np.array(packed[name]) for name in ("input_ids", "labels", "position_ids")}
    report = maskpipe.audit_batches([batch | {"cu_seq_lens_q": bounds}], tokenizer)
    clean(report)
    assert (report.rows, report.coverage.values["documents"]) == (1, len(chats))
    broken = maskpipe.audit_batches([batch | {"cu_seq_lens_q": bounds + (bounds > 0)}], tokenizer)
    assert "MP202" in {finding.code for finding in broken.errors}


def test_what_is_no_batch_is_named(tokenizer: maskpipe.Tokenizer) -> None:
    with pytest.raises(UsageError, match="no batch came"):
        maskpipe.audit_batches([], tokenizer)
    with pytest.raises(UsageError, match=r"batch 0: no input_ids \(found labels\)"):
        maskpipe.audit_batches([{"labels": [[1]]}], tokenizer)
    with pytest.raises(UsageError, match="batch 1 is a int"):
        maskpipe.audit_batches([{"input_ids": [[1]]}, 3], tokenizer)
    with pytest.raises(UsageError, match=r"has the shape \(1, 1, 2\)"):
        maskpipe.audit_batches([{"input_ids": np.zeros((1, 1, 2), np.int64)}], tokenizer)
