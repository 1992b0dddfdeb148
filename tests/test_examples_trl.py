"""TRL's own trainers on what maskpipe prepared: their loss is ours by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import maskpipe
from maskpipe import Recipe, demo_data

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("trl")
pytest.importorskip("datasets")
from maskpipe.data import Loader  # noqa: E402
from maskpipe.losses import (  # noqa: E402
    LossPlan,
    document_logps,
    linear_cross_entropy,
    pair_loss,
    write_reference_logps,
)

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(seed: int) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=4000, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        initializer_range=0.3,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def prepared(tmp_path: Path, objective: Any, rows: Any) -> Path:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = Recipe(objective=objective, sequence_length=128)
    maskpipe.prepare([str(source)], tmp_path / "out", tokenizer=demo_data.tokenizer(), recipe=recipe, workers=0)
    return tmp_path / "out"


@pytest.mark.filterwarnings("ignore")  # theirs
def test_dpo_trainers_loss_is_ours_of_the_packed_rows(tmp_path: Path) -> None:
    out = prepared(tmp_path, "preference", example("canal_world").pairs(4))
    reference, policy = llama(0), llama(1)
    write_reference_logps(out, tmp_path / "ref", reference)
    policy.save_pretrained(tmp_path / "model")
    losses = example("trl_dpo").main(str(out), str(tmp_path / "ref"), str(tmp_path / "model"), str(tmp_path / "run"), 2)
    batch = next(Loader(out, global_batch_size=len(maskpipe.open(out))))
    plan = LossPlan.from_batch(batch)
    with torch.no_grad():
        sides = [
            document_logps(model.model(**batch.as_hf(labels=False)).last_hidden_state, model.lm_head.weight, plan)
            for model in (policy, reference)
        ]
    ours = pair_loss("sigmoid", sides[0].pairs, sides[1].pairs, beta=0.1)
    assert len(ours.losses) == 4 and abs(float(ours.loss) - 0.6931) > 0.003
    assert losses[0] == pytest.approx(float(ours.loss), abs=1e-4)  # Trainer rounds what it logs
    assert losses[1] < losses[0]


@pytest.mark.filterwarnings("ignore")
def test_sft_trainers_loss_is_ours_of_the_packed_rows(tmp_path: Path) -> None:
    out = prepared(tmp_path, "sft", example("canal_world").chats(4))
    model = llama(1)
    model.save_pretrained(tmp_path / "model")
    losses = example("trl_sft").main(str(out), str(tmp_path / "model"), str(tmp_path / "run"), 2)
    batch = next(Loader(out, global_batch_size=len(maskpipe.open(out))))
    with torch.no_grad():
        hidden = model.model(**batch.as_hf(labels=False)).last_hidden_state
        ours = linear_cross_entropy(hidden, model.lm_head.weight, LossPlan.from_batch(batch)).loss
    assert losses[0] == pytest.approx(float(ours), abs=1e-4)
    assert losses[1] < losses[0]
