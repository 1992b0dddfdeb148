"""Log-probabilities of whole documents in packed rows, differentiable: what every preference loss is made of.

    S_d = Σ over the rows of document d of  weight · log softmax(hidden W ᵀ)[target]

Backward computes each chunk of logits once more (four products per row with loss instead of three), because a
preference loss knows each document's coefficient only when all sums are made. Memory beyond the gradients: one chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskpipe.errors import UsageError
from maskpipe.losses.linear_cross_entropy import check_head, check_head_inputs, default_chunk
from maskpipe.losses.plan import LossPlan
from maskpipe.losses.softmax import Head


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: Tensor,
        targets: Tensor,
        weights: Tensor | None,
        head: Head,
        chunk: int,
        distinct_rows: bool,
    ) -> Tensor:
        logps: Tensor = torch.ops.maskpipe.linear_cross_entropy(
            hidden, weight, bias, rows, targets, weights, chunk, *head, False, False, False, False, distinct_rows
        )[1]
        ctx.settings = (chunk, head, distinct_rows)
        ctx.save_for_backward(hidden, weight, bias, rows, targets)
        return logps

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise UsageError("document_logps has no second derivative; call backward() without create_graph.")
        hidden, weight, bias, rows, targets = ctx.saved_tensors
        chunk, head, distinct_rows = ctx.settings
        wanted = ctx.needs_input_grad[:3]
        # d(Σ g · log p) is the gradient of a cross entropy with weights -g: the same code, the same exactness.
        *_, dhidden, dweight, dbias = torch.ops.maskpipe.linear_cross_entropy(
            hidden, weight, bias, rows, targets, -upstream[0], chunk, *head, False, *wanted, distinct_rows
        )
        return (
            dhidden if wanted[0] else None,
            dweight.to(weight.dtype) if wanted[1] else None,
            dbias.to(bias.dtype) if wanted[2] else None,
            *(None,) * 6,
        )


@dataclass(frozen=True, eq=False)
class PairLogps:
    """The two sides of each pair: float32 vectors [pairs]. Lengths are Σ weights: tokens with loss, unless weighted."""

    chosen: Tensor
    """Σ log p of the chosen side."""
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor

    @property
    def empty(self) -> Tensor:
        """0-d int64: pairs of which a side has no token with loss. Their means are 0; prepare refuses such pairs."""
        return ((self.chosen_length == 0) | (self.rejected_length == 0)).sum()


@dataclass(frozen=True, eq=False)
class DocumentLogps:
    """Per document of the batch, in the order of the plan's segments: float32 vectors [num_segments]."""

    sum: Tensor
    """Σ weight · log p; 0 for a document without loss. Carries the gradient, as `mean` does."""
    length: Tensor
    """Σ weights: the number of tokens with loss, unless the plan has weights."""
    token_logps: Tensor
    """[n] log p per row of the plan, unweighted; carries a gradient too."""
    plan: LossPlan

    @property
    def mean(self) -> Tensor:
        """sum / length; 0 for a document without loss."""
        return self.sum / torch.where(self.length > 0, self.length, 1)

    @property
    def pairs(self) -> PairLogps:
        """Both sides of the plan's pairs. Raises UsageError without pairs."""
        if self.plan.pairs is None:
            raise UsageError("this plan has no pairs; give LossPlan.from_labels(pairs=[pairs, 2]).")
        chosen, rejected = self.plan.pairs.unbind(1)
        return PairLogps(self.sum[chosen], self.sum[rejected], self.length[chosen], self.length[rejected])


def document_logps(
    hidden: Tensor,
    weight: Tensor,
    plan: LossPlan,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk: int | None = None,
) -> DocumentLogps:
    """Log-probabilities per document, from hidden [B, L, H] or [B·L, H] and the lm_head weight [V, H], bias [V].

    softcap, scale, chunk as in `linear_cross_entropy`. Call it under torch.no_grad() for the reference model. Sums are
    made in float64 on the CPU and float32 elsewhere (CUDA adds in no fixed order; torch.use_deterministic_algorithms
    fixes it). Raises UsageError for a plan without documents, and for shapes that do not fit.
    """
    head = check_head(softcap, scale, 0.0, 0.0)
    flat = check_head_inputs(hidden, weight, bias, plan)
    if chunk is not None and chunk < 1:
        raise UsageError(f"chunk must be at least 1 row, but is {chunk}.")
    logps = _TokenLogps.apply(  # type: ignore[no-untyped-call]
        flat,
        weight,
        bias,
        plan.rows,
        plan.targets,
        plan.weights,
        head,
        chunk or default_chunk(flat, plan, head, False),
        plan.distinct_rows,
    )
    return collect_documents(logps, plan)


def collect_documents(token_logps: Tensor, plan: LossPlan) -> DocumentLogps:
    """The same from log-probabilities per row of the plan [n], however they were made."""
    if plan.segments is None:
        raise UsageError(
            "this plan knows no documents; make it from labels on the CPU, or from a batch of one document per row."
        )
    if token_logps.shape != plan.rows.shape:
        raise UsageError(f"token_logps are {list(token_logps.shape)}, but the plan has {plan.rows.shape[0]} rows.")
    weights = torch.ones_like(token_logps) if plan.weights is None else plan.weights.to(token_logps.dtype)
    weighted = token_logps if plan.weights is None else torch.where(weights != 0, token_logps * weights, 0)
    wide = torch.float64 if token_logps.device.type == "cpu" else token_logps.dtype
    zeros = torch.zeros(plan.num_segments, dtype=wide, device=token_logps.device)
    return DocumentLogps(
        zeros.index_add(0, plan.segments, weighted.to(wide)).to(token_logps.dtype),
        zeros.index_add(0, plan.segments, weights.detach().to(wide)).to(token_logps.dtype),
        token_logps,
        plan,
    )
