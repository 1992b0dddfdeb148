"""Losses of single documents with a thumb up or down, and KTO's reference point.

z = kto_kl(policy_of_mismatched, reference_of_mismatched)
out = unpaired_loss("kto", policy.sum, reference.sum, plan.desirable > 0, kl=z, beta=0.1)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor

from maskpipe.errors import UsageError
from maskpipe.losses.normalise import normalise
from maskpipe.losses.preference import Formula, PreferenceOut, check_vectors, weighted
from maskpipe.losses.preference_formulas import UNPAIRED

_LOSSES = {name: Formula.of(name, function) for name, function in UNPAIRED.items()}


def unpaired_loss(
    name: str,
    policy: Tensor,
    reference: Tensor,
    desirable: Tensor,
    *,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    weights: Tensor | None = None,
    denominator: float | Tensor | None = None,
    replicas: int = 1,
    **parameters: Any,
) -> PreferenceOut:
    """The loss `name` ("kto", "apo_zero", "bco") on vectors [documents] of summed log-probabilities.

    desirable: [documents] bool, the thumb. A plan of a batch has it as 1, 0, and -1 for documents without one, whose
    entries are left out of all vectors.

    desirable_weight, undesirable_weight: λ_D and λ_U, factors of the losses that do not enter the denominator.
    weights, denominator, replicas, parameters and errors as in `preference_loss`, with documents for pairs.
    """
    formula = _LOSSES.get(name)
    if formula is None:
        raise UsageError(f"no unpaired loss named {name!r}; there are {', '.join(sorted(_LOSSES))}.")
    vectors = check_vectors({"policy": policy, "reference": reference})
    if desirable.dtype != torch.bool or desirable.shape != policy.shape:
        raise UsageError(
            f"desirable must be {list(policy.shape)} bool, but is {desirable.dtype} {list(desirable.shape)}."
        )
    losses = formula({**vectors, "desirable": desirable}, parameters)
    losses = losses * torch.where(desirable, desirable_weight, undesirable_weight).to(losses.dtype)
    return weighted(losses, weights, denominator, replicas, None)


def mismatched(documents: int) -> list[int]:
    """For each of n documents, the one whose completion it is paired with to estimate KTO's z: never its own.

    A rotation by one, for even and odd n alike. Raises UsageError for fewer than two.
    """
    if documents < 2:
        raise UsageError(f"KTO's reference point needs at least 2 documents to mismatch, but there are {documents}.")
    return [(index + 1) % documents for index in range(documents)]


def kto_kl(policy: Tensor, reference: Tensor, *, group: torch.distributed.ProcessGroup | None = None) -> Tensor:
    """0-d z = max(0, mean of log π/π_ref over mismatched prompt and completion), detached: 2402.01306 §4.

    policy, reference [documents]: summed log-probabilities of mismatched pairs. The mean is over all ranks of `group`
    when torch.distributed is initialised, by documents, not a mean of means of ranks. 0 without documents.
    """
    check_vectors({"policy": policy, "reference": reference})
    ratio = (policy - reference).detach()
    sums = torch.stack([ratio.sum(), ratio.new_full((), float(ratio.shape[0]))])
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums, group=group)
    return normalise(sums[0], sums[1]).clamp(min=0)
