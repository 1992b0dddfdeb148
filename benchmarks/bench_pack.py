"""Packing speed and fill against lightbinpack, in one run on one machine.

    python benchmarks/bench_pack.py [--documents 2000000] [--capacity 4096] [--repeats 5] [--json]

Log-normal chat lengths (mean about 597 tokens, clipped to the capacity). maskpipe takes and gives numpy buffers, its
checks included. lightbinpack.obfd, the fastest exact best-fit-decreasing packer known to us, takes a list of Python
integers and gives lists; that list is made before its clock starts. Each figure is the best of the repeats, taken in
turn; every packer's result is checked: each document once, no bin overfull. The bar: at most 0.15 × the time of obfd,
fill no worse; exit code 1 if not. Without lightbinpack (pip install lightbinpack) only maskpipe is measured.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from maskpipe import pack

BAR = 0.15


def chat_lengths(documents: int, capacity: int) -> npt.NDArray[np.int32]:
    """[documents] int32 log-normal lengths in [1, capacity], mean about 597 at a capacity of 4096."""
    drawn = np.random.default_rng(2026).lognormal(5.916, 1.0, documents)
    return np.clip(drawn, 1, capacity).astype(np.int32)


def flat(result: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(order, offsets) of a Packing or of a list of bins."""
    if isinstance(result, pack.Packing):
        return result.order, result.offsets
    sizes = np.array([len(members) for members in result], np.int64)
    order = np.fromiter((document for members in result for document in members), np.int64, int(sizes.sum()))
    return order, np.concatenate([[0], np.cumsum(sizes)])


def fill_of(result: Any, lengths: npt.NDArray[np.int32], capacity: int) -> float:
    """Share of all bins that holds tokens; AssertionError when a document is missing, doubled or a bin overfull."""
    order, offsets = flat(result)
    assert np.array_equal(np.bincount(order, minlength=len(lengths)), np.ones(len(lengths), np.int64))
    loads = np.add.reduceat(lengths[order].astype(np.int64), offsets[:-1])
    assert int(loads.max()) <= capacity
    return float(lengths.sum(dtype=np.int64)) / (len(loads) * capacity)


def measure(documents: int, capacity: int, repeats: int) -> dict[str, Any]:
    lengths = chat_lengths(documents, capacity)
    calls: dict[str, Callable[[], Any]] = {
        "maskpipe best_fit": lambda: pack.best_fit(lengths, capacity),
        "maskpipe first_fit": lambda: pack.first_fit(lengths, capacity),
    }
    versions = {name: importlib.metadata.version(name) for name in ("numpy",)}
    try:
        peer = importlib.import_module("lightbinpack")
        versions["lightbinpack"] = importlib.metadata.version("lightbinpack")
    except ImportError:
        peer = None
    if peer is not None:
        boxed = lengths.tolist()
        calls["lightbinpack obfd"] = lambda: peer.obfd(boxed, capacity)

    seconds: dict[str, list[float]] = {name: [] for name in calls}
    fill: dict[str, float] = {}
    for repeat in range(repeats):
        for name, call in calls.items():
            begin = time.perf_counter()
            result = call()
            seconds[name].append(time.perf_counter() - begin)
            if repeat == 0:
                fill[name] = fill_of(result, lengths, capacity)
            del result
    tokens = int(lengths.sum(dtype=np.int64))
    lower_bound = -(-tokens // capacity)
    report: dict[str, Any] = {
        "documents": documents,
        "capacity": capacity,
        "mean_length": tokens / documents,
        "fill_at_most": tokens / (lower_bound * capacity),
        "packers": {
            name: {"seconds": min(seconds[name]), "all_seconds": seconds[name], "fill": fill[name]} for name in calls
        },
        "machine": f"{platform.machine()}, {platform.system()}, {processor()}",
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"python": platform.python_version(), **versions},
    }
    if peer is not None:
        report["time_ratio"] = min(seconds["maskpipe best_fit"]) / min(seconds["lightbinpack obfd"])
        report["fill_difference"] = fill["maskpipe best_fit"] - fill["lightbinpack obfd"]
        report["bar"] = BAR
        report["met"] = report["time_ratio"] <= BAR and report["fill_difference"] >= 0
    return report


def processor() -> str:
    """The processor's name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--documents", type=int, default=2_000_000)
    parser.add_argument("--capacity", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    options = parser.parse_args()
    report = measure(options.documents, options.capacity, options.repeats)
    if options.json:
        print(json.dumps(report, indent=2))
        return 0 if report.get("met", True) else 1
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    print(
        f"{report['documents']:,} documents, mean {report['mean_length']:.0f} tokens, capacity {report['capacity']:,}"
    )
    print(f"{report['machine']} · {report['date']} · {versions}\n")
    print(f"{'packer':<20} {'seconds':>9} {'ns/document':>12} {'fill':>9}")
    for name, figures in report["packers"].items():
        rate = figures["seconds"] / report["documents"] * 1e9
        print(f"{name:<20} {figures['seconds']:>9.4f} {rate:>12.1f} {figures['fill']:>9.5f}")
    print(f"{'(fill at most':<43} {report['fill_at_most']:>9.5f})")
    if "met" not in report:
        print("\nlightbinpack is not installed: nothing to compare with", file=sys.stderr)
        return 0
    print(f"\nbest_fit takes {report['time_ratio']:.3f} × the time of obfd (bar {BAR})")
    print(f"its fill differs by {report['fill_difference']:+.6f} (bar 0): {'met' if report['met'] else 'NOT met'}")
    return 0 if report["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
