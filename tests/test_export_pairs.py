"""Pairs for TRL's DPOTrainer: its collator trains exactly the tokens that the dataset trains, or the export refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import maskpipe
from maskpipe.errors import UsageError
from maskpipe.exports import Options, export
from maskpipe.recipe import Recipe
from maskpipe.roles import Branch
from tests.reference.pairs import separate_of
from tests.test_pairs import PREFERENCE, TOKENIZER, assistant, pair, simple, user
from tests.test_pairs_datasets import units_of


def prepare(rows: list[dict[str, Any]], out: Path, recipe: Recipe = PREFERENCE) -> Path:
    maskpipe.prepare(rows, out, tokenizer=TOKENIZER, recipe=recipe, workers=0)
    return out


def exported(path: Path) -> list[dict[str, list[int]]]:
    return [row for file in sorted(path.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


@pytest.mark.parametrize("layout", ["separate", "shared_prompt"])
def test_trl_sees_the_same_tokens_and_trains_the_same(tmp_path: Path, layout: Any) -> None:
    history = [user("q"), assistant("a"), user("b")]
    rows = [*map(simple, range(9)), pair(history, [assistant("yes, it is")], [assistant("no")])]
    out = prepare(rows, tmp_path / "out", PREFERENCE.replace(pair_layout=layout))
    made = export(out, tmp_path / "trl", "trl-dpo")
    found = exported(tmp_path / "trl")
    units = units_of(out)
    assert len(found) == len(units) == 10 == made.counted["pairs"]
    for row, unit in zip(found, units, strict=True):
        for document, name in zip(separate_of(unit), ("chosen_ids", "rejected_ids"), strict=True):
            ids = [*row["prompt_ids"], *row[name]]
            mask = [0] * len(row["prompt_ids"]) + [1] * len(row[name])  # what TRL makes of it
            assert ids == document.input_ids[: len(ids)].tolist()
            assert mask == document.loss_mask[: len(ids)].tolist() and not document.loss_mask[len(ids) :].any()
    assert "10 preference pairs" in (tmp_path / "trl" / "README.md").read_text()
    assert f"{made.loss_tokens:,} with loss" in str(made)


def test_trls_collator_takes_it_and_makes_the_mask_of_the_dataset(tmp_path: Path) -> None:
    dpo = pytest.importorskip("trl.trainer.dpo_trainer", reason="needs trl")
    out = prepare([simple(number) for number in range(4)], tmp_path / "out")
    export(out, tmp_path / "trl", "trl-dpo")
    batch = dpo.DataCollatorForPreference(pad_token_id=0)(exported(tmp_path / "trl"))
    documents = [document for unit in units_of(out) for document in unit]
    ordered = [d for branch in (Branch.CHOSEN, Branch.REJECTED) for d in documents if d.branch is branch]
    for ids, mask, document in zip(batch["input_ids"], batch["completion_mask"], ordered, strict=True):
        ours = np.flatnonzero(document.loss_mask)
        assert np.array_equal(np.flatnonzero(mask.numpy()), ours)
        assert np.array_equal(ids.numpy()[: ours[-1] + 1], document.input_ids[: ours[-1] + 1])


def test_what_trl_cannot_say_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    several = pair([user("q")], [assistant("a"), user("b"), assistant("c")], [assistant("no")])
    label = {"prompt": "q", "completion": "a", "label": True}
    weighted = pair([user("q")], [assistant("a", weight=0.5)], [assistant("no")])
    for number, (row, says) in enumerate(
        ((several, "without loss inside"), (label, "without a rival"), (weighted, "--ignore-weights"))
    ):
        out = prepare([row], tmp_path / f"out{number}")
        with pytest.raises(UsageError, match=says):
            export(out, tmp_path / "new", "trl-dpo")
        for to in ("hf", "trl", "olmo", "megatron-bridge"):
            with pytest.raises(UsageError, match="preference pairs or labelled answers"):
                export(out, tmp_path / "new", to)  # type: ignore[arg-type]
    assert export(out, tmp_path / "new", "trl-dpo", options=Options(ignore_weights=True)).reweighted == 2
    chats = prepare([{"messages": [user("q"), assistant("a")]}], tmp_path / "chats", Recipe(sequence_length=64))
    with pytest.raises(UsageError, match="objective 'sft'"):
        export(chats, tmp_path / "never", "trl-dpo")
    assert not (tmp_path / "never").exists()
