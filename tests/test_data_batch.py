"""The forms of a batch: what models and losses are given says the same boundaries and the same labels."""

from __future__ import annotations

import itertools
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import maskpipe
from maskpipe.errors import UsageError
from maskpipe.losses import LossPlan
from tests.made_datasets import chat, chats, publish_documents

torch = pytest.importorskip("torch")
from maskpipe.data import Batch, Loader  # noqa: E402

LENGTH = 64


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    path = tmp_path_factory.mktemp("data") / "plain"
    documents = [chat(length, row) for row, length in enumerate([20, 30, 64, 10, 5, 40, 33, 21, 1, 1, 50])]
    publish_documents(path, documents, sequence_length=LENGTH)
    return next(Loader(path, global_batch_size=5, epochs=1, remainder="pad", threads=0))


@pytest.fixture(scope="module")
def weighted(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    path = tmp_path_factory.mktemp("data") / "weighted"
    publish_documents(path, chats([20, 30, 64, 10, 5, 40]), sequence_length=LENGTH)
    return next(Loader(path, global_batch_size=3, epochs=1, threads=0))


def model(attention: str) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=LENGTH, attn_implementation=attention,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_a_model_sees_each_document_as_if_it_were_alone(batch: Batch) -> None:
    """The logits of a packed row equal those of its documents one by one, by every way of saying the boundaries."""
    padded = batch.as_padded(pad_id=7)
    for attention in ("sdpa", "eager"):
        net = model(attention)
        hf = batch.as_hf()
        assert "attention_mask" not in hf
        with torch.no_grad():
            packed = net(**hf)
            alone = net(**padded)
            hidden = net(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                attention_mask=batch.attention_mask_4d(None if attention == "sdpa" else torch.float32),
            ).logits
        real = batch.segment_ids.view(-1) > 0
        expected = alone.logits[padded["attention_mask"].bool()]
        torch.testing.assert_close(packed.logits.view(-1, 1000)[real], expected, atol=2e-6, rtol=2e-5)
        torch.testing.assert_close(hidden.view(-1, 1000)[real], expected, atol=2e-6, rtol=2e-5)
        torch.testing.assert_close(packed.loss, alone.loss)
        with torch.no_grad():  # why it says so: with the cache that models make by default, documents see each other
            leaking = net(**{**hf, "use_cache": True}).logits.view(-1, 1000)[real]
        assert (leaking - expected).abs().max() > 0.01


def test_flex_attention_gets_the_same_mask(batch: Batch) -> None:
    blocks = batch.block_mask(block_size=16)
    dense = batch.attention_mask_4d()
    line = torch.arange(LENGTH)
    for b in range(len(batch)):
        seen = blocks.mask_mod(torch.tensor(b), torch.tensor(0), line[:, None], line[None, :])
        assert torch.equal(seen, dense[b, 0])
    tiles = dense.view(len(batch), 1, 4, 16, 4, 16).any(5).any(3)
    assert torch.equal(blocks.to_dense().bool(), tiles)


def test_no_row_of_a_mask_is_empty_and_none_sees_another_document(batch: Batch) -> None:
    mask = batch.attention_mask_4d()
    assert mask.any(-1).all()
    segments = batch.segment_ids
    assert not (mask[:, 0] & (segments[:, :, None] != segments[:, None, :])).any()
    additive = batch.attention_mask_4d(torch.bfloat16)
    assert additive.dtype == torch.bfloat16
    assert torch.equal(additive == 0, mask)


def test_boundaries_derived_from_positions_are_those_that_are_said(batch: Batch) -> None:
    from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

    (derived, _), (longest, _) = prepare_fa_kwargs_from_position_ids(batch.position_ids.view(1, -1))
    assert derived.tolist() == batch.cu_seqlens.tolist()
    assert int(longest) == batch.max_seqlen
    assert batch.cu_seqlens[-1] == batch.input_ids.numel()
    hf = batch.as_hf(seq_idx=True)
    assert (hf["cu_seq_lens_q"].dtype, hf["max_length_k"]) == (torch.int32, batch.max_seqlen)
    starts = torch.cat([torch.ones(1, dtype=torch.bool), hf["seq_idx"].view(-1).diff() != 0])
    assert torch.equal(starts.nonzero().view(-1), batch.cu_seqlens[:-1].long())


def test_padded_rows_are_the_documents(batch: Batch) -> None:
    padded = batch.as_padded(pad_id=7)
    documents = int((batch.segment_numbers > 0).sum())
    assert padded["input_ids"].shape == (documents, 64)
    assert int(padded["attention_mask"].sum()) == int((batch.segment_ids > 0).sum())
    assert (padded["input_ids"][padded["attention_mask"] == 0] == 7).all()
    assert (padded["labels"][padded["attention_mask"] == 0] == -100).all()
    assert int((padded["labels"] != -100).sum()) == batch.n_loss
    assert (padded["labels"][:, 0] == -100).all()


def test_a_rank_of_padding_alone_has_something_for_its_model(tmp_path: Path) -> None:
    """Else it would fail alone, and the others wait for it."""
    publish_documents(tmp_path / "d", [chat(20, 0)], sequence_length=LENGTH)
    for yields in ("hf", "padded"):
        loader = Loader(
            tmp_path / "d", global_batch_size=2, rank=1, world_size=2, epochs=1, remainder="pad", yields=yields
        )
        given = next(loader)
        assert given["input_ids"].numel() and (given["labels"] == -100).all()
        with torch.no_grad():
            assert torch.isfinite(model("sdpa")(**given).logits).all()


def test_threads_that_use_a_batch_first_at_the_same_time_see_the_same(tmp_path: Path) -> None:
    publish_documents(tmp_path / "d", chats([20, 30, 64, 10, 5, 40]), sequence_length=LENGTH)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for batch in itertools.islice(Loader(tmp_path / "d", global_batch_size=3, columns=()), 100):
            together, seen = threading.Barrier(4), []

            def use(batch: Batch = batch, together: Any = together, seen: Any = seen) -> None:
                together.wait()
                seen.append((batch.run_ends.numel(), batch.scores.numel(), int(batch.targets.sum())))

            users = [threading.Thread(target=use) for _ in range(4)]
            for user in users:
                user.start()
            for user in users:
                user.join()
            assert len(seen) == 4 and len(set(seen)) == 1
    finally:
        sys.setswitchinterval(before)


def test_a_batch_cannot_be_changed_but_by_its_tensors(batch: Batch) -> None:
    for name in ("input_ids", "labels", "targets", "cu_seqlens", "anything"):
        with pytest.raises(AttributeError):
            setattr(batch, name, batch.labels)


def test_weights_that_a_model_would_not_see_are_refused(weighted: Batch) -> None:
    assert weighted.weighted
    with pytest.raises(UsageError, match="loss weights other than 1"):
        weighted.as_hf()
    assert "labels" in weighted.as_hf(ignore_weights=True)
    assert "labels" not in weighted.as_hf(labels=False)


def test_a_moved_batch_says_the_same(batch: Batch) -> None:
    moved = batch.to(torch.device("cpu"))
    for name in (
        "input_ids",
        "labels",
        "targets",
        "position_ids",
        "segment_ids",
        "loss_weights",
        "role_ids",
        "part_ids",
    ):
        assert torch.equal(getattr(moved, name), getattr(batch, name))
    meta = batch.to("meta")  # every derived tensor is made by operations that any device has
    for name in ("labels", "targets", "position_ids", "segment_ids", "loss_weights", "role_ids"):
        assert getattr(meta, name).device.type == "meta"
        assert getattr(meta, name).dtype == getattr(batch, name).dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_same_batches(tmp_path: Path) -> None:
    publish_documents(tmp_path / "d", chats([20, 30, 64, 10, 5, 40] * 20), sequence_length=LENGTH)
    for expand in ("host", "device"):
        here = Loader(tmp_path / "d", global_batch_size=3, epochs=2)
        there = Loader(tmp_path / "d", global_batch_size=3, epochs=2, device="cuda", expand=expand)  # type: ignore[arg-type]
        for one, other in zip(here, there, strict=True):
            for name in ("input_ids", "labels", "position_ids", "segment_ids", "loss_weights"):
                assert torch.equal(getattr(one, name), getattr(other, name).cpu())


def test_a_loss_plan_is_made_from_a_batch(weighted: Batch) -> None:
    plan = LossPlan.from_batch(weighted)
    kept = (weighted.loss_weights > 0) & (weighted.labels != -100)
    assert plan.rows.numel() == int(kept.sum()) == weighted.n_loss
    assert plan.targets.tolist() == weighted.labels[kept].tolist()
    assert plan.weights is not None and plan.weights.tolist() == weighted.loss_weights[kept].tolist()


def test_the_public_name_needs_no_import() -> None:
    assert maskpipe.data.Loader is Loader
    assert maskpipe.data.Batch is Batch
