"""prepare: the same bytes for any number of workers, nothing lost, nothing half-published."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import maskpipe
from maskpipe import demo_data, partitions
from maskpipe.chat import read_record
from maskpipe.document import Document
from maskpipe.encoder import Encoder
from maskpipe.errors import RecordError, UsageError
from maskpipe.progress import Seen
from maskpipe.recipe import Recipe
from maskpipe.roles import Role
from maskpipe.shards.verify import verify
from maskpipe.sources import limits
from maskpipe.tokenizer import Tokenizer
from maskpipe.trial import dry_run

TOKENIZER = Tokenizer.load(demo_data.tokenizer())
SHORT = Recipe(sequence_length=512)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a few records, partitions of a few chunks, shards of a few rows: every seam is crossed."""
    monkeypatch.setattr(limits, "CHUNK_BYTES", 4 << 10)
    monkeypatch.setattr(partitions, "PARTITION_TOKENS", 4000)
    monkeypatch.setattr(partitions, "PARTITION_SEQUENCES", 1)
    monkeypatch.setattr(Recipe, "shard_bytes", 4 * 512 * 5)


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.name != "run.json"}


@pytest.mark.usefixtures("small_steps")
def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    made = {}
    for workers in (1, 2, 3, 7):
        out = tmp_path / f"out{workers}"
        maskpipe.prepare(demo_data.chats(), out, tokenizer=TOKENIZER, recipe=SHORT, workers=workers)
        made[workers] = bytes_of(out)
    assert sum(name.endswith(".arrow") for name in made[1]) > 3
    assert made[1] == made[2] == made[3] == made[7]


def test_the_bytes_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    program = (
        "import sys, maskpipe\n"
        "from maskpipe import demo_data\n"
        "maskpipe.prepare(demo_data.chats(), sys.argv[1], tokenizer=demo_data.tokenizer(), workers=1)\n"
    )
    for seed in ("1", "2"):
        out = tmp_path / f"out{seed}"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", program, str(out)], check=True, env=environment, timeout=120)
    assert bytes_of(tmp_path / "out1") == bytes_of(tmp_path / "out2")


def key(document: Document) -> tuple[object, ...]:
    arrays = (document.input_ids, document.role_ids, document.part_ids, document.flags, document.message_ids)
    weights = None if document.weights is None else document.weights.tobytes()
    return (document.source, document.row, document.turn, weights, *(array.tobytes() for array in arrays))


@pytest.mark.usefixtures("small_steps")
def test_what_was_encoded_is_what_is_in_the_shards(tmp_path: Path) -> None:
    """Chunks, partitions, the leftover pass, packing and files lose and change nothing: ids, facts and weights."""
    prepared = maskpipe.prepare(demo_data.chats(), tmp_path / "out", tokenizer=TOKENIZER, recipe=SHORT, workers=1)
    encoder = Encoder(TOKENIZER, SHORT)
    expected: Counter[tuple[object, ...]] = Counter()
    for row, line in enumerate(demo_data.chats().read_text(encoding="utf-8").strip().split("\n")):
        encoded = encoder.encode(read_record(json.loads(line), SHORT, row=row))
        expected.update(key(document) for document in encoded.documents)
    dataset = maskpipe.open(tmp_path / "out")
    assert Counter(key(document) for document in dataset.documents()) == expected
    assert prepared.manifest.totals.n_tokens == sum(
        len(sequence.input_ids) - np.count_nonzero(sequence.segment_ids == 0) for sequence in dataset
    )
    verify(tmp_path / "out")


@pytest.mark.usefixtures("small_steps")
def test_rows_that_stay_badly_filled_are_packed_again_across_partitions(tmp_path: Path) -> None:
    maskpipe.prepare(demo_data.chats(), tmp_path / "out", tokenizer=TOKENIZER, recipe=SHORT, workers=1)
    filled = [int(np.count_nonzero(row.segment_ids)) / 512 for row in maskpipe.open(tmp_path / "out")]
    half_empty = [share for share in filled if share < 0.5]
    assert len(half_empty) <= 1


def test_no_label_crosses_a_document_border_and_padding_has_no_loss(tmp_path: Path) -> None:
    maskpipe.prepare(demo_data.chats(), tmp_path / "out", tokenizer=TOKENIZER, recipe=SHORT, workers=1)
    for sequence in maskpipe.open(tmp_path / "out"):
        assert not sequence.loss_mask[sequence.cu_seqlens[:-1]].any()
        assert (sequence.labels[sequence.cu_seqlens[:-1]] == -100).all()
        padding = sequence.segment_ids == 0
        assert not sequence.loss_mask[padding].any()
        assert (sequence.role_ids[padding] == Role.PADDING).all()
        assert (sequence.labels[padding] == -100).all()


def test_a_full_pretraining_row_of_8192_tokens_has_8191_targets(tmp_path: Path) -> None:
    text = demo_data.prose().read_text(encoding="utf-8")
    while len(TOKENIZER.encode(text).input_ids) < 8192 * 2:
        text += text
    recipe = Recipe(objective="pretrain", packing="concat_split")
    maskpipe.prepare([{"text": text}], tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe, workers=1)
    dataset = maskpipe.open(tmp_path / "out")
    assert dataset[0].n_loss == 8191
    assert dataset[0].loss_mask.sum() == 8191
    assert dataset[0].loss_mask[0] == 0


def chats_with(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "chats.jsonl"
    good = demo_data.chats().read_text(encoding="utf-8").split("\n")[:3]
    path.write_text("\n".join([*good, *lines]) + "\n", encoding="utf-8")
    return path


def test_a_bad_record_stops_with_file_line_and_what_to_do_and_leaves_nothing(tmp_path: Path) -> None:
    path = chats_with(tmp_path, '{"messages": [{"role": "wizard", "content": "hm"}]}')
    with pytest.raises(RecordError, match=r"chats\.jsonl:4: .*wizard.*--on-bad-record reject") as caught:
        maskpipe.prepare(path, tmp_path / "out", tokenizer=TOKENIZER, workers=1)
    assert caught.value.reason == "unknown_role"
    assert sorted(os.listdir(tmp_path)) == ["chats.jsonl"]


def test_a_bad_record_in_a_worker_process_is_the_same_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK_BYTES", 256)
    path = chats_with(tmp_path, "{not json")
    with pytest.raises(RecordError, match=r"chats\.jsonl:4: .*out\.partial: run the same command again"):
        maskpipe.prepare(path, tmp_path / "out", tokenizer=TOKENIZER, workers=2)
    assert sorted(os.listdir(tmp_path)) == ["chats.jsonl", "out.partial"]


def test_rejected_records_are_listed_and_counted(tmp_path: Path) -> None:
    path = chats_with(tmp_path, "{not json", '{"messages": [{"role": "user", "content": "only me"}]}')
    recipe = Recipe(on_bad_record="reject")
    prepared = maskpipe.prepare(path, tmp_path / "out", tokenizer=TOKENIZER, recipe=recipe, workers=1)
    assert prepared.manifest.rejected == {"not_json": 1, "nothing_to_train": 1}
    assert prepared.manifest.records == 5
    assert prepared.manifest.records_kept == 3
    listed = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()]
    assert [(entry["row"], entry["reason"]) for entry in listed] == [(3, "not_json"), (4, "nothing_to_train")]
    assert "chats.jsonl:4" in listed[0]["message"]
    verify(tmp_path / "out")


def test_when_no_record_is_left_that_is_an_error(tmp_path: Path) -> None:
    records = [{"messages": [{"role": "user", "content": "only me"}]}]
    with pytest.raises(RecordError, match="no record is left of 1 \\(1 nothing_to_train\\)"):
        maskpipe.prepare(records, tmp_path / "out", tokenizer=TOKENIZER, workers=1)
    assert not (tmp_path / "out").exists()


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="nothing is overwritten"):
        maskpipe.prepare(demo_data.chats(), out, tokenizer=TOKENIZER, workers=1)
    assert bytes_of(out) == {"thesis.tex": b"mine"}


def test_an_interrupt_leaves_finished_work_and_the_same_command_goes_on(tmp_path: Path) -> None:
    def interrupt(seen: Seen) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="run the same command again"):
        maskpipe.prepare(demo_data.chats(), tmp_path / "out", tokenizer=TOKENIZER, workers=1, progress=interrupt)
    assert os.listdir(tmp_path) == ["out.partial"]
    maskpipe.prepare(demo_data.chats(), tmp_path / "out", tokenizer=TOKENIZER, workers=1)
    assert os.listdir(tmp_path) == ["out"]
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["tasks"]["found"] == {"map": 1}


def test_every_conversation_can_be_proved_by_shadow_rendering(tmp_path: Path) -> None:
    prepared = maskpipe.prepare(demo_data.chats(), tmp_path / "out", tokenizer=TOKENIZER, workers=1, proof=-1)
    assert prepared.counts["proof_proved"] == prepared.manifest.records_kept
    assert prepared.counts["proof_cannot"] == 0


def test_a_dry_run_says_what_prepare_makes_and_writes_nothing(tmp_path: Path) -> None:
    trial = dry_run(demo_data.chats(), tokenizer=TOKENIZER, recipe=SHORT)
    prepared = maskpipe.prepare(demo_data.chats(), tmp_path / "out", tokenizer=TOKENIZER, recipe=SHORT, workers=1)
    totals = prepared.manifest.totals
    assert (trial.tokens, trial.loss_tokens, trial.sequences) == (totals.n_tokens, totals.n_loss, totals.sequences)
    assert dry_run(demo_data.chats(), tokenizer=TOKENIZER, records=5).records == 5


def test_the_recipe_of_a_dataset_makes_the_same_dataset_again(tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}<|done|>{% endfor %}")
    recipe = Recipe(chat_template=str(template), on_content_lost="count")
    maskpipe.prepare(demo_data.chats(), tmp_path / "a", tokenizer=TOKENIZER, recipe=recipe, workers=1)
    again = Recipe.load(tmp_path / "a" / "recipe.yaml")
    maskpipe.prepare(demo_data.chats(), tmp_path / "b", tokenizer=TOKENIZER, recipe=again, workers=1)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert b"<|turn|>" in (tmp_path / "a" / "template.jinja").read_bytes()


def test_compressed_and_plain_sources_give_the_same_documents(tmp_path: Path) -> None:
    packed = tmp_path / "chats.jsonl.gz"
    packed.write_bytes(gzip.compress(demo_data.chats().read_bytes(), mtime=0))
    a = maskpipe.prepare(packed, tmp_path / "a", tokenizer=TOKENIZER, workers=1)
    b = maskpipe.prepare(demo_data.chats(), tmp_path / "b", tokenizer=TOKENIZER, workers=1)
    assert [shard.name for shard in a.manifest.shards] == [shard.name for shard in b.manifest.shards]
    assert a.manifest.sources[0].sha256 != b.manifest.sources[0].sha256
