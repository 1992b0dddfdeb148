"""Every preference loss equals its closed form in float64, with its gradient; nothing it is given is ignored."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from maskpipe.errors import UsageError
from maskpipe.losses import (
    kto_kl,
    mismatched,
    preference_loss,
    preference_losses,
    register_preference_loss,
    unpaired_loss,
)
from tests.reference import losses as slow

LENGTHS = {"chosen_length", "rejected_length"}
CASES: list[tuple[str, bool, set[str], dict[str, float]]] = [
    # name, takes a reference, takes lengths, parameters
    ("sigmoid", True, set(), {"beta": 0.3}),
    ("sigmoid", True, set(), {"beta": 0.1, "label_smoothing": 0.2}),
    ("sigmoid_norm", True, LENGTHS, {"beta": 5.0}),
    ("robust", True, set(), {"beta": 0.2, "label_smoothing": 0.1}),
    ("ipo", True, LENGTHS, {"beta": 0.25}),
    ("hinge", True, set(), {"beta": 0.2}),
    ("slic", False, set(), {"delta": 1.5, "nll_weight": 0.1}),
    ("simpo", False, LENGTHS, {"beta": 2.0, "gamma": 0.5}),
    ("alphapo", False, LENGTHS, {"beta": 2.0, "gamma": 0.5, "alpha": 0.25}),
    ("orpo", False, LENGTHS, {"beta": 0.3}),
    ("cpo", False, set(), {"beta": 0.1, "nll_weight": 0.5, "nll_scale": 0.25}),
    ("sigmoid_nll", True, set(), {"beta": 0.1, "nll_weight": 0.5, "nll_scale": 0.25}),
    ("apo_zero", True, set(), {"beta": 0.3}),
    ("apo_down", True, set(), {"beta": 0.3}),
    ("kto", True, set(), {"beta": 0.3, "kl": 0.4, "desirable_weight": 1.3, "undesirable_weight": 0.7}),
    ("bco", True, set(), {"beta": 0.3, "delta": 0.2}),
    ("nca", True, set(), {"beta": 0.3}),
    ("exo", True, set(), {"beta": 0.3, "label_smoothing": 0.01}),
    ("sppo", True, set(), {"beta": 0.5}),
    ("discopop", True, set(), {"beta": 0.1, "tau": 0.05}),
    ("bradley_terry", False, set(), {"margin": 0.4, "centering": 0.01}),
]
NAMES = [case[0] + ("+smoothing" if "label_smoothing" in case[3] else "") for case in CASES]


def toy(seed: int, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], Tensor, Tensor]:
    """(policy chosen, rejected, reference chosen, rejected), lengths of chosen and rejected; six pairs."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (2, 6), generator=g)
    per_token = -0.2 - 2 * torch.rand(4, 6, generator=g, dtype=torch.float64)
    sums = per_token * torch.cat([lengths, lengths])
    return [row.to(dtype) for row in sums], lengths[0], lengths[1]


def call(
    name: str, reference: bool, lengths: set[str], parameters: dict[str, Any], seed: int, dtype: torch.dtype
) -> Any:
    vectors, chosen_length, rejected_length = toy(seed, dtype)
    leaves = [vector.requires_grad_() for vector in vectors[: 4 if reference else 2]]
    more = {"chosen_length": chosen_length.to(dtype), "rejected_length": rejected_length.to(dtype)} if lengths else {}
    return leaves, more, preference_loss(name, *leaves, **parameters, **more)


def test_every_registered_loss_is_tested() -> None:
    assert set(preference_losses()) == {case[0] for case in CASES}


@pytest.mark.parametrize(("name", "reference", "lengths", "parameters"), CASES, ids=NAMES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=6)
def test_equals_the_closed_form(
    name: str, reference: bool, lengths: set[str], parameters: dict[str, Any], seed: int
) -> None:
    vectors, chosen_length, rejected_length = toy(seed)
    expected = [
        slow.preference(
            name, *(float(v[i]) for v in vectors), int(chosen_length[i]), int(rejected_length[i]), **parameters
        )
        for i in range(6)
    ]
    _, _, exact = call(name, reference, lengths, parameters, seed, torch.float64)
    assert torch.allclose(exact.losses, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert math.isclose(exact.loss.item(), sum(expected) / 6, rel_tol=1e-9, abs_tol=1e-12)
    _, _, single = call(name, reference, lengths, parameters, seed, torch.float32)
    assert single.losses.dtype == torch.float32
    assert torch.allclose(single.losses.double(), exact.losses, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(("name", "reference", "lengths", "parameters"), CASES, ids=NAMES)
def test_gradcheck(name: str, reference: bool, lengths: set[str], parameters: dict[str, Any]) -> None:
    leaves, more, _ = call(name, reference, lengths, parameters, 1, torch.float64)
    assert torch.autograd.gradcheck(lambda *x: preference_loss(name, *x, **parameters, **more).losses, tuple(leaves))


@pytest.mark.parametrize(("name", "reference", "lengths", "parameters"), CASES, ids=NAMES)
@pytest.mark.parametrize("size", [500.0, 3e3])
def test_far_away_pairs_stay_finite_where_the_loss_itself_is(
    name: str, reference: bool, lengths: set[str], parameters: dict[str, Any], size: float
) -> None:
    """Summed log-probabilities of real completions are in the thousands; either side may be far ahead."""
    long = torch.full((4,), 400.0)
    policy = torch.tensor([-size, -1.0, -size, -1e-9]), torch.tensor([-1.0, -size, -size, -1e-9])
    leaves = [x.clone().requires_grad_() for x in policy]
    references = [torch.full((4,), -100.0)] * 2 if reference else []
    more = {"chosen_length": long, "rejected_length": long} if lengths else {}
    out = preference_loss(name, *leaves, *references, **parameters, **more)
    out.loss.backward()
    if name == "discopop" and size * parameters["beta"] > 88:  # e^(-x) itself is beyond float32
        assert not torch.isnan(out.losses).any() and torch.isfinite(out.losses[1:]).all()
        return
    assert torch.isfinite(out.losses).all()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)  # type: ignore[arg-type]


def test_discopop_is_no_nan_where_its_formula_is_as_it_stands() -> None:
    zeros = torch.zeros(1)
    chosen = torch.tensor([-2000.0], requires_grad=True)
    out = preference_loss("discopop", chosen, zeros, zeros, zeros, beta=0.05)
    out.loss.backward()
    expected = slow.l(-100.0)  # m is 0 here: the logistic part alone
    assert math.isclose(out.loss.item(), expected, rel_tol=1e-6) and torch.isfinite(chosen.grad).all()  # type: ignore[arg-type]
    x = torch.tensor(-100.0)
    assert torch.isnan(torch.sigmoid(x / 0.05) * torch.exp(-x))


@pytest.mark.parametrize("name", ["ipo", "simpo", "orpo", "sigmoid_norm", "alphapo"])
def test_doubling_a_completion_at_the_same_mean_changes_no_length_normalised_loss(name: str) -> None:
    case = next(case for case in CASES if case[0] == name)
    vectors, chosen_length, rejected_length = toy(2)
    vectors = vectors if case[1] else vectors[:2]
    once = preference_loss(name, *vectors, **case[3], chosen_length=chosen_length, rejected_length=rejected_length)
    twice = preference_loss(
        name, *(2 * v for v in vectors), **case[3], chosen_length=2 * chosen_length, rejected_length=2 * rejected_length
    )
    assert torch.allclose(once.losses, twice.losses, rtol=1e-12)


def test_gamma_and_gamma_over_beta_say_the_same_and_never_both() -> None:
    (chosen, rejected, *_), n_w, n_l = toy(3)
    lengths = {"chosen_length": n_w, "rejected_length": n_l}
    by_gamma = preference_loss("simpo", chosen, rejected, beta=2.0, gamma=0.5, **lengths)
    by_ratio = preference_loss("simpo", chosen, rejected, beta=2.0, gamma_over_beta=0.25, **lengths)
    assert torch.equal(by_gamma.losses, by_ratio.losses)
    for wrong in ({}, {"gamma": 0.5, "gamma_over_beta": 0.25}):
        with pytest.raises(UsageError, match="and not both"):
            preference_loss("simpo", chosen, rejected, beta=2.0, **wrong, **lengths)


def test_a_loss_without_reference_is_the_same_as_one_against_a_uniform_reference() -> None:
    (chosen, rejected, *_), _, _ = toy(4)
    same = torch.full_like(chosen, -7.0)
    cpo = preference_loss("cpo", chosen, rejected, beta=0.1, nll_weight=0.0, nll_scale=1.0)
    assert torch.allclose(cpo.losses, preference_loss("sigmoid", chosen, rejected, same, same, beta=0.1).losses)


@pytest.mark.parametrize(
    ("name", "arguments", "parameters", "message"),
    [
        ("dpo", 4, {}, "no preference loss named 'dpo'; there are"),
        ("sigmoid", 4, {"gamma": 1.0}, "no parameter 'gamma'; it has beta, label_smoothing"),
        ("hinge", 4, {"label_smoothing": 0.1}, "no parameter 'label_smoothing'"),
        ("sigmoid", 2, {}, "needs reference_chosen"),
        (
            "orpo",
            4,
            {"chosen_length": torch.ones(6), "rejected_length": torch.ones(6)},
            "does not use reference_chosen",
        ),
        ("sigmoid", 4, {"chosen_length": torch.ones(6)}, "no parameter 'chosen_length'"),
        ("ipo", 4, {}, "needs chosen_length="),
        ("ipo", 4, {"chosen_length": torch.ones(5), "rejected_length": torch.ones(6)}, "chosen_length must be \\[6\\]"),
        ("robust", 4, {"label_smoothing": 0.5}, "label_smoothing must be in"),
        ("robust", 4, {}, "needs label_smoothing="),
        ("sigmoid", 4, {"beta": 0.0}, "beta must be above 0"),
        ("exo", 4, {"label_smoothing": 0.0}, "label_smoothing must be above 0"),
        ("sigmoid", 4, {"weights": torch.ones(3)}, "weights must be"),
        ("sigmoid", 4, {"denominator": -1.0}, "denominator"),
    ],
)
def test_an_unknown_missing_or_ignored_argument_is_an_error(
    name: str, arguments: int, parameters: dict[str, Any], message: str
) -> None:
    vectors, _, _ = toy(5)
    with pytest.raises(UsageError, match=message):
        _ = preference_loss(name, *vectors[:arguments], **parameters).loss


def test_rounded_sums_and_vectors_that_do_not_fit_are_refused() -> None:
    vectors, _, _ = toy(6)
    with pytest.raises(UsageError, match="bfloat16; sum log-probabilities in float32"):
        preference_loss("sigmoid", *(v.bfloat16() for v in vectors))
    with pytest.raises(UsageError, match="as long as policy_chosen"):
        preference_loss("sigmoid", vectors[0], vectors[1][:3], *vectors[2:])
    with pytest.raises(UsageError, match="as long as policy_chosen"):
        preference_loss("sigmoid", vectors[0], vectors[1][:, None], *vectors[2:])


def test_the_registry_is_open_and_checked() -> None:
    def squared(policy_chosen: Tensor, policy_rejected: Tensor, *, gap: float) -> Tensor:
        return (policy_chosen - policy_rejected - gap).square()

    register_preference_loss("squared of a test", squared)
    try:
        out = preference_loss("squared of a test", torch.ones(2), torch.zeros(2), gap=3.0)
        assert out.losses.tolist() == [4.0, 4.0]
        with pytest.raises(UsageError, match="registered already"):
            register_preference_loss("sigmoid", squared)
        with pytest.raises(UsageError, match="it must take"):
            register_preference_loss("odd", lambda left, right: left)
    finally:
        from maskpipe.losses.preference import _LOSSES

        del _LOSSES["squared of a test"]


def test_any_split_of_the_pairs_gives_the_same_loss_with_the_denominator_of_the_step() -> None:
    vectors, _, _ = toy(7)
    weights = torch.tensor([1.0, 0.0, 2.0, 1.0, 0.5, 1.0])
    whole = preference_loss("sigmoid", *vectors, weights=weights)
    assert whole.weight_sum == 5.5 and torch.equal(whole.accuracy, (whole.margin > 0).double().mean())  # type: ignore[operator]
    for cut in range(7):
        parts = [
            preference_loss("sigmoid", *(v[part] for v in vectors), weights=weights[part], denominator=5.5).loss
            for part in (slice(0, cut), slice(cut, 6))
        ]
        assert torch.allclose(sum(parts), whole.loss)  # type: ignore[arg-type]


@pytest.mark.parametrize("documents", range(2, 10))
def test_no_document_is_its_own_mismatch(documents: int) -> None:
    partners = mismatched(documents)
    assert sorted(partners) == list(range(documents)) and all(i != j for i, j in enumerate(partners))


def test_a_single_document_has_no_mismatch() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        mismatched(1)


def test_unpaired_losses_equal_their_closed_forms() -> None:
    (policy, other, reference, _), _, _ = toy(8)
    desirable = torch.tensor([True, False, True, True, False, False])
    z = kto_kl(other.requires_grad_(), reference)
    assert not z.requires_grad and z == max(0.0, float((other - reference).detach().mean()))
    out = unpaired_loss(
        "kto", policy, reference, desirable, kl=0.3, beta=0.2, desirable_weight=1.5, undesirable_weight=0.5
    )
    for i in range(6):
        x = 0.2 * (float(policy[i] - reference[i]) - 0.3)
        expected = 1.5 * (1 - slow.s(x)) if desirable[i] else 0.5 * (1 - slow.s(-x))
        assert math.isclose(float(out.losses[i]), expected, rel_tol=1e-12)
    assert math.isclose(out.loss.item(), float(out.losses.mean()), rel_tol=1e-12)
    apo = unpaired_loss("apo_zero", policy, reference, desirable, beta=0.2)
    bco = unpaired_loss("bco", policy, reference, desirable, beta=0.2, delta=0.1)
    for i in range(6):
        ratio, sign = 0.2 * float(policy[i] - reference[i]), 1 if desirable[i] else -1
        assert math.isclose(float(apo.losses[i]), 1 - slow.s(sign * ratio), rel_tol=1e-9)
        assert math.isclose(float(bco.losses[i]), slow.l(sign * (ratio - 0.1)), rel_tol=1e-9)
    for name, parameters in (("kto", {"kl": 0.3}), ("apo_zero", {}), ("bco", {"delta": 0.1})):

        def losses(p: Tensor, r: Tensor, name: str = name, parameters: dict[str, Any] = parameters) -> Tensor:
            return unpaired_loss(name, p, r, desirable, **parameters).losses

        assert torch.autograd.gradcheck(losses, (policy.clone().requires_grad_(), reference.clone().requires_grad_()))
    with pytest.raises(UsageError, match="no unpaired loss"):
        unpaired_loss("sigmoid", policy, reference, desirable)
    with pytest.raises(UsageError, match="no parameter 'kl'"):
        unpaired_loss("apo_zero", policy, reference, desirable, kl=0.1)
    with pytest.raises(UsageError, match="desirable must be"):
        unpaired_loss("apo_zero", policy, reference, desirable.long())
    with pytest.raises(UsageError, match="no margins"):
        _ = out.accuracy


def test_no_pairs_is_exactly_zero() -> None:
    nothing = torch.zeros(0, requires_grad=True)
    out = preference_loss("sigmoid", nothing, nothing, nothing, nothing)
    out.loss.backward()
    assert out.loss.item() == 0.0 and out.accuracy.item() == 0.0
