"""Pretraining, SFT and DPO of one model on shards made by prepare: a short run of examples/three_stages.py."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    before, threads = list(sys.path), torch.get_num_threads()
    sys.path.insert(0, str(EXAMPLES))
    torch.set_num_threads(1)
    import three_stages

    yield three_stages
    sys.path[:] = before
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages") / "out"


@pytest.fixture(scope="module")
def result(example: Any, out: Path) -> dict[str, Any]:
    made: dict[str, Any] = example.run(out, example.SHORT, say=lambda _: None)
    assert json.loads((out / "result.json").read_text())["stages"].keys() == made["stages"].keys()
    return made


def test_every_stage_lowers_the_loss_that_it_trains(result: dict[str, Any]) -> None:
    for name in ("pretrain", "sft"):
        curve = [loss for _, loss in result["curves"][name]]
        assert sum(curve[-2:]) < sum(curve[:2]) - 0.5, name
    stages = result["stages"]
    assert stages["sft"]["loss by role"]["assistant"] < stages["pretrain"]["loss by role"]["assistant"] - 1


def test_only_the_assistants_tokens_get_a_gradient_in_sft(example: Any, result: dict[str, Any], out: Path) -> None:
    """check_gradients asserts it on logits, for the batch of the run and for each of another order; and finds a loss
    that does otherwise."""
    trained, rest = result["gradients"]
    assert 0 < trained < rest
    model = example.LlamaForCausalLM.from_pretrained(out / "sft-model")
    for batch in example.Loader(out / "sft", global_batch_size=4, epochs=1):
        assert example.check_gradients(model, batch)[0] == batch.n_loss
    wrong = next(example.Loader(out / "sft", global_batch_size=4, train_on=["assistant", "user"]))
    with pytest.raises(AssertionError, match="not the assistant's"):
        example.check_gradients(model, wrong)


def test_dpo_starts_at_ln_2_and_raises_the_margin_of_pairs_about_other_facts(result: dict[str, Any]) -> None:
    before, after = result["stages"]["sft"], result["stages"]["preference"]
    assert result["curves"]["preference"][0][1] == pytest.approx(math.log(2), abs=1e-5)
    assert before["margin"] == pytest.approx(0, abs=1e-4)
    assert after["margin"] > 0.1 and after["accuracy"] > 0.5 and after["pairs"] == 48


def test_the_picture_is_drawn_from_a_runs_result(result: dict[str, Any], tmp_path: Path) -> None:
    import importlib.util
    import xml.etree.ElementTree as xml

    page = EXAMPLES.parent / "docs" / "make_three_stages.py"
    spec = importlib.util.spec_from_file_location("make_three_stages", page)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shipped = json.loads(page.with_name("three_stages.json").read_text())
    assert module.drawn(shipped) == page.with_name("three_stages.svg").read_text(encoding="utf-8")
    xml.fromstring(module.drawn(result))
