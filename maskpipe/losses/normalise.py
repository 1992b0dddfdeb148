"""The one place of this package that divides.

Every loss returns a sum. What it is divided by belongs to the optimizer step, not to the micro-batch or the rank that
happens to hold a token: a mean of means weighs a token of a short micro-batch more (N01-N06).

    d = global_denominator(plans_of_this_step, group)            # Σ weights over micro-batches and ranks
    for plan in plans_of_this_step:
        linear_cross_entropy(hidden, weight, plan.normalised_by(d, replicas=world_size)).loss.backward()
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed
from torch import Tensor

from maskpipe.errors import UsageError
from maskpipe.losses.plan import LossPlan


def normalise(total: Tensor, denominator: float | Tensor, *, replicas: int = 1) -> Tensor:
    """total · replicas / denominator, 0-d; exactly 0 (and still connected to the graph) when the denominator is 0.

    `replicas` undoes an averaging of gradients over ranks that comes later. A tensor denominator costs no host sync.
    Raises UsageError for a negative or non-finite number.
    """
    if isinstance(denominator, Tensor):
        divisor = denominator.to(device=total.device, dtype=total.dtype)
        return total * torch.where(divisor > 0, replicas / torch.where(divisor > 0, divisor, 1), 0)
    if not 0 <= denominator < float("inf"):
        raise UsageError(f"a denominator must be finite and >= 0, but is {denominator}.")
    return total * (replicas / denominator if denominator else 0.0)


def global_denominator(
    plans: Iterable[LossPlan],
    group: torch.distributed.ProcessGroup | None = None,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """0-d float64: Σ weights of the plans of one optimizer step, over all ranks when torch.distributed is initialised.

    `device`: where the sum is made (NCCL needs the GPU); default that of the first plan. Every rank must call it.
    """
    kept = list(plans)
    place = torch.device(device) if device is not None else kept[0].rows.device if kept else torch.device("cpu")
    dtype = torch.float32 if place.type == "mps" else torch.float64
    total = torch.zeros((), dtype=dtype, device=place)
    for plan in kept:
        total = total + plan.weight_sum
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total, group=group)
    return total
