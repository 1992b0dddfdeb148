"""Cross entropy of an lm_head without its logits: only rows with loss, a chunk at a time, gradient made in forward.

    loss = F.cross_entropy(F.linear(hidden[plan.rows], weight, bias).float(), plan.targets)       the line it equals

    hidden [B, L, H] ──plan.rows──▶ chunk [c, H] ─W─▶ logits [c, V] ─▶ losses [c]
                                                          └─▶ their gradient, in place ─▶ dhidden, dW += …

Memory beyond the gradients themselves: one chunk of logits. Three products per row with loss and none for the others,
so 40 % of supervised tokens cost about 40 % of the time (benchmarks/bench_losses.py). What the plan already knows is
never searched for on the device: no host sync, no shape that depends on data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskpipe.errors import UsageError
from maskpipe.losses.operators import chunk_rows
from maskpipe.losses.out import LossOut
from maskpipe.losses.plan import LossPlan
from maskpipe.losses.softmax import Head


class BackendResult(NamedTuple):
    """sum 0-d with a gradient; logps, top1 [n] (or [0] if the backend has none), entropy [n] or None."""

    sum: Tensor
    logps: Tensor
    top1: Tensor
    entropy: Tensor | None


class Options(NamedTuple):
    """What else was asked of a backend; see `linear_cross_entropy`."""

    chunk: int | None
    entropy: bool
    allow_retain_graph: bool


Backend = Callable[[Tensor, Tensor, Tensor | None, LossPlan, Head, Options], BackendResult]
"""(hidden [N, H], weight [V, H], bias [V] or None, plan, head, options) -> BackendResult."""

_BACKENDS: dict[str, Backend] = {}


def register_backend(name: str, backend: Backend) -> None:
    """Makes `backend=name` known to `linear_cross_entropy`. What it cannot do it must refuse with a UsageError.

    Raises UsageError for a name that is taken.
    """
    if name in _BACKENDS:
        raise UsageError(f"a backend named {name!r} is registered already.")
    _BACKENDS[name] = backend


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    plan: LossPlan,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    entropy: bool = False,
    chunk: int | None = None,
    allow_retain_graph: bool = False,
    backend: str = "maskpipe",
) -> LossOut:
    """The loss of the rows of `plan`.

    hidden           [B, L, H] or [B·L, H], the input of the lm_head; float32, bfloat16, float16 or float64
    weight           [V, H] of the lm_head; bias [V]
    softcap          z = softcap · tanh(z / softcap), > 0;  scale: z = scale · (x Wᵀ + b), before it
    label_smoothing  in [0, 1): (1 - a) nll + a · mean over the vocabulary, as torch does it
    z_loss           adds z_loss · logsumexp², >= 0
    entropy          also gives the entropy per token (off the CPU one more chunk of memory)
    chunk            rows per chunk; default: their logits take at most 3/8 of a float32 dW (operators.py)
    allow_retain_graph  lets backward() run more than once, at the cost of a copy of every gradient
    backend          "maskpipe", "torch" (F.linear_cross_entropy on the gathered rows), or one that was registered

    The gradient is computed here, for hidden, weight and bias as far as they require one; backward() scales it in
    place, once: a second backward() through the same result raises. Summed in float32 whatever the inputs are. No rows:
    exactly 0 with zero gradients. NaN or inf in a row without loss touches nothing.
    Raises UsageError for shapes that do not fit, parameters out of range, targets outside the vocabulary.
    """
    head = check_head(softcap, scale, label_smoothing, z_loss)
    flat = check_head_inputs(hidden, weight, bias, plan)
    if chunk is not None and chunk < 1:
        raise UsageError(f"chunk must be at least 1 row, but is {chunk}.")
    run = _BACKENDS.get(backend)
    if run is None:
        raise UsageError(f"no backend named {backend!r}; there are {', '.join(sorted(_BACKENDS))}.")
    result = run(flat, weight, bias, plan, head, Options(chunk, entropy, allow_retain_graph))
    return LossOut(result.sum, plan, result.logps, result.top1, result.entropy)


def check_head(softcap: float | None, scale: float, label_smoothing: float, z_loss: float) -> Head:
    """The parameters as one Head; UsageError for values out of range."""
    if softcap is not None and not 0 < softcap < math.inf:
        raise UsageError(f"softcap must be above 0, or None for none, but is {softcap}.")
    if not (math.isfinite(scale) and scale):
        raise UsageError(f"scale must be finite and not 0, but is {scale}.")
    if not 0 <= label_smoothing < 1:
        raise UsageError(f"label_smoothing must be in [0, 1), but is {label_smoothing}.")
    if not 0 <= z_loss < math.inf:
        raise UsageError(f"z_loss must be at least 0, but is {z_loss}.")
    return Head(softcap or 0.0, scale, label_smoothing, z_loss)


def check_head_inputs(hidden: Tensor, weight: Tensor, bias: Tensor | None, plan: LossPlan) -> Tensor:
    """hidden as [B·L, H]; UsageError where shapes, devices or targets do not fit the plan."""
    flat = check_rows(hidden, plan, "hidden")
    if weight.dim() != 2 or weight.shape[1] != flat.shape[1]:
        raise UsageError(f"weight must be [V, {flat.shape[1]}] to fit hidden, but is {list(weight.shape)}.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UsageError(f"bias must be [{weight.shape[0]}] to fit weight, but is {list(bias.shape)}.")
    if plan.max_target is not None and plan.max_target >= weight.shape[0]:
        raise UsageError(f"the plan holds target {plan.max_target}, but the head has {weight.shape[0]} rows.")
    return flat


def check_rows(values: Tensor, plan: LossPlan, name: str) -> Tensor:
    """values [B, L, D] or [B·L, D] as [B·L, D]; UsageError unless it has the plan's positions and device."""
    leading = tuple(values.shape[:-1])
    if values.dim() not in (2, 3) or leading not in (plan.shape, (plan.positions,)):
        raise UsageError(
            f"{name} is {list(values.shape)}, but the plan is for a batch of {plan.shape[0]} x {plan.shape[1]}."
        )
    if not values.dtype.is_floating_point:
        raise UsageError(f"{name} must hold floats, but holds {values.dtype}.")
    if values.device != plan.rows.device:
        raise UsageError(f"{name} lies on {values.device}, the plan on {plan.rows.device}; move it: plan.to(device).")
    return values.reshape(plan.positions, values.shape[-1])


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        plan: tuple[Tensor, Tensor, Tensor | None],
        head: Head,
        chunk: int,
        entropy: bool,
        wanted: tuple[bool, bool, bool],
        distinct_rows: bool,
        keep: bool,
    ) -> tuple[Tensor, ...]:
        total, logps, top1, entropies, *gradients = torch.ops.maskpipe.linear_cross_entropy(
            hidden, weight, bias, *plan, chunk, *head, entropy, *wanted, distinct_rows
        )
        ctx.mark_non_differentiable(logps, top1, entropies)
        ctx.wanted = wanted
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.keep = keep or torch.compiler.is_compiling()
        if ctx.keep:
            ctx.save_for_backward(*gradients)
        else:
            # Not save_for_backward: it would still hold the gradients when they are returned, and autograd would copy
            # each of them, dW with them, instead of taking them over.
            ctx.gradients = gradients
        return total, logps, top1, entropies

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        scale = upstream[0]
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():
            raise UsageError("linear_cross_entropy has no second derivative; call backward() without create_graph.")
        out: list[Tensor | None] = []
        if ctx.keep:
            for asked, gradient, dtype in zip(ctx.wanted, ctx.saved_tensors, ctx.dtypes, strict=True):
                out.append((gradient * scale).to(dtype) if asked else None)
        else:
            gradients, ctx.gradients = ctx.gradients, None
            if gradients is None:
                raise UsageError(
                    "this loss came with its gradient, which an earlier backward() has used: compute it again, or "
                    "allow_retain_graph=True."
                )
            for asked, gradient, dtype in zip(ctx.wanted, gradients, ctx.dtypes, strict=True):
                out.append(gradient.mul_(scale).to(dtype) if asked else None)
        return (*out, *(None,) * 7)


def _maskpipe(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: LossPlan,
    head: Head,
    options: Options,
) -> BackendResult:
    tracked = torch.is_grad_enabled()
    wanted = (
        tracked and hidden.requires_grad,
        tracked and weight.requires_grad,
        tracked and bias is not None and bias.requires_grad,
    )
    chunk, entropy, keep = options
    rows = chunk or default_chunk(hidden, plan, head, entropy)
    total, logps, top1, entropies = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden,
        weight,
        bias,
        (plan.rows, plan.targets, plan.weights),
        head,
        rows,
        entropy,
        wanted,
        plan.distinct_rows,
        keep,
    )
    return BackendResult(total, logps, top1, entropies if entropy else None)


def default_chunk(hidden: Tensor, plan: LossPlan, head: Head, entropy: bool) -> int:
    buffers = 1 + bool(head.softcap) + (entropy and hidden.device.type != "cpu")
    return chunk_rows(plan.rows.shape[0], hidden.shape[1], hidden.device, buffers)


def _torch(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plan: LossPlan,
    head: Head,
    options: Options,
) -> BackendResult:
    refused = {
        "entropy": options.entropy,
        "per-token weights": plan.weights is not None,
        "softcap": bool(head.softcap),
        "scale": head.scale != 1.0,
        "label_smoothing": bool(head.label_smoothing),
        "z_loss": bool(head.z_loss),
    }
    for name, used in refused.items():
        if used:
            raise UsageError(f"backend 'torch' has no {name} in its chunked loss; use backend='maskpipe'.")
    nothing = hidden.new_empty(0)
    if not plan.rows.shape[0]:  # torch gives NaN here; an empty sum is 0 and stays connected.
        return BackendResult(hidden[:0].sum() + weight[:0].sum(), nothing, nothing.bool(), None)
    rows = options.chunk or default_chunk(hidden, plan, head, False)
    total = F.linear_cross_entropy(
        hidden.index_select(0, plan.rows),
        weight,
        plan.targets,
        linear_bias=bias,
        reduction="sum",
        options=torch.nn.LinearCrossEntropyOptions(
            batch_chunk_size=rows, chunking_method=None, allow_retain_graph=options.allow_retain_graph
        ),
    )
    return BackendResult(total, nothing, nothing.bool(), None)


register_backend("maskpipe", _maskpipe)
register_backend("torch", _torch)
