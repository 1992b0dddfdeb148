"""Rows of logits in, losses out, and in the same memory their gradient. No autograd here, any device.

    p = softmax(z), lse = logsumexp(z)
    objective = -(1 - a) log p[t] - a mean(log p) + zeta lse²       a: label smoothing (torch's a/V), zeta: z-loss
    gradient  = p (1 + 2 zeta lse) - a/V - (1 - a) [v = t]

On the CPU a few rows at a time go through the passes, so that all but the first find them in the cache. Two entries
need care in float32. The target's log p is -log1p(Σ others) when the target leads: 1 - p would round to 0 beyond 17
nats. The target's gradient is expm1(log p), not p - 1, for the same reason.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

CACHED = 1 << 17
"""Logits that go through the passes together on the CPU: 512 KiB in float32."""


class Head(NamedTuple):
    """What happens to the logits of a head before the softmax, and which terms the objective has."""

    softcap: float = 0.0
    """z = softcap · tanh(z / softcap); 0: none."""
    scale: float = 1.0
    """z = scale · (x Wᵀ + b), before the soft-cap."""
    label_smoothing: float = 0.0
    z_loss: float = 0.0


class RowLosses(NamedTuple):
    """Per row, float32 (float64 for float64 logits)."""

    objective: Tensor
    """[k] unweighted."""
    logps: Tensor
    """[k] log p[target]."""
    top1: Tensor
    """[k] bool: no logit is above the target's."""
    entropy: Tensor
    """[k] nats, or [0] when not asked for."""


class _Sums(NamedTuple):
    """What one look at the rows gives, each [k, 1]; the rows are then exp(z - largest), the target's entry 0."""

    largest: Tensor
    target: Tensor
    """z[target] - largest."""
    target_power: Tensor
    """exp of it."""
    others: Tensor
    """Σ of the other powers."""
    mean: Tensor
    """Mean of z - largest, or [0]."""
    negative_plogp: Tensor
    """Σ -e log e over powers e, or [0]."""


def softmax_losses_(
    z: Tensor,
    targets: Tensor,
    weights: Tensor | None,
    head: Head,
    *,
    gradient: bool,
    entropy: bool,
    defer: bool = False,
) -> tuple[RowLosses, Tensor | None]:
    """Losses of the rows of z [k, V] float32 or float64, targets [k] int64, weights [k] or None for 1; and a factor.

    With `gradient`, z holds d(Σ weights · objective)/d(x Wᵀ + b) afterwards, else it is spent. With `defer`, its rows
    may still have to be multiplied with the factor [k, 1]: cheaper where they are used, in a product of size H than in
    these of size V. Soft-cap needs one more buffer of the size of z, and so does entropy off the CPU.
    """
    vocabulary = z.shape[1]
    target = targets.unsqueeze(1)
    if head.scale != 1.0:
        z.mul_(head.scale)
    slope = None
    if head.softcap:
        z.div_(head.softcap).tanh_()
        if gradient:
            slope = torch.addcmul(z.new_ones(()), z, z, value=-1)
        z.mul_(head.softcap)
    largest, target_z, target_power, others, mean_z, negative_plogp = _sums_(
        z, target, mean=bool(head.label_smoothing), entropy=entropy
    )
    total = others + target_power
    leads = target_z >= 0
    log_total = torch.where(leads, others.log1p(), total.log())
    logps = target_z - log_total
    lse = largest + log_total

    a, zeta = head.label_smoothing, head.z_loss
    objective = -logps
    if a:
        objective = (1 - a) * objective + a * (log_total - mean_z)
    if zeta:
        objective = objective + zeta * lse.square()
    factor = None
    if gradient:
        each = z.new_full((), head.scale) if weights is None else (weights * head.scale).to(z.dtype).unsqueeze(1)
        at_target = torch.expm1(logps)
        factor = each / total
        if defer and not (a or zeta or head.softcap):
            z.scatter_(1, target, at_target * total)
        else:
            if zeta:
                factor = factor * (1 + 2 * zeta * lse)
                at_target = at_target + 2 * zeta * lse * logps.exp()
            if a:
                at_target = at_target + (a - a / vocabulary)
            z.mul_(factor)
            if a:
                z.sub_(each * (a / vocabulary))
            z.scatter_(1, target, each * at_target)
            if slope is not None:
                z.mul_(slope)
            factor = None
    losses = RowLosses(
        objective.squeeze(1),
        logps.squeeze(1),
        leads.squeeze(1),
        log_total.squeeze(1) + negative_plogp.squeeze(1) / total.squeeze(1) if entropy else z.new_empty(0),
    )
    return losses, factor


def _sums_(z: Tensor, target: Tensor, *, mean: bool, entropy: bool) -> _Sums:
    rows, vocabulary = z.shape
    together = max(1, CACHED // vocabulary) if z.device.type == "cpu" else rows
    if rows <= together:
        return _sums_of_block_(z, target, mean, entropy)
    blocks = zip(torch.split(z, together), torch.split(target, together), strict=True)
    found = [_sums_of_block_(block, its, mean, entropy) for block, its in blocks]
    return _Sums(*(torch.cat(columns) for columns in zip(*found, strict=True)))


def _sums_of_block_(z: Tensor, target: Tensor, mean: bool, entropy: bool) -> _Sums:
    nothing = z.new_empty(0)
    largest = z.amax(1, keepdim=True)
    z.sub_(largest)
    target_z = z.gather(1, target)
    mean_z = z.mean(1, keepdim=True) if mean else nothing
    negative_plogp = nothing
    if entropy:
        # entr(e) = -e log e with 0 for e = 0, so that a logit of -inf is no NaN.
        powers = z.exp()
        negative_plogp = torch.special.entr(powers, out=powers).sum(1, keepdim=True)
    z.exp_()
    target_power = z.gather(1, target)
    z.scatter_(1, target, 0.0)
    return _Sums(largest, target_z, target_power, z.sum(1, keepdim=True), mean_z, negative_plogp)
