"""A plan says exactly what labels mean, and more than labels can."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from maskpipe.errors import UsageError
from maskpipe.losses import LossPlan
from tests.losses.made import made
from tests.reference import losses as slow


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.4, 1.0]))
def test_a_plan_holds_the_rows_that_a_loop_over_labels_finds(seed: int, share: float) -> None:
    m = made(seed, share=share)
    plan = m.plan()
    expected = slow.supervised(m.labels.tolist(), m.segment_ids.tolist())
    assert list(zip(plan.rows.tolist(), plan.targets.tolist(), strict=True)) == [
        (b * m.labels.shape[1] + t, target) for b, t, target in expected
    ]
    assert plan.count == len(expected) and plan.weight_sum == len(expected)
    assert plan.roles is not None and plan.segments is not None
    for i, (b, t, _) in enumerate(expected):
        assert plan.roles[i] == m.roles[b, t + 1]
        before = sum(int(m.segment_ids[k].max()) for k in range(b))
        assert plan.segments[i] == before + m.segment_ids[b, t + 1] - 1


@given(st.integers(0, 10_000))
def test_labels_to_plan_and_back_is_the_identity(seed: int) -> None:
    m = made(seed)
    assert torch.equal(m.plan().to_labels(), m.labels)
    shifted = m.plan().to_labels(shifted=True)
    assert torch.equal(shifted[:, :-1], m.labels[:, 1:])
    again = LossPlan.from_labels(shifted, shifted=True)
    assert torch.equal(again.rows, m.plan().rows) and torch.equal(again.targets, m.plan().targets)


@given(st.integers(0, 10_000), st.booleans())
def test_a_plan_of_fixed_capacity_means_the_same(seed: int, weighted: bool) -> None:
    m = made(seed)
    exact, fixed = m.plan(weighted=weighted), m.plan(weighted=weighted, capacity=m.labels.numel())
    assert fixed.rows.shape == (m.labels.numel(),) and fixed.weights is not None
    kept = fixed.weights != 0
    assert torch.equal(fixed.rows[kept], exact.rows) and torch.equal(fixed.targets[kept], exact.targets)
    assert float(fixed.weight_sum) == float(exact.weight_sum) and int(fixed.count) == int(exact.count)
    assert torch.equal(fixed.to_labels(), exact.to_labels())


def test_the_first_token_of_a_document_or_a_row_is_never_a_target_and_is_counted() -> None:
    plan = LossPlan.from_labels(torch.tensor([[5, 6, 7, 8]]), segment_ids=torch.tensor([[1, 1, 2, 2]]))
    assert plan.rows.tolist() == [0, 2] and plan.targets.tolist() == [6, 8]
    assert plan.weight_sum == 2 and plan.unpredictable == 2


def test_a_shared_prompt_predicts_both_branches_from_its_last_row() -> None:
    #                  prompt  chosen  rejected
    labels = torch.tensor([[-100, -100, 3, 4, 5, 6]])
    predictors = torch.tensor([[-1, 0, 1, 2, 1, 4]])
    plan = LossPlan.from_labels(
        labels, segment_ids=torch.tensor([[1, 1, 2, 2, 3, 3]]), predictors=predictors, pairs=torch.tensor([[1, 2]])
    )
    assert plan.rows.tolist() == [1, 2, 1, 4] and plan.targets.tolist() == [3, 4, 5, 6]
    assert plan.segments is not None and plan.segments.tolist() == [1, 1, 2, 2]
    assert not plan.distinct_rows and plan.unpredictable == 0
    with pytest.raises(UsageError, match="predicts two tokens"):
        plan.to_labels()


def test_padding_a_plan_changes_its_shape_and_nothing_else() -> None:
    m = made(3)
    plan = m.plan().padded(64)
    assert plan.rows.shape[0] % 64 == 0 and plan.rows.shape[0] > m.plan().rows.shape[0]
    assert float(plan.weight_sum) == m.plan().weight_sum and torch.equal(plan.to_labels(), m.labels)


def test_a_batch_is_read_by_its_names_as_object_or_mapping() -> None:
    m = made(4)
    names = {
        "labels": m.labels,
        "segment_ids": m.segment_ids,
        "role_ids": m.roles,
        "loss_weights": m.token_weights,
        "loss_denominator": 77.0,
    }
    expected = m.plan(weighted=True)
    for batch in (names, SimpleNamespace(**names, part_ids=None)):
        plan = LossPlan.from_batch(batch)
        assert torch.equal(plan.rows, expected.rows) and plan.denominator == 77.0
        assert plan.weights is not None and torch.equal(plan.weights, expected.weights)  # type: ignore[arg-type]
    assert LossPlan.from_batch({"plan": expected}) is expected
    with pytest.raises(UsageError, match="without labels"):
        LossPlan.from_batch({"input_ids": m.labels})


def test_branches_of_a_pair_are_joined_by_row_and_number() -> None:
    """Two rows of twelve: both hold a pair 7, of two datasets; the second begins with a document of no pair."""
    batch = {
        "labels": torch.randint(0, 9, (2, 12)),
        "segment_ids": torch.tensor([[1] * 5 + [2] * 5 + [0] * 2, [1] * 3 + [2] * 4 + [3] * 5]),
        "branches": torch.tensor([3, 2, 0, 0, 2, 3], dtype=torch.uint8),
        "pairs": torch.tensor([7, 7, -1, -1, 7, 7]),
        "segment_numbers": torch.tensor([1, 2, 0, 1, 2, 3]),
        "cu_seqlens": torch.tensor([0, 5, 10, 12, 15, 19, 24]),
    }
    batch["labels"][batch["segment_ids"] == 0] = -100
    plan = LossPlan.from_batch(batch)
    assert plan.pairs is not None and plan.pairs.tolist() == [[1, 0], [3, 4]]
    none = LossPlan.from_batch({**batch, "branches": torch.zeros(6, dtype=torch.uint8)})
    assert none.pairs is None
    with pytest.raises(UsageError, match="only one branch"):
        LossPlan.from_batch({**batch, "pairs": torch.tensor([7, 8, -1, -1, 7, 7])})
    with pytest.raises(UsageError, match="two chosen branches"):
        LossPlan.from_batch({**batch, "branches": torch.tensor([2, 2, 0, 0, 2, 3], dtype=torch.uint8)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": torch.zeros(4)}, "labels must be"),
        ({"labels": torch.tensor([[1, -7]])}, "hold -7 at \\[0, 1\\]"),
        ({"labels": torch.tensor([[1, 2]]), "segment_ids": torch.tensor([[1, 0]])}, "train padding .* \\[0, 1\\]"),
        ({"labels": torch.tensor([[1, 2]]), "weights": torch.tensor([[1.0, -1.0]])}, "finite and >= 0"),
        ({"labels": torch.tensor([[1, 2]]), "weights": torch.tensor([[1.0, float("nan")]])}, "finite and >= 0"),
        ({"labels": torch.tensor([[1, 2]]), "roles": torch.zeros(1, 3, dtype=torch.uint8)}, "shape of labels"),
        ({"labels": torch.tensor([[1, 2]]), "pairs": torch.tensor([[0, 1]])}, "outside 0..0"),
        ({"labels": torch.tensor([[1, 2, 3]]), "capacity": 1}, "2 tokens have loss"),
        ({"labels": torch.tensor([[1, 2]]), "replicas": 0}, "replicas"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LossPlan.from_labels(**arguments)  # type: ignore[arg-type]
