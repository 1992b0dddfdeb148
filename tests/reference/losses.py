"""The losses, slowly and obviously: loops over tokens in float64, one line of mathematics each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def supervised(labels: list[list[int]], segment_ids: list[list[int]] | None = None) -> list[tuple[int, int, int]]:
    """(row of the batch, position that predicts, token) for every label that something predicts."""
    out = []
    for b, row in enumerate(labels):
        for t in range(1, len(row)):
            if row[t] == -100:
                continue
            if segment_ids is not None and segment_ids[b][t] != segment_ids[b][t - 1]:
                continue
            out.append((b, t - 1, row[t]))
    return out


def logits_of(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, softcap: float | None = None, scale: float = 1.0
) -> Tensor:
    z = hidden.double() @ weight.double().T
    if bias is not None:
        z = z + bias.double()
    z = z * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def token_losses(
    logits: Tensor, rows: Sequence[int], targets: Sequence[int], *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> list[Tensor]:
    """The objective of each row, from logits [N, V] float64."""
    out = []
    for row, target in zip(rows, targets, strict=True):
        lse = torch.logsumexp(logits[row], 0)
        logp = logits[row] - lse
        out.append(-(1 - label_smoothing) * logp[target] - label_smoothing * logp.mean() + z_loss * lse**2)
    return out


def loss_sum(losses: list[Tensor], weights: Sequence[float], like: Tensor) -> Tensor:
    total = 0.0 * like.double()[:0].sum()
    for loss, weight in zip(losses, weights, strict=True):
        total = total + weight * loss
    return total


def l(x: float) -> float:  # noqa: E743
    """-log sigmoid(x)."""
    return math.log1p(math.exp(-x)) if x > -30 else -x


def s(x: float) -> float:
    """sigmoid(x)."""
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def preference(name: str, w: float, r: float, rw: float, rr: float, nw: float, nr: float, **p: float) -> float:
    """One pair: summed log p of chosen w and rejected r, of the reference rw and rr, lengths nw and nr."""
    b = p.get("beta", 0.1)
    e = p.get("label_smoothing", 0.0)
    R_w, R_l = w - rw, r - rr
    x = b * (R_w - R_l)
    if name == "sigmoid":
        return (1 - e) * l(x) + e * l(-x)
    if name == "sigmoid_norm":
        return l(b * (R_w / nw - R_l / nr))
    if name == "robust":
        return ((1 - e) * l(x) - e * l(-x)) / (1 - 2 * e)
    if name == "ipo":
        return (R_w / nw - R_l / nr - 1 / (2 * b)) ** 2
    if name == "hinge":
        return max(0.0, 1 - x)
    if name == "slic":
        return max(0.0, p["delta"] - w + r) + p["nll_weight"] * -w
    if name == "simpo":
        return l(b * (w / nw - r / nr) - p["gamma"])
    if name == "alphapo":
        reward = [(1 - math.exp(m) ** -p["alpha"]) / p["alpha"] for m in (w / nw, r / nr)]
        return l(b * (reward[0] - reward[1]) - p["gamma"])
    if name == "orpo":
        odds = [m - math.log(1 - math.exp(m)) for m in (w / nw, r / nr)]
        return -w / nw + b * l(odds[0] - odds[1])
    if name == "cpo":
        return l(b * (w - r)) - p["nll_weight"] * p["nll_scale"] * w
    if name == "sigmoid_nll":
        return l(x) - p["nll_weight"] * p["nll_scale"] * w
    if name == "apo_zero":
        return 1 - s(b * R_w) + s(b * R_l)
    if name == "apo_down":
        return s(b * R_w) + 1 - s(x)
    if name == "kto":
        desirable = p["desirable_weight"] * (1 - s(b * (R_w - p["kl"])))
        return desirable + p["undesirable_weight"] * (1 - s(b * (p["kl"] - R_l)))
    if name == "bco":
        return l(b * R_w - p["delta"]) + l(-(b * R_l - p["delta"]))
    if name == "nca":
        return l(b * R_w) + 0.5 * l(-b * R_w) + 0.5 * l(-b * R_l)
    if name == "exo":
        return s(x) * (math.log(s(x)) - math.log(1 - e)) + s(-x) * (math.log(s(-x)) - math.log(e))
    if name == "sppo":
        return (R_w - 1 / (2 * b)) ** 2 + (R_l + 1 / (2 * b)) ** 2
    if name == "discopop":
        m = s(x / p["tau"])
        return (1 - m) * l(x) + m * math.exp(-x)
    if name == "bradley_terry":
        return l(w - r - p["margin"]) + p["centering"] * (w + r) ** 2
    raise KeyError(name)
