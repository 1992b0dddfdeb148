"""The summary hides no count; the card is a function of the dataset and can be used as it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml

import maskpipe
from maskpipe import card, demo_data, summary
from maskpipe.findings import Finding
from maskpipe.pipeline import Prepared
from maskpipe.recipe import Recipe
from maskpipe.roles import Role
from maskpipe.trial import dry_run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return maskpipe.prepare(
        demo_data.chats(),
        tmp_path_factory.mktemp("summary") / "out",
        tokenizer=demo_data.tokenizer(),
        recipe=Recipe(sequence_length=1024),
        workers=1,
    )


def line(text: str, label: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"{label:<10}"))


def test_the_loss_line_is_what_the_rows_hold(prepared: Prepared) -> None:
    loss = tokens = 0
    per_role: Counter[str] = Counter()
    of_role: Counter[str] = Counter()
    for sequence in maskpipe.open(prepared.path):
        loss += int(sequence.loss_mask.sum())
        tokens += int(np.count_nonzero(sequence.segment_ids))
        for role in np.unique(sequence.role_ids).tolist():
            inside = sequence.role_ids == role
            of_role[Role(role).name.lower()] += int(inside.sum())
            per_role[Role(role).name.lower()] += int(sequence.loss_mask[inside].sum())
    text = str(prepared)
    assert line(text, "loss") == f"loss      {loss:,} of {tokens:,} tokens ({100 * loss / tokens:.1f} %)"
    share = 100 * per_role["assistant"] / of_role["assistant"]
    assert f"assistant {share:.1f} %" in text
    assert "user 0 %" in text


def test_no_count_is_hidden(prepared: Prepared) -> None:
    counts = Counter(prepared.counts)
    for number, name in enumerate(
        [
            "control_tokens_neutralised", "fields_lost", "fields_shortened_in_history", "documents_truncated",
            "tokens_truncated", "cuts", "straddling_tokens", "straddling_parts", "something_new", "proof_proved",
            "turns_refused", "turns_history_differs+no_stop", "blank_lines",
        ]
    ):  # fmt: skip
        counts[name] = 70_001 + number
    counts["tokens"] = prepared.manifest.totals.n_tokens
    text = str(Prepared(prepared.path, prepared.manifest, counts, [], []))
    for name, n in counts.items():
        if name != "tokens":
            assert f"{n:,}" in text, name
    assert "history differs and no stop token" in text


def test_findings_are_shown_with_their_codes(prepared: Prepared) -> None:
    findings = [Finding("MP102", "no stop"), Finding("MP104", "not declared")]
    text = str(Prepared(prepared.path, prepared.manifest, prepared.counts, findings, []))
    assert line(text, "findings") == "findings  MP102 no stop"
    assert "          MP104 not declared" in text
    assert "maskpipe rule MP102" in text


def test_a_dry_run_says_whether_it_saw_everything() -> None:
    whole = dry_run(demo_data.chats(), tokenizer=demo_data.tokenizer(), recipe=Recipe(sequence_length=1024))
    assert whole.ended
    assert "(all records)" in str(whole)
    some = dry_run(demo_data.chats(), tokenizer=demo_data.tokenizer(), recipe=Recipe(sequence_length=1024), records=10)
    assert (some.records, some.ended) == (10, False)
    assert "the first records; more follow" in str(some)
    assert summary.trial_dict(some)["records"]["read"] == 10


def test_the_card_is_a_function_of_the_dataset(prepared: Prepared) -> None:
    written = (prepared.path / "README.md").read_text(encoding="utf-8")
    assert written == card.of(prepared.manifest, prepared.counts)
    head = yaml.safe_load(written.split("---\n")[1])
    assert head["configs"][0]["data_files"] == [{"split": "train", "path": "part-*.arrow"}]
    assert head["size_categories"] == ["n<1K"]
    assert "license" not in head
    assert str(prepared.path) not in written


def test_the_cards_code_runs_and_gives_the_mask(prepared: Prepared) -> None:
    text = (prepared.path / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    program = "\n".join([*blocks, "assert loss_mask.tolist() == dataset[0].loss_mask.tolist() and loss_mask.sum() > 0"])
    root = str(Path(maskpipe.__file__).resolve().parents[1])
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=prepared.path, env={**os.environ, "PYTHONPATH": root}, timeout=60
    )
    assert ran.returncode == 0


@pytest.mark.filterwarnings("default")
def test_datasets_loads_a_dataset_by_its_card(prepared: Prepared, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    loaded = datasets.load_dataset(str(prepared.path), split="train", cache_dir=str(tmp_path))
    assert len(loaded) == len(maskpipe.open(prepared.path))
    assert loaded[0]["input_ids"] == maskpipe.open(prepared.path)[0].input_ids.tolist()
