"""Log-probabilities of documents are what a loop over their tokens adds up, packed or not, with the right gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskpipe.errors import UsageError
from maskpipe.losses import LossPlan, document_logps, pair_loss, preference_loss
from tests.losses.made import Made, made
from tests.reference import losses as slow


def by_loop(m: Made, plan: LossPlan, hidden: Tensor, weight: Tensor) -> list[Tensor]:
    """Σ log p per document in float64, from the labels alone."""
    logps = slow.logits_of(hidden.reshape(-1, hidden.shape[-1]), weight).log_softmax(-1)
    nothing = 0 * logps.sum()  # of a batch without labels there is a gradient too: 0
    sums = [nothing for _ in range(plan.num_segments)]
    for b, t, target in slow.supervised(m.labels.tolist(), m.segment_ids.tolist()):
        document = sum(int(m.segment_ids[k].max()) for k in range(b)) + int(m.segment_ids[b, t]) - 1
        sums[document] = sums[document] + logps[b * m.labels.shape[1] + t, target]
    return sums


@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.1, 0.5, 1.0]), chunk=st.sampled_from([2, None]))
@settings(max_examples=6)
def test_sums_and_their_gradients_equal_a_loop_over_tokens(seed: int, share: float, chunk: int | None) -> None:
    m = made(seed, share=share)
    plan = m.plan()
    hidden, weight, _ = m.leaves()
    out = document_logps(hidden, weight, plan, chunk=chunk)
    coefficients = torch.randn(plan.num_segments, generator=torch.Generator().manual_seed(seed))
    (out.sum * coefficients).sum().backward()
    slow_hidden, slow_weight = m.hidden.double().requires_grad_(), m.weight.double().requires_grad_()
    sums = by_loop(m, plan, slow_hidden, slow_weight)
    torch.stack([s * c for s, c in zip(sums, coefficients, strict=True)]).sum().backward()
    assert torch.allclose(out.sum.double(), torch.stack(sums), rtol=1e-6, atol=1e-6)
    for mine, theirs in ((hidden, slow_hidden), (weight, slow_weight)):
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        assert mine.grad is not None and torch.allclose(mine.grad.double(), expected, rtol=1e-5, atol=2e-6)
    lengths = torch.bincount(plan.segments, minlength=plan.num_segments)  # type: ignore[arg-type]
    assert torch.equal(out.length, lengths.float())
    assert torch.allclose(out.mean, torch.where(lengths > 0, out.sum / lengths.clamp(min=1), 0))


def test_gradcheck_with_bias_softcap_scale_and_weights() -> None:
    m = made(1, batch=1, length=9, hidden=3, vocabulary=5, share=0.8, dtype=torch.float64)
    plan = m.plan(weighted=True)

    def sums(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return document_logps(h, w, plan, bias=b, softcap=3.0, scale=0.5, chunk=2).sum

    assert torch.autograd.gradcheck(sums, m.leaves())


def pairs_batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Made, Tensor]:
    """Three pairs, a document per row of the batch: rows 0, 2, 4 chosen, 1, 3, 5 rejected."""
    g = torch.Generator().manual_seed(seed)
    m = made(seed, batch=6, length=10, dtype=dtype)
    m.segment_ids = torch.ones(6, 10, dtype=torch.int64)
    for b, length in enumerate([10, 7, 5, 9, 6, 8]):
        m.segment_ids[b, length:] = 0
    m.labels = torch.randint(0, 29, (6, 10), generator=g)
    m.labels[:, :3] = -100
    m.labels[m.segment_ids == 0] = -100
    return m, torch.tensor([[0, 1], [2, 3], [4, 5]])


def packed(m: Made, order: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(hidden, labels, segment_ids, place of each document) with all documents of m in one row, in this order."""
    keep = [m.segment_ids[b] > 0 for b in range(6)]
    place = torch.empty(6, dtype=torch.int64)
    place[torch.tensor(order)] = torch.arange(6)
    return (
        torch.cat([m.hidden[b][keep[b]] for b in order])[None],
        torch.cat([m.labels[b][keep[b]] for b in order])[None],
        torch.cat([torch.full((int(keep[b].sum()),), k + 1) for k, b in enumerate(order)])[None],
        place,
    )


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 2, 0, 4, 1, 3]])
def test_packed_pairs_in_any_order_give_the_loss_and_gradients_of_one_document_per_row(order: list[int]) -> None:
    m, pairs = pairs_batch(2)
    hidden, weight, _ = m.leaves()
    reference = made(99, dtype=torch.float64).weight
    plan = LossPlan.from_labels(m.labels, segment_ids=m.segment_ids, pairs=pairs)
    policy = document_logps(hidden, weight, plan).pairs
    pair_loss("sigmoid", policy, document_logps(m.hidden, reference, plan).pairs, beta=0.2).loss.backward()

    flat, labels, segment_ids, place = packed(m, order)
    flat.requires_grad_()
    other = weight.detach().clone().requires_grad_()
    packed_plan = LossPlan.from_labels(labels, segment_ids=segment_ids, pairs=place[pairs])
    packed_policy = document_logps(flat, other, packed_plan).pairs
    packed_reference = document_logps(flat.detach(), reference, packed_plan).pairs
    pair_loss("sigmoid", packed_policy, packed_reference, beta=0.2).loss.backward()
    assert torch.allclose(policy.chosen, packed_policy.chosen, rtol=1e-12)
    assert torch.allclose(policy.rejected, packed_policy.rejected, rtol=1e-12)
    assert torch.allclose(other.grad, weight.grad, rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]
    expected = torch.cat([hidden.grad[b][m.segment_ids[b] > 0] for b in order])  # type: ignore[index]
    assert torch.allclose(flat.grad[0], expected, rtol=1e-9, atol=1e-12)  # type: ignore[index]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [3, 1, 5, 0, 2, 4]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_policy_equal_to_reference_gives_ln_2_for_any_packing(order: list[int], dtype: torch.dtype) -> None:
    m, pairs = pairs_batch(3, dtype)
    hidden, labels, segment_ids, place = packed(m, order)
    plan = LossPlan.from_labels(labels, segment_ids=segment_ids, pairs=place[pairs])
    policy = document_logps(hidden.requires_grad_(), m.weight, plan).pairs
    with torch.no_grad():
        reference = document_logps(hidden, m.weight, plan).pairs
    sides = (policy.chosen, policy.rejected, reference.chosen, reference.rejected)
    lengths = {"chosen_length": policy.chosen_length, "rejected_length": policy.rejected_length}
    assert torch.allclose(preference_loss("sigmoid", *sides, beta=0.3).loss, torch.tensor(2.0).log())
    assert torch.allclose(preference_loss("kto", *sides, kl=0.0).loss / 2, torch.tensor(0.5))
    assert torch.allclose(preference_loss("ipo", *sides, beta=0.2, **lengths).loss, torch.tensor(1 / (4 * 0.2**2)))


def test_a_shared_prompt_equals_two_separate_documents() -> None:
    """The prompt's last row predicts the first token of both branches; its gradient is the sum of both uses."""
    g = torch.Generator().manual_seed(4)
    prompt, chosen, rejected = (torch.randn(n, 8, generator=g, dtype=torch.float64) for n in (4, 3, 2))
    weight = torch.randn(13, 8, generator=g, dtype=torch.float64)
    tokens = {"chosen": torch.tensor([3, 1, 4]), "rejected": torch.tensor([1, 5])}
    nothing = torch.full((4,), -100)

    leaves = [x.clone().requires_grad_() for x in (prompt, chosen, rejected)]
    separate = []
    for branch, name in ((leaves[1], "chosen"), (leaves[2], "rejected")):
        plan = LossPlan.from_labels(torch.cat([nothing, tokens[name]])[None])
        separate.append(document_logps(torch.cat([leaves[0], branch])[None], weight, plan).sum[0])
    F.softplus(-0.1 * (separate[0] - separate[1])).backward()

    shared = [x.clone().requires_grad_() for x in (prompt, chosen, rejected)]
    plan = LossPlan.from_labels(
        torch.cat([nothing, tokens["chosen"], tokens["rejected"]])[None],
        segment_ids=torch.tensor([[1] * 4 + [2] * 3 + [3] * 2]),
        predictors=torch.tensor([[-1, 0, 1, 2, 3, 4, 5, 3, 7]]),
        pairs=torch.tensor([[1, 2]]),
    )
    both = document_logps(torch.cat(shared)[None], weight, plan)
    assert torch.allclose(both.sum[1:], torch.stack(separate), rtol=1e-12)
    out = preference_loss(
        "sigmoid", both.pairs.chosen, both.pairs.rejected, torch.zeros(1).double(), torch.zeros(1).double()
    )
    out.loss.backward()
    for mine, theirs in zip(shared, leaves, strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-12)  # type: ignore[arg-type]


def test_an_empty_completion_is_finite_counted_and_has_no_gradient_of_its_own() -> None:
    m, pairs = pairs_batch(5, torch.float32)
    m.labels[1] = -100
    plan = LossPlan.from_labels(m.labels, segment_ids=m.segment_ids, pairs=pairs)
    reference = document_logps(m.hidden, m.weight * 0.9, plan).pairs
    for name, parameters in (
        ("sigmoid", {}),
        ("ipo", {}),
        ("simpo", {"gamma": 0.5}),
        ("orpo", {}),
        ("sigmoid_norm", {"beta": 1.0}),
    ):
        hidden, weight, _ = m.leaves()
        policy = document_logps(hidden, weight, plan).pairs
        assert int(policy.empty) == 1
        out = pair_loss(name, policy, None if name in ("simpo", "orpo") else reference, **parameters)  # type: ignore[arg-type]
        out.loss.backward()
        assert torch.isfinite(out.losses).all() and hidden.grad is not None and weight.grad is not None
        assert torch.isfinite(hidden.grad).all() and torch.isfinite(weight.grad).all() and weight.grad.any()
        assert not hidden.grad[1].any()


def test_nothing_supervised_is_zero_with_zero_gradients() -> None:
    m = made(6, share=0.0)
    hidden, weight, _ = m.leaves()
    out = document_logps(hidden, weight, m.plan())
    assert not out.sum.any() and not out.mean.any() and out.sum.requires_grad
    out.mean.sum().backward()
    assert not hidden.grad.any() and not weight.grad.any()  # type: ignore[union-attr]


def test_what_a_plan_does_not_know_is_said() -> None:
    m = made(7)
    with pytest.raises(UsageError, match="knows no documents"):
        document_logps(m.hidden, m.weight, m.plan(capacity=m.labels.numel()))
    with pytest.raises(UsageError, match="no pairs"):
        _ = document_logps(m.hidden, m.weight, m.plan()).pairs
