"""Batches reach models through the packages that train, as the loader gave them, and the loss is the one by hand."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from maskpipe.errors import UsageError
from tests.made_datasets import chat, publish_documents

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from maskpipe.data import Batch, Loader  # noqa: E402

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
GIVEN = {
    "input_ids", "labels", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k",
    "use_cache",
}  # fmt: skip
STEPS, PER_STEP = 4, {"plain_loop": 2, "accelerate_loop": 1, "hf_trainer": 2}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "out"
    lengths = [20, 30, 64, 10, 5, 40, 33, 21, 64, 50, 7, 63] * 4
    publish_documents(path, [chat(n, row) for row, n in enumerate(lengths)], sequence_length=64)
    return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    path: Path = tmp_path_factory.mktemp("model") / "llama"
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(model_path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loss_by_hand(model: Any, batches: list[Batch]) -> float:
    """Mean over all tokens with loss, from a dense 4-D mask: none of what as_hf() gives for boundaries."""
    total, count = 0.0, 0
    for batch in batches:
        with torch.no_grad():
            mask = batch.attention_mask_4d(torch.float32)
            logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=mask).logits
        has_loss = batch.targets != -100
        chosen = logits.log_softmax(-1)[has_loss].gather(-1, batch.targets[has_loss][:, None])
        total, count = total - float(chosen.double().sum()), count + int(has_loss.sum())
    return total / count


def same(seen: dict[str, Any], batch: Batch) -> None:
    expected = batch.as_hf()
    assert expected.keys() == GIVEN <= seen.keys()
    assert {name for name in seen if name.endswith("mask")} == set()
    for name, value in expected.items():
        assert torch.equal(seen[name], value) if isinstance(value, torch.Tensor) else seen[name] == value, name


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What reached the model, call by call."""
    seen: list[dict[str, Any]] = []
    forward = transformers.LlamaForCausalLM.forward

    def watched(self: Any, **kwargs: Any) -> Any:
        seen.append({k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kwargs.items() if v is not None})
        return forward(self, **kwargs)

    watched.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", watched)
    return seen


@pytest.mark.parametrize("name", sorted(PER_STEP))
def test_an_example_trains_on_the_loaders_batches_and_goes_on_exactly(
    name: str, out: Path, model_path: Path, tmp_path: Path, forwards: list[dict[str, Any]]
) -> None:
    main: Callable[..., list[float]] = example(name).main
    per_step = PER_STEP[name]
    whole = main(str(out), str(model_path), str(tmp_path / "whole"), STEPS)
    loader = Loader(out, global_batch_size=4, batch_size=4 // per_step)
    batches = [next(loader) for _ in range(STEPS * per_step)]
    assert len(forwards) == len(batches)
    for seen, batch in zip(forwards, batches, strict=True):
        same(seen, batch)
    counts = [sum(batch.n_loss for batch in batches[s * per_step : (s + 1) * per_step]) for s in range(STEPS)]
    assert [int(seen["num_items_in_batch"]) for seen in forwards] == [c for c in counts for _ in range(per_step)]

    by_hand = loss_by_hand(load(model_path), batches[:per_step])
    assert whole[0] == pytest.approx(by_hand, abs=1e-5 if name != "hf_trainer" else 1e-4)  # Trainer rounds what it logs
    assert whole[0] != whole[1]

    forwards.clear()
    parts = [main(str(out), str(model_path), str(tmp_path / "parts"), STEPS // 2) for _ in range(2)]
    for seen, batch in zip(forwards, batches, strict=True):
        same(seen, batch)
    assert parts[0] + parts[1] == whole


def test_the_trainers_step_has_the_loss_by_hand(out: Path, model_path: Path, tmp_path: Path) -> None:
    packed = example("hf_trainer").PackedTrainer
    losses: list[float] = []

    class Watched(packed):  # type: ignore[misc,valid-type]
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            losses.append(float((loss := super().training_step(*args, **kwargs)).detach()))
            return loss

    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, gradient_accumulation_steps=3, report_to="none", disable_tqdm=True
    )
    loader = Loader(out, global_batch_size=6, batch_size=2, yields="hf")
    trainer = Watched(load(model_path), arguments, loader=loader)
    assert trainer.get_train_dataloader() is loader
    trainer.train()
    again = Loader(out, global_batch_size=6, batch_size=2)
    batches = [next(again) for _ in range(3)]
    assert len({batch.n_loss for batch in batches}) > 1  # else a mean of means would be the same
    assert sum(losses) == pytest.approx(loss_by_hand(load(model_path), batches), abs=1e-5)


def test_two_ranks_train_on_the_global_batches_of_one(out: Path, model_path: Path, tmp_path: Path) -> None:
    """No package shards a second time, and the denominator is that of all ranks: else these losses would differ."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    (tmp_path / "two").mkdir()
    ran = subprocess.run(
        [sys.executable, "-m", "tests.two_processes", str(out), str(model_path), str(tmp_path / "two"), str(STEPS)],
        cwd=EXAMPLES.parent, env={**os.environ, **shared}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for name in ("accelerate_loop", "hf_trainer"):
        one = example(name).main(str(out), str(model_path), str(tmp_path / f"one-{name}"), STEPS)
        for rank in range(2):
            two = json.loads((tmp_path / "two" / f"losses-{rank}.json").read_text())[name]
            if name == "accelerate_loop" or rank == 0:
                assert two == pytest.approx(one, abs=2e-5), (name, rank)


def test_accelerate_leaves_the_loader_alone(out: Path) -> None:
    from accelerate import Accelerator

    loader = Loader(out, global_batch_size=4)
    assert Accelerator().prepare(loader) is loader


def test_a_torch_dataloader_passes_batches_through_and_workers_are_refused(out: Path) -> None:
    from torch.utils.data import DataLoader

    expected = [batch.input_ids.tolist() for batch in Loader(out, global_batch_size=4, epochs=1)]
    through = DataLoader(Loader(out, global_batch_size=4, epochs=1), batch_size=None)
    assert [batch.input_ids.tolist() for batch in through] == expected
    assert len(through) == len(expected)
    with pytest.raises(UsageError, match="use it with num_workers=0"):
        next(iter(DataLoader(Loader(out, global_batch_size=4, epochs=1), batch_size=None, num_workers=1)))


@pytest.mark.filterwarnings("ignore")  # its own, about torch and about data loaders
def test_lightning_gives_the_module_every_batch_and_goes_on_exactly(
    out: Path, model_path: Path, tmp_path: Path
) -> None:
    lightning = pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")
    seen: list[list[int]] = []
    losses: list[float] = []

    class Batches:
        """The loader without its state_dict: Lightning fetches a batch ahead, and would save the state after that."""

        def __init__(self, loader: Loader) -> None:
            self.loader = loader

        def __iter__(self) -> Iterator[Batch]:
            return iter(self.loader)

    class Module(lightning.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = load(model_path)

        def training_step(self, batch: Batch, _: int) -> Any:
            seen.append(batch.rows.tolist())
            self.last = batch
            loss = self.model(**batch.as_hf()).loss
            losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            assert self.last.state is not None
            checkpoint["loader"] = json.dumps(self.last.state())  # of the last batch trained, whatever was fetched

    def trainer(steps: int) -> Any:
        return lightning.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=tmp_path,
        )  # fmt: skip

    def run(steps: int, state: str | None) -> Any:
        loader = Loader(out, global_batch_size=4)
        if state is not None:
            loader.load_state_dict(json.loads(state))
        module, running = Module(), trainer(steps)
        running.fit(
            module, Batches(loader), ckpt_path=None if state is None else tmp_path / "half.ckpt", weights_only=True
        )
        return running

    run(4, None)
    whole_seen, whole_losses = list(seen), list(losses)
    loader = Loader(out, global_batch_size=4)
    batches = [next(loader) for _ in range(4)]
    assert whole_seen == [batch.rows.tolist() for batch in batches]
    assert losses[0] == pytest.approx(loss_by_hand(load(model_path), batches[:1]), abs=1e-5)

    seen.clear(), losses.clear()
    run(2, None).save_checkpoint(tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)["loader"]
    run(4, state)
    assert (seen, losses) == (whole_seen, whole_losses)
