"""Cross entropy on logits that exist already, for models that give no hidden states.

    loss = F.cross_entropy(logits[plan.rows].float(), plan.targets)       the line it equals

Only rows with loss are looked at, a chunk at a time; the gradient is made in backward from the logits themselves, so
nothing of the size of the logits is kept in between. Prefer `linear_cross_entropy`: it never makes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskpipe.errors import UsageError
from maskpipe.losses.linear_cross_entropy import check_head, check_rows
from maskpipe.losses.out import LossOut
from maskpipe.losses.plan import LossPlan
from maskpipe.losses.softmax import Head

CHUNK = 128


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        rows: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        head: Head,
        chunk: int,
        entropy: bool,
        distinct_rows: bool,
    ) -> tuple[Tensor, ...]:
        total, logps, top1, entropies = torch.ops.maskpipe.cross_entropy(
            logits, rows, targets, weights, chunk, *head, entropy
        )
        ctx.mark_non_differentiable(logps, top1, entropies)
        ctx.settings = (chunk, head, distinct_rows)
        ctx.save_for_backward(logits, rows, targets, weights)
        return total, logps, top1, entropies

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise UsageError("cross_entropy has no second derivative; call backward() without create_graph.")
        logits, rows, targets, weights = ctx.saved_tensors
        chunk, head, distinct_rows = ctx.settings
        each = upstream[0].expand(rows.shape).clone() if weights is None else weights * upstream[0]
        gradient = torch.ops.maskpipe.cross_entropy_gradient(logits, rows, targets, each, chunk, *head, distinct_rows)
        return gradient, None, None, None, None, None, None, None


def cross_entropy(
    logits: Tensor,
    plan: LossPlan,
    *,
    softcap: float | None = None,
    scale: float = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    entropy: bool = False,
    chunk: int | None = None,
) -> LossOut:
    """The loss of the rows of `plan`, from logits [B, L, V] or [B·L, V].

    Parameters as in `linear_cross_entropy`; softcap and scale are applied here, so leave them out if the model has done
    it. The logits are not changed. Their gradient is exactly 0 in rows without loss. Raises UsageError likewise.
    """
    head = check_head(softcap, scale, label_smoothing, z_loss)
    flat = check_rows(logits, plan, "logits")
    if plan.max_target is not None and plan.max_target >= flat.shape[1]:
        raise UsageError(f"the plan holds target {plan.max_target}, but the logits have {flat.shape[1]} columns.")
    if chunk is not None and chunk < 1:
        raise UsageError(f"chunk must be at least 1 row, but is {chunk}.")
    total, logps, top1, entropies = _CrossEntropy.apply(  # type: ignore[no-untyped-call]
        flat, plan.rows, plan.targets, plan.weights, head, chunk or CHUNK, entropy, plan.distinct_rows
    )
    return LossOut(total, plan, logps, top1, entropies if entropy else None)
