"""Log-probabilities through a whole model are those of its own logits, whatever the model does after its head."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskpipe import cli, demo_data
from maskpipe.errors import UsageError
from maskpipe.losses import LossPlan
from maskpipe.losses.model_logps import model_logps, next_token_probabilities

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
LARGE = {"initializer_range": 1.0}  # logits far from 0, where a soft-cap shows


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{"vocab_size": 97, **changes})
    return getattr(transformers, f"{name}{'LMHeadModel' if name == 'GPT2' else 'ForCausalLM'}")(config).eval()


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Llama", SIZES),
    "tied": ("Llama", {**SIZES, "tie_word_embeddings": True}),
    "soft-cap": ("Gemma2", {**SIZES, **LARGE, "num_key_value_heads": 1, "head_dim": 16}),
    "scaled": ("Granite", {**SIZES, "logits_scaling": 7.0}),
    "multiplied": ("Cohere", {**SIZES, "logit_scale": 3.0}),
    "learned positions": ("GPT2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}),
    "state space": ("Mamba", {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows_of_logits", [5, 1000])
def test_they_are_those_of_the_models_logits_and_only_rows_of_the_plan_reach_its_head(
    name: str, rows_of_logits: int
) -> None:
    kind, config = MODELS[name]
    model = made(kind, **config)
    ids = torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.5, ids, -100)
    plan = LossPlan.from_labels(labels)
    inputs = {"input_ids": ids, "use_cache": False}
    with torch.no_grad():
        expected = model(**inputs).logits.flatten(0, 1).log_softmax(-1)[plan.rows].gather(1, plan.targets[:, None])
    through: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: through.append(out.shape[-2]))
    logps = model_logps(model, inputs, plan, logit_bytes=4 * 97 * rows_of_logits)
    hook.remove()
    assert logps.shape == plan.rows.shape and torch.allclose(logps, expected[:, 0], atol=2e-6)
    assert through and max(through) <= max(16, rows_of_logits) and 0 < len(plan.rows) < 48
    if name in ("plain", "tied", "learned positions", "state space"):
        assert len(through) == 1, "one forward pass is enough"
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert model_logps(model, inputs, LossPlan.from_labels(torch.full_like(ids, -100))).shape == (0,)


def test_what_cannot_be_run_says_so() -> None:
    model = made("GPT2", n_embd=16, n_layer=1, n_head=2, n_positions=32)
    with pytest.raises(UsageError, match="holds token 97, the model's vocabulary has 97 entries"):
        next_token_probabilities(model, np.array([1, 97, 2]))
    with pytest.raises(UsageError, match=r"could not be run on input_ids of \(1, 40\)"):
        next_token_probabilities(model, np.zeros(40, np.int32))
    assert not model.get_output_embeddings()._forward_pre_hooks
    assert next_token_probabilities(model, np.zeros(1, np.int32)).shape == (0,)


# -- maskpipe explain --model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from maskpipe.tokenizer import Tokenizer

    path = tmp_path_factory.mktemp("models") / "llama"
    made("Llama", **SIZES, vocab_size=Tokenizer.load(demo_data.tokenizer()).vocab_size).save_pretrained(path)
    return path


def explain(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    chats, tokenizer = str(demo_data.chats()), str(demo_data.tokenizer())
    with pytest.raises(SystemExit) as ended:
        cli.main(["explain", chats, "--row", "7", "--tokenizer", tokenizer, *arguments])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_loss_column_is_the_models_cross_entropy(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(explain("--model", str(saved), "--format", "json", capsys=capsys))
    model = transformers.AutoModelForCausalLM.from_pretrained(saved)
    for document in values["documents"]:
        tokens = document["tokens"]
        ids = torch.tensor([[token["id"] for token in tokens]])
        with torch.no_grad():
            expected = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        assert tokens[0]["probability"] is None and tokens[0]["nll"] is None
        assert [token["nll"] for token in tokens[1:]] == pytest.approx(expected.tolist(), abs=1e-5)
        assert [-math.log(token["probability"]) for token in tokens[1:]] == [token["nll"] for token in tokens[1:]]
        trained = expected[[token["loss"] for token in tokens[1:]]]
        assert document["mean_nll"] == pytest.approx(float(trained.mean()), abs=1e-5) and len(trained) > 10
    plain = json.loads(explain("--format", "json", capsys=capsys))
    assert not {"probability", "nll"} & set(plain["documents"][0]["tokens"][0])


def test_a_person_sees_the_articles_table(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = json.loads(explain("--model", str(saved), "--format", "json", capsys=capsys))["documents"][0]
    lines = explain("--model", str(saved), "--tokens", capsys=capsys).splitlines()
    head = next(line for line in lines if line.startswith("position"))
    assert [word.strip() for word in head.split("  ") if word.strip()] == [
        "position", "input token", "p(true next)", "true next token", "-log p", "loss", "why",
    ]  # fmt: skip
    first = next(line for line in lines if line.split()[:1] == ["0"])
    assert f"{values['tokens'][1]['probability']:.2g}" in first and f"{values['tokens'][1]['nll']:.2f}" in first
    assert any(f"with loss, mean {values['mean_nll']:.2f}" in line for line in lines)
    stretches = explain("--model", str(saved), capsys=capsys)
    assert "mean -log p" in stretches and "mean -log p" not in explain(capsys=capsys)


def test_models_that_do_not_fit_are_errors(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", str(demo_data.chats()), "--tokenizer", str(demo_data.tokenizer()), "--model"]
    made("Llama", **SIZES).save_pretrained(tmp_path / "other")
    for model, words in ((tmp_path / "other", "different tokenizers"), (tmp_path / "none", "no directory of a model")):
        with pytest.raises(SystemExit) as ended:
            cli.main([*arguments, str(model)])
        assert ended.value.code == 2
        assert words in capsys.readouterr().err


def test_without_a_model_no_torch_is_imported() -> None:
    code = (
        "import sys; from maskpipe import cli; "
        "sys.exit = lambda code: code; "
        f"cli.main(['explain', {str(demo_data.chats())!r}, '--tokenizer', {str(demo_data.tokenizer())!r}]); "
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
