"""Requirements: "loss_share>=0.2", asked of a report. A metric that does not exist is an error, never a pass."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskpipe.auditing.report import Met
from maskpipe.errors import UsageError

if TYPE_CHECKING:
    from maskpipe.auditing.report import Report

METRICS = {
    "sequences": "packed rows",
    "documents": "documents that begin in them",
    "tokens": "tokens of documents, without padding",
    "loss_tokens": "tokens with loss",
    "sampled_tokens": "tokens that the model would write itself",
    "loss_share": "loss_tokens / tokens, from 0 to 1",
    "fill": "tokens / all positions, from 0 to 1",
    "signals_per_sequence": "loss_tokens / sequences",
    "documents_per_sequence": "documents and pieces of documents / sequences",
    "straddles": "tokens that straddle the border of sampled text",
    "records": "records that were read",
    "kept_share": "records in the dataset / records read, from 0 to 1",
    "rejected": "records in rejects.jsonl",
    "dropped": "documents and turns in dropped.jsonl",
    "errors": "findings of level error",
    "warnings": "findings of level warning",
}
"""Name → what it counts. Beside these: `loss_share.ROLE`, `tokens.ROLE` and `loss_tokens.ROLE` of a role (assistant,
user, …), and `count.CODE`, the count of the findings of a code."""

_PER_ROLE = ("loss_share", "tokens", "loss_tokens")
_SYNTAX = re.compile(r"\s*([A-Za-z0-9_.]+)\s*(>=|<=|==|!=|>|<|=)\s*(\S+)\s*")
_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "==": operator.eq, "=": operator.eq,
    "!=": operator.ne,
}  # fmt: skip


@dataclass(frozen=True)
class Requirement:
    """A comparison of a metric with a number."""

    text: str
    metric: str
    comparison: str
    limit: float

    def compare(self, report: Report) -> Met:
        """Whether it holds. What the data does not say (a share of nothing) never holds."""
        value = measure(report, self.metric)
        return Met(self.text, value, value is not None and _COMPARISONS[self.comparison](value, self.limit))


def parse(text: str) -> Requirement:
    """UsageError for what is no comparison, and for an unknown metric, naming the nearest."""
    match = _SYNTAX.fullmatch(text)
    if match is None:
        raise UsageError(f"--require {text!r}: expected METRIC>=NUMBER, such as loss_share>=0.2")
    metric, comparison, number = match.groups()
    try:
        limit = float(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        raise UsageError(f"--require {text!r}: {number!r} is no number") from None
    if limit != limit:
        raise UsageError(f"--require {text!r}: {number!r} is no number")
    _check_metric(text, metric)
    return Requirement(text.strip(), metric, comparison, limit)


def measure(report: Report, metric: str) -> float | None:
    """A metric of a report; None where the data does not say."""
    if metric in ("errors", "warnings"):
        return float(len(getattr(report, metric)))
    base, dot, of = metric.partition(".")
    if base == "count" and dot:
        return float(sum(finding.count for finding in report.findings if finding.code == of.upper()))
    if dot:
        cell = report.coverage.values.get("roles", {}).get(of)
        if cell is None:
            return 0.0 if base != "loss_share" and "roles" in report.coverage.values else None
        values = {"tokens": cell["tokens"], "loss_tokens": cell["loss"]}
        return _share(cell["loss"], cell["tokens"]) if base == "loss_share" else float(values[base])
    value = report.coverage.metric(base)
    return None if value is None else float(value)


def _check_metric(text: str, metric: str) -> None:
    from maskpipe.roles import Role
    from maskpipe.rules import RULES

    roles = [role.name.lower() for role in Role]
    base, dot, of = metric.partition(".")
    if metric in METRICS or (dot and base in _PER_ROLE and of in roles) or (base == "count" and of.upper() in RULES):
        return
    known = [
        *METRICS,
        *(f"{name}.{role}" for name in _PER_ROLE for role in roles),
        *(f"count.{code}" for code in RULES),
    ]
    close = difflib.get_close_matches(metric, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; metrics are {', '.join(METRICS)}"
    raise UsageError(f"--require {text!r}: no metric {metric!r}{hint}")


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
