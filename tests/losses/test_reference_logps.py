"""Reference log-probabilities: those of the model, of the right token, after any order; and never of something else."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from maskpipe.data import Batch, Loader
from maskpipe.errors import DatasetError, MaskpipeError, UsageError
from maskpipe.losses import LossPlan, RefLogps, document_logps, pair_loss, reference_logps, write_reference_logps
from maskpipe.losses.reference_logps import model_sha256
from maskpipe.losses.reference_shards import ReferenceShards
from maskpipe.shards.reader import open as open_dataset
from tests.made_datasets import chat, publish_documents
from tests.test_data_pairs import publish_pairs

transformers = pytest.importorskip("transformers")
LENGTHS = [20, 30, 64, 10, 5, 40, 33, 21, 64, 50, 7, 63] * 2


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=1000, **{**sizes, **changes}))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "out"
    documents = [chat(n, row, weighted=row % 5 == 0) for row, n in enumerate(LENGTHS)]
    publish_documents(path, documents, sequence_length=64)
    return path


@pytest.fixture(scope="module")
def ref(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "ref"
    write_reference_logps(out, path, llama(), batch_size=3)
    return path


def recomputed(model: Any, batch: Batch, plan: LossPlan) -> Tensor:
    """From dense logits under a dense 4-D mask."""
    with torch.no_grad():
        mask = batch.attention_mask_4d(torch.float32)
        logits = model(input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=mask).logits
    return logits.flatten(0, 1).log_softmax(-1)[plan.rows].gather(1, plan.targets[:, None])[:, 0]


@pytest.mark.parametrize("order", [{"shuffle": False}, {"seed": 3}, {"seed": 4, "batch_size": 2}, {"rank": 1}])
def test_the_values_are_the_models_after_any_order_and_after_resuming(
    out: Path, ref: Path, order: dict[str, Any]
) -> None:
    if "rank" in order:
        order = {"rank": 1, "world_size": 2}
    loader, model = Loader(out, global_batch_size=4, epochs=2, **order), llama()
    reference = RefLogps.open(ref, loader, model=model)
    for number, batch in enumerate(loader):
        plan = LossPlan.from_batch(batch)
        assert torch.allclose(reference.token_logps(batch, plan), recomputed(model, batch, plan), atol=2e-6)
        if number == 2:
            loader.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert number >= 5


def test_a_plan_in_the_order_of_predicting_rows_gets_the_same(out: Path, ref: Path) -> None:
    loader = Loader(out, global_batch_size=4)
    batch = next(loader)
    plan = LossPlan.from_batch(batch)
    assert plan.segments is not None and plan.segments.unique().numel() > 4
    order = torch.randperm(plan.num_segments)[plan.segments].argsort(stable=True)  # other documents first
    moved = LossPlan(
        plan.rows[order], plan.targets[order], plan.shape, segments=plan.segments[order],
        num_segments=plan.num_segments,
    )  # fmt: skip
    reference = RefLogps.open(ref, loader)
    assert torch.equal(reference.token_logps(batch, moved), reference.token_logps(batch, plan)[order])


def test_policy_equal_to_reference_gives_ln_2_for_any_packing_and_its_gradient_the_same(
    out: Path, tmp_path: Path
) -> None:
    """Twelve pairs of documents, packed, one per row, and in rows of another length."""
    gradients = []
    for name, length, packing in (("packed", 64, "best_fit"), ("longer", 160, "first_fit"), ("alone", 64, "none")):
        data, model = tmp_path / name, llama()
        publish_documents(data, [chat(n, row) for row, n in enumerate(LENGTHS)], sequence_length=length, method=packing)
        write_reference_logps(data, tmp_path / f"{name}-ref", model, batch_size=2)
        rows = len(open_dataset(data))
        loader = Loader(data, global_batch_size=rows, epochs=1)
        reference = RefLogps.open(tmp_path / f"{name}-ref", loader, model=model)
        batch = next(loader)
        sums = document_order(batch)
        plan = LossPlan.from_batch(batch, pairs=torch.tensor([[sums[2 * k], sums[2 * k + 1]] for k in range(12)]))
        hidden = model.model(**batch.as_hf(labels=False)).last_hidden_state
        policy = document_logps(hidden, model.lm_head.weight, plan).pairs
        same = pair_loss("sigmoid", policy, reference.documents(batch, plan).pairs, beta=0.1)
        assert float(same.loss.detach()) == pytest.approx(math.log(2), abs=1e-6)
        (same.loss + pair_loss("ipo", policy, reference.documents(batch, plan).pairs, beta=0.1).loss / 100).backward()
        gradients.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]))
    for other in gradients[1:]:
        assert (other - gradients[0]).abs().max() <= 1e-6 * gradients[0].abs().max()


def document_order(batch: Batch) -> dict[int, int]:
    """First id of a document (which says its record) -> its number in the batch."""
    starts = batch.cu_seqlens[:-1][batch.segment_numbers > 0].tolist()
    firsts = batch.input_ids.reshape(-1)[starts].tolist()
    records = {10 + row * 97 % 990: row for row in range(len(LENGTHS))}
    assert len(records) == len(LENGTHS) == len(starts)
    return {records[first]: number for number, first in enumerate(firsts)}


def test_one_document_per_row_gives_the_same_and_a_model_that_mixes_documents_is_refused_packed(
    out: Path, ref: Path, tmp_path: Path
) -> None:
    write_reference_logps(out, tmp_path / "unpacked", llama(), packed=False, batch_size=4)
    a, b = ReferenceShards(ref), ReferenceShards(tmp_path / "unpacked")
    for row in range(len(a)):
        assert a.row(row).positions.tolist() == b.row(row).positions.tolist()
        assert a.row(row).logps == pytest.approx(b.row(row).logps, abs=2e-6)
    mamba = transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=1000, hidden_size=16, num_hidden_layers=1, state_size=4)
    )
    with pytest.raises(UsageError, match="does not keep packed documents apart"):
        write_reference_logps(out, tmp_path / "mamba", mamba)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["unpacked"]
    write_reference_logps(out, tmp_path / "mamba", mamba, packed=False)


# -- refusals


def test_another_dataset_model_or_policy_is_refused_with_both_fingerprints(
    out: Path, ref: Path, tmp_path: Path
) -> None:
    publish_documents(tmp_path / "other", [chat(n, row + 1) for row, n in enumerate(LENGTHS)], sequence_length=64)
    other = Loader(tmp_path / "other", global_batch_size=4)
    with pytest.raises(DatasetError) as wrong:
        RefLogps.open(ref, other)
    for dataset in (out, tmp_path / "other"):
        assert open_dataset(dataset).manifest.fingerprint[:16] in str(wrong.value)
    loader = Loader(out, global_batch_size=4)
    with pytest.raises(DatasetError) as wrong:
        RefLogps.open(ref, loader, model=llama(1))
    for model in (llama(0), llama(1)):
        assert model_sha256(model)[:16] in str(wrong.value)
    with pytest.raises(UsageError, match="2 reference directories for 1 dataset"):
        RefLogps.open([ref, ref], loader)
    write_reference_logps(tmp_path / "other", tmp_path / "other-ref", llama(1))
    both = Loader([out, tmp_path / "other"], global_batch_size=4)
    with pytest.raises(UsageError, match="one loss has one reference"):
        RefLogps.open([ref, tmp_path / "other-ref"], both)

    wider = Loader(out, global_batch_size=4, train_on=["assistant", "user"])
    batch = next(wider)
    with pytest.raises(UsageError, match="has loss, but no reference log-probability"):
        RefLogps.open(ref, wider).token_logps(batch, LossPlan.from_batch(batch))
    narrower = Loader(out, global_batch_size=4, train_on=["assistant", "-assistant.stop"])
    batch = next(narrower)
    plan = LossPlan.from_batch(batch)
    assert torch.allclose(
        RefLogps.open(ref, narrower).token_logps(batch, plan), recomputed(llama(), batch, plan), atol=2e-6
    )
    with pytest.raises(UsageError, match="before it is padded"):
        RefLogps.open(ref, narrower).token_logps(batch, plan.padded(1000))
    write_reference_logps(out, tmp_path / "wider", llama(), train_on=["assistant", "user"])
    batch = next(wider)
    plan = LossPlan.from_batch(batch)
    found = RefLogps.open(tmp_path / "wider", wider).token_logps(batch, plan)
    assert torch.allclose(found, recomputed(llama(), batch, plan), atol=2e-6)


def test_two_datasets_each_have_their_own(out: Path, ref: Path, tmp_path: Path) -> None:
    publish_documents(tmp_path / "other", [chat(n, row + 1) for row, n in enumerate(LENGTHS)], sequence_length=64)
    write_reference_logps(tmp_path / "other", tmp_path / "other-ref", llama())
    loader = Loader([out, tmp_path / "other"], global_batch_size=4)
    reference = RefLogps.open([ref, tmp_path / "other-ref"], loader)
    seen: set[int] = set()
    for _ in range(4):
        batch = next(loader)
        plan = LossPlan.from_batch(batch)
        seen |= set(batch.sources.tolist())
        assert torch.allclose(reference.token_logps(batch, plan), recomputed(llama(), batch, plan), atol=2e-6)
    assert seen == {0, 1}
    swapped = Loader([tmp_path / "other", out], global_batch_size=4)
    with pytest.raises(DatasetError, match="make it anew"):
        RefLogps.open([ref, tmp_path / "other-ref"], swapped)


def test_a_models_hash_is_of_its_weights_and_what_decides_its_logits(tmp_path: Path) -> None:
    model = llama()
    model.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    loaded.config.use_cache, loaded.config.pad_token_id = False, 3
    assert model_sha256(loaded) == model_sha256(model)
    changed = llama()
    with torch.no_grad():
        changed.lm_head.weight[7, 3] += 1e-6
    assert len({model_sha256(m) for m in (model, changed, llama().bfloat16(), llama(rms_norm_eps=1e-5))}) == 4


def test_any_changed_byte_is_found(out: Path, ref: Path, tmp_path: Path) -> None:
    rows = len(open_dataset(out))

    def read_all(path: Path) -> None:
        shards = ReferenceShards(path)
        assert [len(shards.row(row).logps) for row in range(rows)]

    for file in sorted(ref.iterdir()):
        whole = file.read_bytes()
        for place in range(0, len(whole), max(1, len(whole) // 10)):
            for spoiled in (whole[:place], whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]):
                copy = tmp_path / "copy"
                copy.mkdir(exist_ok=True)
                for other in ref.iterdir():
                    (copy / other.name).write_bytes(spoiled if other == file else other.read_bytes())
                with pytest.raises(DatasetError):
                    read_all(copy)
    read_all(ref)


def test_the_shards_are_plain_arrow(out: Path, ref: Path) -> None:
    dataset, rows = open_dataset(out), []
    for path in sorted(ref.glob("*.arrow")):
        with pa.OSFile(str(path)) as file:
            rows += pa.ipc.open_file(file).read_all().to_pylist()
    assert len(rows) == len(dataset)
    for row, sequence in zip(rows, dataset, strict=True):
        positions = [k for span in row["spans"] for k in range(span["start"], span["end"])]
        assert positions == sequence.loss_mask.nonzero()[0].tolist() and len(row["logps"]) == sequence.n_loss
        assert all(value < 0 for value in row["logps"])


# -- being made


def test_a_killed_run_goes_on_and_nothing_half_is_ever_there(
    out: Path, ref: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], reference_logps.write_shard

    def dies(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments[1])
        if arguments[1] == 2 and calls.count(2) == 1:
            raise KeyboardInterrupt
        return real(*arguments, **more)

    monkeypatch.setattr(reference_logps, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        write_reference_logps(out, tmp_path / "ref", llama(), batch_size=3)
    assert [path.name for path in tmp_path.iterdir()] == ["ref.partial"]
    with pytest.raises(UsageError, match="other"):
        write_reference_logps(out, tmp_path / "ref", llama(1), batch_size=3)
    write_reference_logps(out, tmp_path / "ref", llama(), batch_size=3)
    assert calls.count(0) == calls.count(1) == 1 and calls.count(2) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["ref"]
    for file in sorted(ref.iterdir()):
        assert (tmp_path / "ref" / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(UsageError, match="already there"):
        write_reference_logps(out, tmp_path / "ref", llama())


def test_the_command(out: Path, ref: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from maskpipe import cli

    llama().save_pretrained(tmp_path / "model")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["reference-logps", *map(str, arguments)])
        return int(str(ended.value.code)), *capsys.readouterr()

    code, printed, _ = run(out, tmp_path / "ref", "--model", tmp_path / "model", "--format", "json")
    said = json.loads(printed)
    assert code == 0 and said["dataset"] == open_dataset(out).manifest.fingerprint
    assert said["model"] == model_sha256(llama()) and said["rows"] == len(open_dataset(out))
    assert said["values"] == open_dataset(out).manifest.totals.n_loss and os.path.isdir(tmp_path / "ref")
    RefLogps.open(tmp_path / "ref", Loader(out, global_batch_size=4), model=llama())
    code, _, talk = run(out, tmp_path / "ref", "--model", tmp_path / "model")
    assert code == 2 and "already there" in talk
    code, _, talk = run(out, tmp_path / "new", "--model", tmp_path / "none")
    assert code == 2 and "no directory of a model" in talk
    with pytest.raises(MaskpipeError):
        ReferenceShards(tmp_path / "new")


@pytest.mark.parametrize("shared", [False, True])
def test_pairs_have_ln_2_in_either_layout(shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, model = publish_pairs(tmp_path / "pairs", monkeypatch, shared=shared), llama()
    write_reference_logps(data, tmp_path / "ref", model, batch_size=2)
    loader = Loader(data, global_batch_size=4, epochs=1)
    reference = RefLogps.open(tmp_path / "ref", loader)
    for batch in loader:
        plan = LossPlan.from_batch(batch)
        inputs = batch.as_hf(labels=False, mask_dtype=torch.float32)
        with torch.no_grad():
            policy = document_logps(model.model(**inputs).last_hidden_state, model.lm_head.weight, plan).pairs
        found = reference.documents(batch, plan).pairs
        assert torch.equal(found.chosen_length, policy.chosen_length) and len(found.chosen) >= 6
        for side in ("chosen", "rejected"):
            assert torch.allclose(getattr(found, side), getattr(policy, side), atol=1e-5)
        same = pair_loss("sigmoid", policy, found, denominator=batch.pair_denominator, beta=0.1)
        assert float(same.loss) == pytest.approx(math.log(2), abs=1e-6)
