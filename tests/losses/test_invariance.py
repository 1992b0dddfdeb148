"""The gradient of a step depends on its tokens alone: not on micro-batches, ranks, packing, order or chunks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskpipe.errors import UsageError
from maskpipe.losses import LossPlan, cross_entropy, global_denominator, linear_cross_entropy, normalise
from tests.losses.made import Made, made
from tests.test_data_pairs import publish_pairs

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = [{}, {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 5.0}]


def near(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= 1e-6 * expected.abs().max())


def step(m: Made, cuts: list[slice], options: dict[str, float], chunk: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, dhidden, dweight) of one optimizer step over micro-batches, each a slice of rows."""
    hidden, weight, _ = m.leaves()
    plans = [
        LossPlan.from_labels(m.labels[cut], segment_ids=m.segment_ids[cut], weights=m.token_weights[cut])
        for cut in cuts
    ]
    denominator = global_denominator(plans)
    total = torch.zeros(())
    for cut, plan in zip(cuts, plans, strict=True):
        plan = plan.normalised_by(denominator)
        loss = linear_cross_entropy(hidden[cut], weight, plan, chunk=chunk, **options).loss  # type: ignore[arg-type]
        loss.backward()
        total += loss.detach()
    return total, hidden.grad, weight.grad  # type: ignore[return-value]


@pytest.mark.parametrize("options", OPTIONS)
@given(
    seed=st.integers(0, 10_000), cuts=st.sets(st.integers(1, 7), max_size=7), chunk=st.sampled_from([1, 3, 1000, None])
)  # fmt: skip
@settings(max_examples=4)
def test_micro_batches_and_chunks(options: dict[str, float], seed: int, cuts: set[int], chunk: int | None) -> None:
    m = made(seed, batch=8)
    m.labels[seed % 8] = -100  # an all-ignored micro-batch among them
    borders = [0, *sorted(cuts), 8]
    whole = step(m, [slice(0, 8)], options, None)
    parts = step(m, [slice(a, b) for a, b in pairwise(borders)], options, chunk)
    for mine, expected in zip(parts, whole, strict=True):
        assert near(mine, expected)


@given(seed=st.integers(0, 10_000), order=st.permutations(range(8)))
@settings(max_examples=4)
def test_packed_in_any_order_or_not_packed(seed: int, order: list[int]) -> None:
    """Sixteen documents, two in each row, against all of them in one row in another order."""
    m = made(seed, batch=8)
    _, expected_hidden, expected_weight = step(m, [slice(0, 8)], {}, None)
    keep = m.segment_ids > 0
    hidden = torch.cat([m.hidden[b][keep[b]] for b in order])[None].requires_grad_()
    weight = m.weight.clone().requires_grad_()
    plan = LossPlan.from_labels(
        torch.cat([m.labels[b][keep[b]] for b in order])[None],
        segment_ids=torch.cat([m.segment_ids[b][keep[b]] + 2 * k for k, b in enumerate(order)])[None],
        weights=torch.cat([m.token_weights[b][keep[b]] for b in order])[None],
    )
    linear_cross_entropy(hidden, weight, plan).loss.backward()
    assert weight.grad is not None and hidden.grad is not None
    assert near(weight.grad, expected_weight)
    assert near(hidden.grad[0], torch.cat([expected_hidden[b][keep[b]] for b in order]))


def test_given_logits_split_the_same_way() -> None:
    m = made(30, batch=8)
    logits = (m.hidden @ m.weight.T).requires_grad_()
    cross_entropy(logits, m.plan(weighted=True), label_smoothing=0.1).loss.backward()
    expected, logits.grad = logits.grad, None
    cuts = [slice(0, 3), slice(3, 8)]
    plans = [
        LossPlan.from_labels(m.labels[cut], segment_ids=m.segment_ids[cut], weights=m.token_weights[cut])
        for cut in cuts
    ]
    denominator = float(global_denominator(plans))
    for cut, plan in zip(cuts, plans, strict=True):
        cross_entropy(logits[cut], plan.normalised_by(denominator), label_smoothing=0.1).loss.backward()
    assert near(logits.grad, expected)  # type: ignore[arg-type]


def test_two_and_four_ranks_give_the_gradient_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of token losses on made rows, and of tokens and pairs together on batches as a loader gives them."""
    for layout in ("separate", "shared"):
        publish_pairs(tmp_path / layout, monkeypatch, shared=layout == "shared")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.losses.gloo_worker", "4", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    for rank in range(4):
        errors = json.loads((tmp_path / f"errors-{rank}.json").read_text())
        assert len(errors) >= 7
        if rank == 0:
            print(errors)
        for case, error in errors.items():
            if case.endswith("mean of means"):
                assert error > 0.05, "the case is too easy to tell a wrong denominator"
            else:
                assert error <= 1e-6, (case, error)


def test_the_one_division() -> None:
    total = torch.tensor(6.0, requires_grad=True)
    for divisor in (4.0, torch.tensor(4.0, dtype=torch.float64)):
        assert normalise(total, divisor).item() == 1.5 and normalise(total, divisor, replicas=2).item() == 3.0
    for nothing in (0.0, torch.tensor(0.0)):
        zero = normalise(total, nothing)
        assert zero.item() == 0.0 and torch.autograd.grad(zero, total)[0].item() == 0.0
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="denominator"):
            normalise(total, wrong)


def test_the_denominator_counts_what_the_loss_sums() -> None:
    m = made(31)
    plan = m.plan(weighted=True)
    out = linear_cross_entropy(m.hidden, m.weight * 0, plan)
    uniform = torch.log(torch.tensor(29.0))
    assert torch.allclose(out.sum, uniform * float(plan.weight_sum)) and torch.allclose(out.loss, uniform)
    assert float(global_denominator([plan, plan])) == 2 * float(plan.weight_sum)
    assert float(global_denominator([])) == 0.0
