"""Supervised workers: what goes wrong with one costs one attempt of one task, and one record at most."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import maskpipe
from maskpipe import demo_data, mapping, pool, sources
from maskpipe.encoder import Encoder
from maskpipe.errors import MaskpipeError, RecordError, TemplateError
from maskpipe.guard import Limits
from maskpipe.recipe import Recipe
from maskpipe.records import sample_texts
from maskpipe.tokenizer import Tokenizer
from tests import faulty

TOKENIZER = Tokenizer.load(demo_data.tokenizer())
REJECT = Recipe(sequence_length=512, on_bad_record="reject")
QUICK = Limits(seconds=0.5, memory=128 << 20)


def chat(text: str) -> str:
    return json.dumps(
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"About {text}: yes."}]}
    )


@pytest.fixture
def harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapping, "run_map", faulty.run_map_with_harm)
    monkeypatch.setattr(pool, "STOPPED_SECONDS", 0.5)
    monkeypatch.setattr(pool, "HUNG_SECONDS", 1.0)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.limits, "CHUNK_BYTES", 512)


def prepare(directory: Path, name: str, texts: list[str], **more: Any) -> dict[str, Any]:
    """Prepares the chats; what matters of the dataset and of the run."""
    path = directory / "chats.jsonl"
    path.write_text("".join(chat(text) + "\n" for text in texts), encoding="utf-8")
    given: dict[str, Any] = {"tokenizer": TOKENIZER, "recipe": REJECT, "workers": 1, "limits": QUICK, **more}
    maskpipe.prepare(path, directory / name, **given)
    out = directory / name
    documents = {
        (document.row, document.input_ids.tobytes(), document.loss_mask.tobytes())
        for document in maskpipe.open(out).documents()
    }
    rejects = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    return {
        "documents": documents,
        "rejects": [(entry["row"], entry["reason"]) for entry in rejects],
        "messages": [entry["message"] for entry in rejects],
        "tasks": json.loads((out / "run.json").read_text())["tasks"],
        "bytes": {p.name: p.read_bytes() for p in out.iterdir() if p.name not in ("run.json", "README.md")},
    }


@pytest.mark.usefixtures("harm")
@pytest.mark.parametrize(
    ("word", "reason", "faults"),
    [
        ("ABORT", "crashed", {"crashed": 2}),
        ("SEGFAULT", "crashed", {"crashed": 2}),
        ("EXIT", "crashed", {"crashed": 2}),
        ("EXHAUST", "out_of_memory", {"out_of_memory": 2}),
        ("SPIN", "timeout", {"timeout": 1}),
        ("SLEEP", "timeout", {"hung": 2}),
        ("KILL", "crashed", {"killed": 3}),
    ],
)
def test_only_the_poisonous_record_is_rejected(tmp_path: Path, word: str, reason: str, faults: dict[str, int]) -> None:
    texts = [f"text {number}" for number in range(6)]
    whole = prepare(tmp_path, "whole", texts)
    poisoned = prepare(tmp_path, "poisoned", [*texts[:3], f"{word}!", *texts[4:]])
    assert poisoned["rejects"] == [(3, reason)]
    assert poisoned["messages"][0].startswith("chats.jsonl:4: ")
    assert poisoned["documents"] == {entry for entry in whole["documents"] if entry[0] != 3}
    assert poisoned["tasks"]["faults"] == faults
    assert poisoned["tasks"]["attempts"]["map"] == 1 + sum(faults.values())


@pytest.mark.usefixtures("harm", "small_chunks")
@pytest.mark.parametrize("word", ["KILL", "STOP", "ABORT", "EXHAUST", "SLEEP"])
def test_what_happens_once_changes_no_byte_and_costs_one_attempt(tmp_path: Path, word: str) -> None:
    texts = [f"text {number}" for number in range(8)]
    texts[5] = f"{word}?"
    (tmp_path / f"{word}.done").touch()
    undisturbed = prepare(tmp_path, "undisturbed", texts, workers=2)
    (tmp_path / f"{word}.done").unlink()
    begun = time.monotonic()
    disturbed = prepare(tmp_path, "disturbed", texts, workers=2)
    assert time.monotonic() - begun < 30
    assert disturbed["bytes"] == undisturbed["bytes"]
    assert disturbed["rejects"] == []
    assert sum(disturbed["tasks"]["faults"].values()) == 1
    assert undisturbed["tasks"]["faults"] == {}


@pytest.mark.usefixtures("harm")
@pytest.mark.parametrize(("word", "reason"), [("SPIN", "timeout"), ("ABORT", "crashed"), ("EXHAUST", "out_of_memory")])
def test_of_records_that_are_encoded_together_the_poisonous_one_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, reason: str
) -> None:
    monkeypatch.setattr(mapping, "run_map", faulty.run_map_with_harm_in_the_tokenizer)
    texts = ["a", f"{word}!", "b", "c"]
    assert prepare(tmp_path, "out", texts)["rejects"] == [(1, reason)]
    long = " ".join(["long"] * 4000)  # those held before it are encoded when it has been entered
    assert prepare(tmp_path, "more", [*texts, long])["rejects"] == [(1, reason), (4, "too_long")]


def test_a_sample_of_the_data_is_no_larger_than_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(chat(text) + "\n" for text in ["short", "long " * 100_000, "never"]))
    chunk = next(iter(sources.open_sources(path).chunks()))
    texts = sample_texts(Encoder(TOKENIZER, REJECT), chunk, 1000)
    assert sum(map(len, texts)) == 1000 and "short" in texts[0] and "long long" in texts[1]


@pytest.mark.usefixtures("harm")
def test_several_poisonous_records_of_one_chunk_are_told_apart(tmp_path: Path) -> None:
    made = prepare(tmp_path, "out", ["a", "SPIN!", "b", "ABORT!", "EXHAUST!", "c"])
    assert made["rejects"] == [(1, "timeout"), (3, "crashed"), (4, "out_of_memory")]
    assert {row for row, _, _ in made["documents"]} == {0, 2, 5}


@pytest.mark.usefixtures("harm")
def test_a_poisonous_record_stops_with_its_place_unless_the_recipe_rejects(tmp_path: Path) -> None:
    recipe = REJECT.replace(on_bad_record="stop")
    with pytest.raises(
        RecordError, match=r"chats\.jsonl:2: .* more than 0\.5 seconds.*--on-bad-record reject"
    ) as caught:
        prepare(tmp_path, "out", ["a", "SPIN!"], recipe=recipe)
    assert caught.value.reason == "timeout"
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("harm", "small_chunks")
@pytest.mark.parametrize(("seconds", "rejects", "found"), [(0.5, [(0, "timeout")], 1), (5.0, [], 0)])
def test_what_went_over_the_limits_is_finished_for_these_limits_only(
    tmp_path: Path, seconds: float, rejects: list[Any], found: int
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    texts = ["SPIN?", *(f"text {number}" for number in range(8))]
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, "out", texts, progress=interrupt)
    made = prepare(tmp_path, "out", texts, limits=Limits(seconds=seconds, memory=QUICK.memory))
    assert made["rejects"] == rejects
    assert made["tasks"]["found"] == ({"map": found} if found else {})


HOSTILE = (
    "{% for m in messages %}<|user|>{{ m.content }}"
    "{% if 'LOOP' in m.content %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}"
    "{% if 'DOUBLE' in m.content %}{% set n = namespace(s='x') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}"
    "{% endfor %}{% endif %}"
    "{% if 'REPEAT' in m.content %}{{ (m.content * 200000000) | length }}{% endif %}"
    "{% if 'FLOOD' in m.content %}{{ 'a' * 3000000 }}{% endif %}"
    "<|end|>{% endfor %}"
)


def test_what_a_template_does_to_a_record_costs_that_record(tmp_path: Path) -> None:
    texts = ["a", "LOOP", "b", "DOUBLE", "REPEAT", "FLOOD", "c"]
    recipe = REJECT.replace(chat_template=HOSTILE, train_on=("all",))
    made = prepare(tmp_path, "out", texts, recipe=recipe)
    assert made["rejects"] == [(1, "timeout"), (3, "out_of_memory"), (4, "template_error"), (5, "output_too_large")]
    assert {row for row, _, _ in made["documents"]} == {0, 2, 6}


def test_a_template_that_always_hangs_is_an_error_that_says_so(tmp_path: Path) -> None:
    template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateError, match=r"cannot be used: .* more than 0\.5 seconds"):
        prepare(tmp_path, "out", ["a"], recipe=REJECT.replace(chat_template=template))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.jsonl"]


def run_and_die(encoder: Any, task: Any, guard: Any) -> str:
    raise SystemExit(4)


def test_a_worker_that_dies_without_a_record_to_blame_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "run_map", run_and_die)
    with pytest.raises(MaskpipeError, match=r"chats\.jsonl, records 0 to 0: its worker process was lost 3 times"):
        prepare(tmp_path, "out", ["a"])


def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    import subprocess
    import sys

    script = tmp_path / "script.py"
    script.write_text(
        "import maskpipe\nfrom maskpipe import demo_data\nprint('begins')\n"
        f"maskpipe.prepare(demo_data.chats(), {str(tmp_path / 'out')!r}, tokenizer=demo_data.tokenizer(), workers=2)\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, env={"PYTHONPATH": root}
    )
    assert (ran.stdout, ran.stderr, ran.returncode) == ("begins\n", "", 0)
