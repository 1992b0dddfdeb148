"""Histograms with fixed borders, so that they can be added up and compared between datasets."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class Histogram:
    """Counts of values between borders: bin k holds edges[k] <= value < edges[k + 1], the last one also its end."""

    def __init__(self, title: str, edges: npt.ArrayLike) -> None:
        self.title = title
        self.edges = np.asarray(edges, np.float64)
        self.counts = np.zeros(len(self.edges) - 1, np.int64)
        self.count = 0
        self.total = 0.0
        self.least, self.most = np.inf, -np.inf

    def add(self, values: npt.NDArray[Any]) -> None:
        """Values inside the edges; others are counted in the bin that is nearest."""
        if not len(values):
            return
        inside = np.clip(values, self.edges[0], self.edges[-1])
        self.counts += np.histogram(inside, self.edges)[0]
        self.count += len(values)
        self.total += float(values.sum())
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0

    def quantile(self, share: float) -> float:
        """About so: the end of the bin in which this share of the values is reached, inside [least, most]."""
        reached = int(np.searchsorted(np.cumsum(self.counts), share * self.count))
        return float(np.clip(self.edges[min(reached + 1, len(self.edges) - 1)], self.least, self.most))

    def between(self, low: float, high: float) -> int:
        """How many values lie in bins within [low, high]."""
        return int(self.counts[(self.edges[:-1] >= low - 1e-9) & (self.edges[1:] <= high + 1e-9)].sum())

    def to_dict(self) -> dict[str, Any]:
        """title, edges [bins + 1], counts [bins], count, mean, least, most."""
        used = np.flatnonzero(self.counts)
        last = int(used[-1]) + 1 if len(used) else 1
        edges = self.edges[: last + 1] if self.edges[-1] > 1 else self.edges
        return {
            "title": self.title,
            "edges": [round(edge, 6) for edge in edges.tolist()],
            "counts": self.counts[: len(edges) - 1].tolist(),
            "count": self.count,
            "mean": round(self.mean, 6),
            "least": round(float(self.least), 6),
            "most": round(float(self.most), 6),
        }


def shares_histogram(title: str) -> Histogram:
    """Of shares from 0 to 1, in steps of 0.05."""
    return Histogram(title, np.arange(21) / 20)


def lengths_histogram(title: str) -> Histogram:
    """Of whole numbers of any size: one bin for 0, then each twice as wide as the one before it."""
    return Histogram(title, [0, *(2.0**k for k in range(32))])


def counts_histogram(title: str, most: int) -> Histogram:
    """Of numbers from 0 to `most`, in 20 steps."""
    return Histogram(title, np.linspace(0, max(most, 1), 21))
