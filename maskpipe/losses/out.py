"""What a token loss gives back: the loss to call backward() on, its sum, and metrics per role and part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from maskpipe.errors import UsageError
from maskpipe.losses.normalise import normalise
from maskpipe.losses.plan import LossPlan
from maskpipe.roles import Part, Role

ROLES = [*(role for role in Role if role is not Role.UNKNOWN), Role.UNKNOWN]
PARTS = list(Part)
K = TypeVar("K")


@dataclass(frozen=True)
class Metric:
    """Means over the tokens with loss of one role or part; source weights do not enter."""

    loss: float
    """Mean -log p in nats."""
    count: int
    """Tokens."""
    top1: float
    """Share of tokens that no other token beats, 0..1."""
    entropy: float | None
    """Mean entropy in nats; None when it was not asked for."""


@dataclass(frozen=True, eq=False)
class TokenMetrics:
    """Sums per role and part, on the device. Add those of all micro-batches, read once: reading waits for the device.

    `table` may also be all-reduced over ranks as it is.
    """

    table: Tensor
    """[roles, parts, 4] float64 (float32 on MPS), in the order of ROLES and PARTS: Σ -log p, tokens, top-1 hits,
    Σ entropy."""
    has_entropy: bool

    def __add__(self, other: TokenMetrics) -> TokenMetrics:
        return TokenMetrics(self.table + other.table, self.has_entropy and other.has_entropy)

    def total(self) -> Metric:
        return self._metric(self.table.sum((0, 1)).tolist())

    def by_role(self) -> dict[str, Metric]:
        """Role name in lower case -> Metric, for roles with tokens."""
        return self._named([role.name.lower() for role in ROLES], self.table.sum(1))

    def by_part(self) -> dict[str, Metric]:
        """Part name in lower case -> Metric, for parts with tokens."""
        return self._named([part.name.lower() for part in PARTS], self.table.sum(0))

    def by_role_and_part(self) -> dict[tuple[str, str], Metric]:
        names = [(role.name.lower(), part.name.lower()) for role in ROLES for part in PARTS]
        return self._named(names, self.table.flatten(0, 1))

    def _named(self, names: list[K], sums: Tensor) -> dict[K, Metric]:
        return {name: self._metric(row) for name, row in zip(names, sums.tolist(), strict=True) if row[1]}

    def _metric(self, row: list[float]) -> Metric:
        count = row[1] or 1.0
        return Metric(row[0] / count, int(row[1]), row[2] / count, row[3] / count if self.has_entropy else None)


@dataclass(frozen=True, eq=False)
class LossOut:
    """The result of `linear_cross_entropy` and `cross_entropy`. Only `loss` and `sum` carry a gradient."""

    sum: Tensor
    """0-d float32: Σ weights · objective of this plan."""
    plan: LossPlan
    logps: Tensor
    """[n] float32 log p of each target, in the order of plan.rows; detached."""
    top1: Tensor
    """[n] bool: no logit was above the target's."""
    entropy: Tensor | None
    """[n] float32 nats, when asked for."""

    @property
    def loss(self) -> Tensor:
        """0-d float32: sum · replicas / denominator of the plan: this micro-batch's share of the step."""
        plan = self.plan
        divisor = plan.weight_sum if plan.denominator is None else plan.denominator
        return normalise(self.sum, divisor, replicas=plan.replicas)

    @property
    def weight_sum(self) -> float | Tensor:
        return self.plan.weight_sum

    @property
    def count(self) -> int | Tensor:
        """Tokens with loss."""
        return self.plan.count

    @property
    def metrics(self) -> TokenMetrics:
        """Sums per role and part. A plan without roles counts as `unknown`, one without parts as `none`.

        Raises UsageError if the backend gives no log-probabilities.
        """
        plan, n = self.plan, self.plan.rows.shape[0]
        if self.logps.shape[0] != n:
            raise UsageError("this backend gives no log-probabilities per token; use backend='maskpipe' for metrics.")
        device = self.logps.device
        wide = torch.float32 if device.type == "mps" else torch.float64
        role = torch.full((n,), len(ROLES) - 1, dtype=torch.int64, device=device)
        if plan.roles is not None:
            role = torch.where(plan.roles < len(ROLES) - 1, plan.roles.long(), len(ROLES) - 1)
        part = torch.zeros_like(role)
        if plan.parts is not None:
            part = torch.where(plan.parts < len(PARTS), plan.parts.long(), 0)
        real = torch.ones_like(self.top1) if plan.weights is None else plan.weights != 0
        columns = [-self.logps, torch.ones_like(self.logps), self.top1, torch.zeros_like(self.logps)]
        if self.entropy is not None:
            columns[3] = self.entropy
        values = torch.where(real[:, None], torch.stack([column.to(wide) for column in columns], 1), 0)
        table = torch.zeros(len(ROLES) * len(PARTS), 4, dtype=wide, device=device)
        table.index_add_(0, role * len(PARTS) + part, values)
        return TokenMetrics(table.reshape(len(ROLES), len(PARTS), 4), self.entropy is not None)
