"""LossPlan: which rows of a batch get loss, with which target, weight, document, role; and what the sum is divided by.

    labels (unshifted)   -100  -100   'H'   'i'  -100        rows     [1, 2]      the position that predicts
    position                0     1     2     3     4   ->   targets  ['H', 'i']  the token it predicts

A labels tensor makes every loss search for its rows on the device (a host sync and a shape that depends on data, each
step). The collator knows them on the host, so it ships them. A plan can also say what labels cannot: a row used twice
(the last prompt row of a shared prompt predicts the first token of both branches), weights, and the denominator of the
whole optimizer step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from maskpipe.errors import UsageError
from maskpipe.shards.format import Branch

IGNORE = -100


@dataclass(frozen=True, eq=False)
class LossPlan:
    """The rows of one micro-batch that get loss. All tensors on one device; nothing here requires a gradient.

    `LossPlan.from_labels` and `from_batch` check what they are given; the constructor checks only shapes and dtypes, so
    that whoever builds plans elsewhere (the loader's C++) pays nothing twice.
    """

    rows: Tensor
    """[n] int64 in [0, B·L): index into hidden.reshape(B·L, H) of the row that predicts. A row may occur twice."""
    targets: Tensor
    """[n] int64 in [0, V): the token that the row predicts."""
    shape: tuple[int, int]
    """(B, L) of the batch that `rows` counts in."""
    weights: Tensor | None = None
    """[n] float32 >= 0, or None when all are 1. A row with weight 0 is padding: its hidden state is never looked at."""
    segments: Tensor | None = None
    """[n] int64 in [0, num_segments): document of the target, numbered through the batch; None when not known."""
    num_segments: int = 0
    """Documents in the batch, those without loss included."""
    roles: Tensor | None = None
    """[n] uint8 Role of the target."""
    parts: Tensor | None = None
    """[n] uint8 Part of the target."""
    pairs: Tensor | None = None
    """[pairs, 2] int64: the segments of the chosen and of the rejected side."""
    scores: Tensor | None = None
    """[num_segments] float32: what the data says of each document, NaN for nothing; None when of none."""
    desirable: Tensor | None = None
    """[num_segments] int8: 1 thumb up, 0 thumb down, -1 none; None when no document has one."""
    weight_sum: float | Tensor = -1.0
    """Σ weights of this plan; a 0-d float64 tensor where the host must not wait for it. Filled in when left out."""
    denominator: float | Tensor | None = None
    """What the loss sum is divided by: Σ weights over all micro-batches and ranks of one optimizer step.
    None: this plan's own `weight_sum`, right only when a step is one micro-batch on one rank."""
    replicas: int = 1
    """Ranks over which gradients are averaged afterwards (DDP, FSDP): the loss is multiplied by it. 1 if summed."""
    distinct_rows: bool = False
    """True when no row occurs twice: gradients are then copied, not added."""
    max_target: int | None = None
    """Largest target, when the host knows it: lets the loss refuse a vocabulary that is too small."""
    unpredictable: int | Tensor = 0
    """Labelled tokens without loss because nothing predicts them: the first of a row or of a document."""

    def __post_init__(self) -> None:
        n = self.rows.shape[0] if self.rows.dim() == 1 else -1
        if n < 0 or self.rows.dtype != torch.int64:
            raise UsageError(f"rows must be [n] int64, but are {_describe(self.rows)}.")
        for name, dtypes in _PER_ROW.items():
            value = getattr(self, name)
            if value is None:
                continue
            if tuple(value.shape) != (n,) or value.dtype not in dtypes:
                wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
                raise UsageError(f"{name} must be [{n}] {wanted}, one per row, but are {_describe(value)}.")
        if self.pairs is not None and (self.pairs.dim() != 2 or self.pairs.shape[1] != 2):
            raise UsageError(f"pairs must be [pairs, 2] (chosen, rejected), but are {_describe(self.pairs)}.")
        for name in ("scores", "desirable"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != (self.num_segments,):
                raise UsageError(f"{name} must be [{self.num_segments}], one per document, but are {_describe(value)}.")
        if self.weights is not None and self.weights.requires_grad:
            raise UsageError("weights must not require a gradient: the losses treat them as constants; detach() them.")
        if self.replicas < 1:
            raise UsageError(f"replicas must be at least 1, but is {self.replicas}.")
        if isinstance(self.weight_sum, float) and self.weight_sum < 0:
            total = float(n) if self.weights is None else _sum64(self.weights)
            object.__setattr__(self, "weight_sum", total)

    @property
    def count(self) -> int | Tensor:
        """Tokens with loss; a 0-d tensor when weights lie on a device or in a padded plan."""
        return self.rows.shape[0] if self.weights is None else torch.count_nonzero(self.weights)

    @property
    def margins(self) -> Tensor:
        """[pairs] float32: by how much the data prefers the chosen side, for losses with a `margin`.

        NaN where it does not say. Raises UsageError without pairs or scores.
        """
        if self.pairs is None or self.scores is None:
            raise UsageError("this plan has no margins: its documents are in no pairs, or the data has no scores.")
        chosen, rejected = self.pairs.unbind(1)
        return self.scores[chosen] - self.scores[rejected]

    @property
    def positions(self) -> int:
        """B·L."""
        return self.shape[0] * self.shape[1]

    @classmethod
    def from_labels(
        cls,
        labels: Tensor,
        *,
        segment_ids: Tensor | None = None,
        weights: Tensor | None = None,
        roles: Tensor | None = None,
        parts: Tensor | None = None,
        pairs: Tensor | None = None,
        predictors: Tensor | None = None,
        shifted: bool = False,
        capacity: int | None = None,
        denominator: float | Tensor | None = None,
        replicas: int = 1,
    ) -> LossPlan:
        """The plan that a labels tensor means.

        labels       [B, L] integers, -100 where there is no loss. Unshifted as in transformers: labels[b, t] is the
                     token at t itself, predicted by position t - 1. With `shifted=True` labels[b, t] is what position t
                     predicts, and every other argument is aligned the same way.
        segment_ids  [B, L] integers, 0 = padding, documents 1.. within each row; the first token of a document is never
                     a target. None: every row of the batch is one document.
        weights      [B, L] floats >= 0; 0 means no loss.  roles, parts: [B, L] uint8.
        pairs        [pairs, 2] documents, numbered through the batch: those of row 0 first, from 0.
        predictors   [B, L] integers: the position (in the same row) that predicts the token at t, -1 for none. Default
                     t - 1 inside a document. Says what a prompt shared by two branches needs.
        capacity     rows of the plan, padded with rows of weight 0: a shape that does not depend on data. Without it
                     the rows are found on the host, so labels must be on the CPU; with it nothing waits for the
                     device. More tokens with loss than that are an error (unseen on a device: give B·L when in doubt).
        denominator  Σ weights of the whole optimizer step (see `global_denominator`); replicas: see the field.

        Raises UsageError for shapes that do not fit, labels below 0 other than -100, labels on padding, negative or
        non-finite weights, pairs of unknown documents.
        """
        if labels.dim() != 2 or labels.dtype.is_floating_point:
            raise UsageError(f"labels must be [B, L] integers, but are {_describe(labels)}.")
        given = {
            "segment_ids": segment_ids,
            "weights": weights,
            "roles": roles,
            "parts": parts,
            "predictors": predictors,
        }
        for name, value in given.items():
            if value is not None and value.shape != labels.shape:
                raise UsageError(
                    f"{name} must have the shape of labels {list(labels.shape)}, but are {_describe(value)}."
                )
        if shifted and predictors is not None:
            raise UsageError("shifted labels stand at their predictors already; give shifted or predictors, not both.")
        on_host = labels.device.type == "cpu" and capacity is None
        if labels.device.type != "cpu" and capacity is None:
            raise UsageError(
                f"labels lie on {labels.device}: finding their rows would wait for the device. Make the plan from CPU "
                "labels and move it with .to(device), or give capacity=labels.numel() (all rows, no saving)."
            )
        batch, length = labels.shape
        place = torch.arange(length, device=labels.device).expand(batch, length)
        before = place if shifted else predictors.long() if predictors is not None else place - 1
        labelled = labels != IGNORE
        wanted = labelled & (before >= 0)
        inside = before.clamp(0, max(length - 1, 0))
        if segment_ids is not None:
            real = segment_ids > 0
            if on_host and bool((labelled & ~real).any()):
                raise UsageError(f"labels train padding (segment_ids 0) at {_first(labelled & ~real)}.")
            same = segment_ids.gather(1, inside) == segment_ids if predictors is None else torch.ones_like(real)
            wanted &= real & same
        if weights is not None:
            if on_host and not bool((torch.isfinite(weights) & (weights >= 0)).all()):
                wrong = ~(torch.isfinite(weights) & (weights >= 0))
                raise UsageError(f"weights must be finite and >= 0; {_first(wrong)} is {float(weights[wrong][0])}.")
            lost = labelled & (weights != 0) & ~wanted
            wanted &= weights != 0
        else:
            lost = labelled & ~wanted
        if on_host and bool((wanted & (labels < 0)).any()):
            wrong = wanted & (labels < 0)
            raise UsageError(f"labels hold {int(labels[wrong][0])} at {_first(wrong)}; only -100 means no loss.")
        segments, num_segments = _number_segments(segment_ids, batch, length, labels.device, on_host)
        if on_host and pairs is not None and not bool(torch.isin(pairs, torch.arange(num_segments)).all()):
            raise UsageError(f"pairs name documents outside 0..{num_segments - 1}.")

        flat_rows = (inside + length * torch.arange(batch, device=labels.device)[:, None]).reshape(-1)
        if on_host:
            chosen = wanted.reshape(-1).nonzero().squeeze(1)
            valid = None
        else:
            assert capacity is not None
            if capacity < 1 or capacity > labels.numel():
                raise UsageError(f"capacity must be in 1..{labels.numel()}, but is {capacity}.")
            if labels.device.type == "cpu" and not _is_fake(labels) and int(wanted.sum()) > capacity:
                raise UsageError(f"capacity is {capacity}, but {int(wanted.sum())} tokens have loss.")
            # A stable sort of one bit: the wanted positions first, in order, and no shape that depends on them.
            chosen = torch.argsort(wanted.reshape(-1).logical_not().to(torch.uint8), stable=True)[:capacity]
            valid = wanted.reshape(-1)[chosen]

        def pick(values: Tensor | None, dtype: torch.dtype) -> Tensor | None:
            return None if values is None else values.reshape(-1)[chosen].to(dtype)

        targets = labels.reshape(-1)[chosen].long()
        picked = pick(weights, torch.float32)
        if valid is not None:
            targets = torch.where(valid, targets, 0)
            picked = valid.to(torch.float32) if picked is None else torch.where(valid, picked, 0.0)
        elif picked is not None and bool((picked == 1).all()):
            picked = None
        return cls(
            rows=flat_rows[chosen],
            targets=targets,
            shape=(batch, length),
            weights=picked,
            segments=None if segments is None else segments.reshape(-1)[chosen],
            num_segments=num_segments,
            roles=pick(roles, torch.uint8),
            parts=pick(parts, torch.uint8),
            pairs=None if pairs is None else pairs.long(),
            denominator=denominator,
            replicas=replicas,
            # By default t is predicted by t - 1 alone; in a padded plan clamping joins positions 0 and 1.
            distinct_rows=predictors is None and on_host,
            max_target=(int(targets.max()) if targets.numel() else 0) if on_host else None,
            unpredictable=int(lost.sum()) if on_host else lost.sum(),
        )

    @classmethod
    def from_batch(cls, batch: Any, **overrides: Any) -> LossPlan:
        """The plan of a `maskpipe.data.Batch`, or of any object or mapping with the same names.

        Takes `plan` if it is there; else labels, segment_ids, loss_weights (or weights), role_ids, part_ids, pairs,
        predictors and loss_denominator with replicas, as far as they are there and not None. A Batch of the loader has
        the last two: the loss is then right for gradients that are summed over micro-batches and averaged over ranks
        (DDP, FSDP), without communication. `overrides` go to `from_labels`. Where segments say their branch
        (`branches`, with `pairs` [S], `segment_numbers` and `cu_seqlens`), both branches of a pair in one row are
        joined; `scores` and `desirable` [S] become those of the documents. Raises UsageError without labels, and for a
        pair with one branch or several.
        """

        def find(*names: str) -> Any:
            for name in names:
                value = batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
                if value is not None:
                    return value
            return None

        plan = find("plan")
        if isinstance(plan, LossPlan) and not overrides:
            return plan
        labels = find("labels")
        if labels is None:
            raise UsageError(f"a {type(batch).__name__} without labels (or plan) has no loss plan.")
        pairs, branches = find("pairs"), find("branches")
        if branches is not None and pairs is not None and pairs.dim() == 1:
            pairs = _join_branches(branches, pairs, find("segment_numbers"), find("cu_seqlens"), labels.shape[1])
        found = {
            "segment_ids": find("segment_ids"),
            "weights": find("loss_weights", "weights"),
            "roles": find("role_ids"),
            "parts": find("part_ids"),
            "pairs": pairs,
            "predictors": find("predictors"),
            "denominator": find("loss_denominator", "denominator"),
        }
        if found["denominator"] is not None and "denominator" not in overrides:
            found["replicas"] = find("replicas") or 1
        plan = cls.from_labels(labels, **{**found, **overrides})
        numbers = find("segment_numbers")
        if numbers is None or not plan.num_segments:
            return plan
        documents = numbers > 0
        scores, thumbs = find("scores"), find("desirable")
        scores = None if scores is None or bool(scores.isnan().all()) else scores[documents]
        thumbs = None if thumbs is None or bool((thumbs < 0).all()) else thumbs[documents]
        return replace(plan, scores=scores, desirable=thumbs)

    def to_labels(self, *, shifted: bool = False) -> Tensor:
        """[B, L] int64 labels as transformers wants them (unshifted), or aligned to the predicting rows.

        Weights are not kept. Raises UsageError where labels cannot say it: a row that predicts two tokens, or unshifted
        the last row of a sequence.
        """
        batch, length = self.shape
        rows, targets = self.rows, self.targets
        if self.weights is not None:
            kept = self.weights != 0
            rows, targets = rows[kept], targets[kept]
        if bool((torch.bincount(rows, minlength=1) > 1).any()):
            raise UsageError("a row of this plan predicts two tokens (a shared prompt); labels cannot say that.")
        if not shifted:
            if bool((rows % length == length - 1).any()):
                raise UsageError("the last position of a row predicts a token; only shifted labels can say that.")
            rows = rows + 1
        labels = torch.full((batch * length,), IGNORE, dtype=torch.int64, device=rows.device)
        labels[rows] = targets
        return labels.reshape(batch, length)

    def normalised_by(self, denominator: float | Tensor, *, replicas: int = 1) -> LossPlan:
        """The same plan with the denominator of the whole optimizer step; see `global_denominator`."""
        return replace(self, denominator=denominator, replicas=replicas)

    def padded(self, multiple: int) -> LossPlan:
        """The same plan with rows of weight 0 up to the next multiple: few distinct shapes for compiled code."""
        if multiple < 1:
            raise UsageError(f"multiple must be at least 1, but is {multiple}.")
        extra = -self.rows.shape[0] % multiple
        if not extra:
            return self

        def grown(values: Tensor | None) -> Tensor | None:
            return None if values is None else torch.cat([values, values.new_zeros(extra)])

        weights = self.weights if self.weights is not None else torch.ones(self.rows.shape, device=self.rows.device)
        rows, targets = grown(self.rows), grown(self.targets)
        assert rows is not None and targets is not None
        return replace(
            self,
            rows=rows,
            targets=targets,
            weights=grown(weights),
            segments=grown(self.segments),
            roles=grown(self.roles),
            parts=grown(self.parts),
            distinct_rows=False,
        )

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> LossPlan:
        """The same plan on another device. Host numbers stay on the host."""
        moved: dict[str, Any] = {
            item.name: value.to(device, non_blocking=non_blocking)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor)
        }
        return replace(self, **moved)


_PER_ROW = {
    "targets": (torch.int64,),
    "weights": (torch.float32, torch.float64),
    "segments": (torch.int64,),
    "roles": (torch.uint8,),
    "parts": (torch.uint8,),
}


def _number_segments(
    segment_ids: Tensor | None, batch: int, length: int, device: torch.device, on_host: bool
) -> tuple[Tensor | None, int]:
    """([B, L] documents numbered through the batch, how many). Without ids every row is one document."""
    if segment_ids is None:
        return torch.arange(batch, device=device)[:, None].expand(batch, length), batch
    if not on_host:
        return None, 0
    per_row = segment_ids.amax(1).long() if length else torch.zeros(batch, dtype=torch.int64)
    first = per_row.cumsum(0) - per_row
    return (first[:, None] + segment_ids.long() - 1).clamp(min=0), int(per_row.sum())


def _join_branches(
    branches: Tensor, pairs: Tensor, segment_numbers: Tensor, cu_seqlens: Tensor, length: int
) -> Tensor | None:
    """[pairs, 2] documents (chosen, rejected) from facts per segment [S], padding among them; None without any.

    A pair lies in one row, and two datasets may use the same number: row and number together name it.
    """
    sides: dict[tuple[int, int], dict[int, int]] = {}
    document = -1
    facts = zip(branches.tolist(), pairs.tolist(), segment_numbers.tolist(), cu_seqlens.tolist(), strict=False)
    for branch, pair, number, start in facts:
        document += number > 0
        if number > 0 and branch in (Branch.CHOSEN, Branch.REJECTED):
            mine = sides.setdefault((start // length, pair), {})
            if branch in mine:
                raise UsageError(
                    f"pair {pair} has two {Branch(branch).name.lower()} branches in row {start // length}."
                )
            mine[branch] = document
    for (row, pair), mine in sides.items():
        if len(mine) < 2:
            raise UsageError(f"pair {pair} in row {row} has only one branch; both must be in one row.")
    if not sides:
        return None
    return torch.tensor([[mine[Branch.CHOSEN], mine[Branch.REJECTED]] for mine in sides.values()])


def _sum64(weights: Tensor) -> float | Tensor:
    if weights.device.type == "cpu" and not _is_fake(weights):
        return float(weights.double().sum())
    return weights.to(torch.float32 if weights.device.type == "mps" else torch.float64).sum()


def _is_fake(tensor: Tensor) -> bool:
    return isinstance(tensor, torch._subclasses.FakeTensor)


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _first(where: Tensor) -> str:
    row, position = where.nonzero()[0].tolist()
    return f"[{row}, {position}]"
