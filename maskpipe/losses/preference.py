"""Preference losses by name: sums of log-probabilities per side in, one loss per pair out, divided in one place.

    policy, reference = document_logps(…).pairs, …            PairLogps, float32 vectors [pairs]
    out = preference_loss("sigmoid", policy.chosen, policy.rejected, reference.chosen, reference.rejected, beta=0.1)
    out.loss.backward()

What a loss takes stands in the signature of its function (preference_formulas.py): a parameter it does not have, a
reference it does not use, a length it ignores are errors, as is leaving out one that it needs. `preference_losses()`
lists them; `register_preference_loss` adds one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskpipe.errors import UsageError
from maskpipe.losses import preference_formulas as formulas
from maskpipe.losses.document_logps import PairLogps
from maskpipe.losses.normalise import normalise

VECTORS = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
LENGTHS = ("chosen_length", "rejected_length")


@dataclass(frozen=True)
class Formula:
    """A function of vectors, and what its signature says it takes."""

    name: str
    function: Callable[..., Tensor]
    vectors: tuple[str, ...]
    parameters: tuple[str, ...]
    required: tuple[str, ...]
    """Those of `parameters` without a default."""

    @classmethod
    def of(cls, name: str, function: Callable[..., Tensor]) -> Formula:
        taken = list(inspect.signature(function).parameters.values())
        keywords = [item for item in taken if item.kind is item.KEYWORD_ONLY]
        return cls(
            name,
            function,
            tuple(item.name for item in taken if item.kind is item.POSITIONAL_OR_KEYWORD),
            tuple(item.name for item in keywords),
            tuple(item.name for item in keywords if item.default is item.empty),
        )

    def __call__(self, vectors: Mapping[str, Tensor], parameters: Mapping[str, Any]) -> Tensor:
        """The losses; UsageError for anything missing, unknown or without use."""
        for vector in vectors:
            if vector not in self.vectors:
                raise UsageError(
                    f"{self.name!r} does not use {vector}; leave it out, or choose a loss with a reference."
                )
        for vector in self.vectors:
            if vector not in vectors:
                raise UsageError(f"{self.name!r} needs {vector}.")
        for parameter in self.required:
            if parameter not in parameters:
                raise UsageError(f"{self.name!r} needs {parameter}=; it has no default.")
        size = vectors[self.vectors[0]].shape
        for parameter, value in parameters.items():
            if parameter not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise UsageError(f"{self.name!r} has no parameter {parameter!r}; it has {known}.")
            if isinstance(value, Tensor) and value.dim() and value.shape != size:
                raise UsageError(f"{parameter} must be {list(size)}, but is {list(value.shape)}.")
        return self.function(**vectors, **parameters)


_LOSSES: dict[str, Formula] = {}


@dataclass(frozen=True, eq=False)
class PreferenceOut:
    """Losses of the pairs (or documents) of one micro-batch."""

    losses: Tensor
    """[pairs] float32, weighted; carries the gradient."""
    weight_sum: float | Tensor
    """Σ weights: the number of pairs, unless weighted."""
    denominator: float | Tensor
    """What the sum is divided by: Σ weights over all micro-batches and ranks of one optimizer step."""
    replicas: int
    margin: Tensor | None
    """[pairs] chosen minus rejected log-ratio (log-probability, without a reference; score, for a reward model),
    detached; beta is not in it. None for losses of single documents."""

    @property
    def sum(self) -> Tensor:
        """0-d Σ losses."""
        return self.losses.sum()

    @property
    def loss(self) -> Tensor:
        """0-d sum · replicas / denominator; exactly 0 without pairs."""
        return normalise(self.sum, self.denominator, replicas=self.replicas)

    @property
    def accuracy(self) -> Tensor:
        """0-d: share of pairs with a margin above 0, unweighted; 0 without pairs. Raises UsageError without margins."""
        if self.margin is None:
            raise UsageError("losses of single documents have no margins.")
        return normalise((self.margin > 0).to(self.losses.dtype).sum(), float(self.margin.shape[0]))


def register_preference_loss(name: str, function: Callable[..., Tensor]) -> None:
    """Makes `preference_loss(name, …)` call `function`: positional vectors [pairs] named as in VECTORS, or the first
    two of them, keyword-only parameters, losses [pairs] in the same dtype back.

    Raises UsageError for a name that is taken or another signature.
    """
    if name in _LOSSES:
        raise UsageError(f"a preference loss named {name!r} is registered already.")
    formula = Formula.of(name, function)
    if formula.vectors not in (VECTORS[:2], VECTORS):
        raise UsageError(
            f"{name!r} takes {', '.join(formula.vectors)}; it must take {', '.join(VECTORS)}, or the first two."
        )
    _LOSSES[name] = formula


def preference_losses() -> Mapping[str, str]:
    """Name -> signature of every registered loss."""
    return {name: str(inspect.signature(formula.function)) for name, formula in sorted(_LOSSES.items())}


def preference_loss(
    name: str,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor | None = None,
    reference_rejected: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
    replicas: int = 1,
    **parameters: Any,
) -> PreferenceOut:
    """The loss `name` on vectors [pairs] of summed log-probabilities (scores, for "bradley_terry").

    weights       [pairs] constants >= 0, multiplied onto the losses
    denominator   pairs (Σ weights) of the whole optimizer step over all ranks; default those given here
    replicas      ranks over which gradients are averaged afterwards
    parameters    beta and the rest, as the formula's signature names them; chosen_length and rejected_length [pairs]
                  where the loss averages over tokens

    Computed in float32 (float64 for float64 input). Raises UsageError for an unknown loss, an unknown or missing
    parameter, a reference that the loss has no use for, vectors that do not fit or of less than float32: a sum of
    log-probabilities in bfloat16 is wrong by up to a nat.
    """
    formula = _LOSSES.get(name)
    if formula is None:
        raise UsageError(f"no preference loss named {name!r}; there are {', '.join(sorted(_LOSSES))}.")
    given = dict(zip(VECTORS, (policy_chosen, policy_rejected, reference_chosen, reference_rejected), strict=True))
    vectors = check_vectors({key: value for key, value in given.items() if value is not None})
    losses = formula(vectors, parameters)
    margin = policy_chosen.detach() - policy_rejected.detach()
    if reference_chosen is not None and reference_rejected is not None:
        margin = margin - (reference_chosen.detach() - reference_rejected.detach())
    return weighted(losses, weights, denominator, replicas, margin)


def pair_loss(
    name: str,
    policy: PairLogps,
    reference: PairLogps | None = None,
    *,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
    replicas: int = 1,
    **parameters: Any,
) -> PreferenceOut:
    """`preference_loss` on `document_logps(…).pairs`, with the policy's lengths where the loss takes them."""
    if name in _LOSSES:
        for length in LENGTHS:
            if length in _LOSSES[name].parameters:
                parameters.setdefault(length, getattr(policy, length))
    sides = () if reference is None else (reference.chosen, reference.rejected)
    return preference_loss(
        name, policy.chosen, policy.rejected, *sides,
        weights=weights, denominator=denominator, replicas=replicas, **parameters,
    )  # fmt: skip


def check_vectors(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same vectors; UsageError unless all are [n] of one length, device and of float32 or float64."""
    first_name, first = next(iter(vectors.items()))
    for name, value in vectors.items():
        if value.dim() != 1 or value.shape != first.shape:
            raise UsageError(
                f"{name} must be a vector as long as {first_name}: {list(value.shape)} against {list(first.shape)}."
            )
        if value.dtype not in (torch.float32, torch.float64):
            raise UsageError(f"{name} is {value.dtype}; sum log-probabilities in float32, as document_logps does.")
        if value.device != first.device:
            raise UsageError(f"{name} lies on {value.device}, {first_name} on {first.device}; move one of them.")
    return dict(vectors)


def weighted(
    losses: Tensor,
    weights: Tensor | None,
    denominator: float | Tensor | None,
    replicas: int,
    margin: Tensor | None,
) -> PreferenceOut:
    """Losses times weights, with what they will be divided by."""
    weight_sum: float | Tensor = float(losses.shape[0])
    if weights is not None:
        if weights.shape != losses.shape or weights.requires_grad:
            raise UsageError(f"weights must be {list(losses.shape)} constants, but are {list(weights.shape)}.")
        losses = torch.where(weights != 0, losses * weights.to(losses.dtype), 0)
        weight_sum = weights.sum()
    return PreferenceOut(losses, weight_sum, weight_sum if denominator is None else denominator, replicas, margin)


for _name, _function in formulas.PAIRED.items():
    register_preference_loss(_name, _function)
