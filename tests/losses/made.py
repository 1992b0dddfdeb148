"""Made heads and batches for the tests of the losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskpipe.losses import LossPlan


@dataclass
class Made:
    hidden: Tensor
    weight: Tensor
    bias: Tensor
    labels: Tensor
    segment_ids: Tensor
    token_weights: Tensor
    roles: Tensor
    parts: Tensor

    def plan(self, *, weighted: bool = False, **more: object) -> LossPlan:
        return LossPlan.from_labels(
            self.labels,
            segment_ids=self.segment_ids,
            weights=self.token_weights if weighted else None,
            roles=self.roles,
            parts=self.parts,
            **more,  # type: ignore[arg-type]
        )

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(x.detach().clone().requires_grad_() for x in (self.hidden, self.weight, self.bias))  # type: ignore[return-value]


def made(
    seed: int,
    *,
    batch: int = 3,
    length: int = 23,
    hidden: int = 8,
    vocabulary: int = 29,
    share: float = 0.4,
    dtype: torch.dtype = torch.float32,
) -> Made:
    """Two documents and some padding per row; labels only inside documents, never on a document's first token."""
    g = torch.Generator().manual_seed(seed)
    segment_ids = torch.zeros(batch, length, dtype=torch.int64)
    labels = torch.full((batch, length), -100)
    for b in range(batch):
        first = int(torch.randint(2, length // 2, (), generator=g))
        last = int(torch.randint(length // 2 + 2, length + 1, (), generator=g))
        segment_ids[b, :first], segment_ids[b, first:last] = 1, 2
        trained = torch.rand(length, generator=g) < share
        trained &= segment_ids[b] > 0
        trained[0] = trained[first] = False
        labels[b, trained] = torch.randint(0, vocabulary, (int(trained.sum()),), generator=g)
    return Made(
        torch.randn(batch, length, hidden, generator=g).to(dtype),
        (0.5 * torch.randn(vocabulary, hidden, generator=g)).to(dtype),
        torch.randn(vocabulary, generator=g).to(dtype),
        labels,
        segment_ids,
        torch.randint(0, 4, (batch, length), generator=g) / 2,
        torch.randint(1, 5, (batch, length), generator=g).to(torch.uint8),
        torch.randint(1, 7, (batch, length), generator=g).to(torch.uint8),
    )
