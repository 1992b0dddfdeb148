"""Every fault at every call: what must hold, and a count of how often it did. Run as a program: the long campaign.

python -m tests.faults.campaign [kind …]        all calls × all kinds, a line per violation, a table at the end
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from maskpipe.errors import DatasetError
from tests.faults.harness import Fault, Faults, Outcome, compile_shim, job

POWER = ("all", "bytes", "some")
CAMPAIGNS = {
    "kill": lambda point: Fault("kill", point),
    "torn": lambda point: Fault("torn", point),
    "short": lambda point: Fault("short", point),
    "no_space": lambda point: Fault("no_space", point),
    "io_error": lambda point: Fault("io_error", point),
    **{f"power_{drop}": lambda point, drop=drop: Fault("kill", point, power=drop) for drop in POWER},
}
WORKERS = {
    "worker_kill": lambda point: Fault("kill", point, group=False),
    "worker_torn": lambda point: Fault("torn", point, group=False),
    "worker_stop": lambda point: Fault("stop", point, group=False),
}
"""With two workers: whoever makes the call dies, or stops. A worker is replaced, and the run goes on."""
CONTROL = {f"deaf_{drop}": lambda point, drop=drop: Fault("kill", point, power=drop, deaf=True) for drop in POWER}
"""Power losses of a build that does not sync: these must be caught."""


class Judge:
    """Knows what the undisturbed run makes, and what is wrong after a disturbed one."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        first = faults.run(Fault("count", 0))
        assert first.status == "made", first.message
        self.right = faults.digest()
        assert self.right is not None
        self.calls = first.calls
        self.log = first.log
        run = json.loads((faults.out / "run.json").read_text())
        self.tasks = Counter({kind: run["tasks"]["attempts"][kind] for kind in ("map", "write")})
        assert min(self.tasks.values()) >= 2, "a job of several tasks of each kind"

    def try_fault(self, fault: Fault, workers: int = 0) -> tuple[Outcome, list[str]]:
        """The disturbed run and all that is wrong after it and after the same command again."""
        self.faults.clear()
        outcome = self.faults.run(fault, workers=workers)
        return outcome, [f"{fault}: {problem}" for problem in self.problems(fault, outcome, workers)]

    def problems(self, fault: Fault, outcome: Outcome, workers: int) -> Iterator[str]:
        yield from self._after(outcome)
        if fault.kind == "short" and outcome.status != "made":
            yield f"a short write ended the run: {outcome.message}"
        if outcome.status == "refused" and str(self.faults.area) not in outcome.message:
            yield f"the error names no file: {outcome.message}"
        if outcome.fired and not fault.power:
            ends = fault.kind in ("kill", "torn") and (fault.group or not outcome.in_worker)
            if ends and outcome.status == "made":
                yield "the run went on after it was killed"
            if outcome.in_worker and not fault.group:
                yield from self._survived(outcome)
        try:
            yield from self._again(workers)
        except (AssertionError, DatasetError) as error:
            yield f"rerun: {error}"

    def _survived(self, outcome: Outcome) -> Iterator[str]:
        """A lost worker costs one more attempt at one task, no more."""
        if outcome.status != "made":
            yield f"the loss of a worker ended the run: {outcome.status} {outcome.message}"
            return
        run = json.loads((self.faults.out / "run.json").read_text())["tasks"]
        attempts = sum(run["attempts"].get(kind, 0) for kind in self.tasks)
        if attempts > self.tasks.total() + 1:
            yield f"{attempts} attempts at {self.tasks.total()} tasks"

    def _after(self, outcome: Outcome) -> Iterator[str]:
        if outcome.status in ("hung", "failed"):
            yield f"{outcome.status}: {outcome.message}"
        if outcome.orphans:
            yield f"{outcome.orphans} processes were left"
        try:
            digest = self.faults.digest()
        except Exception as error:
            yield f"a dataset that is not whole: {error}"
            return
        if digest not in (None, self.right):
            yield "another dataset"
        if outcome.status == "made" and digest is None:
            yield "the run reported success, and there is no dataset"

    def _again(self, workers: int) -> Iterator[str]:
        """The same command: makes the same dataset, and does not do again what was committed."""
        there = self.faults.digest() is not None
        committed = Counter(path.name.partition("-")[0] for path in self.faults.commits())
        again = self.faults.run(workers=workers)
        if there:
            # Killed while it tidied up, it finishes that; killed after it, there is nothing to do.
            if again.status != "made" and "already there" not in again.message:
                yield f"over a whole dataset: {again.status} {again.message}"
        elif again.status != "made":
            yield f"the rerun did not get through: {again.status} {again.message}"
        if self.faults.digest() != self.right:
            yield "the rerun made another dataset"
        if not there and again.status == "made":
            run = json.loads((self.faults.out / "run.json").read_text())["tasks"]
            for kind, count in self.tasks.items():
                attempts = run["attempts"].get(kind, 0)
                if attempts + committed[kind] > count:
                    yield f"{attempts} {kind} tasks were done again, though {committed[kind]} of {count} were committed"
        left = sorted(set(os.listdir(self.faults.area)) - {"out"})
        if left and again.status == "made":
            yield f"left behind: {left}"


def stratified(log: list[tuple[str, str]], each: int) -> list[int]:
    """Points (1-based) that hold every sort of call on every sort of file, `each` times at most, and the ends."""
    seen: dict[tuple[str, str], list[int]] = defaultdict(list)
    for point, (call, path) in enumerate(log, 1):
        folder, _, name = path.rpartition("/")
        sort = ".tmp" if name.startswith(".tmp") else name.partition("-")[0]
        seen[call, f"{folder}/{sort}"].append(point)
    chosen = {1, len(log), len(log) + 1}
    for points in seen.values():
        chosen.update(points[:each])
    return sorted(chosen)


def run(judge: Judge, names: Iterable[str], points: Iterable[int], workers: int = 0) -> tuple[Counter[str], list[str]]:
    """(faults that were met by name of campaign, violations)."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for name in names:
        fault_of = {**CAMPAIGNS, **WORKERS, **CONTROL}[name]
        for point in points:
            outcome, problems = judge.try_fault(fault_of(point), workers)
            counts[name] += outcome.fired
            wrong += [f"{name}: {problem}" for problem in problems]
    return counts, wrong


def main() -> int:
    names = sys.argv[1:] or [*CAMPAIGNS, *WORKERS, *CONTROL]
    bad = 0
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        with job(scratch, compile_shim(scratch / "shim.so")) as faults:
            judge = Judge(faults)
            print(f"{judge.calls} calls, {dict(judge.tasks)} tasks, digest {str(judge.right)[:16]}", flush=True)
            for name in names:
                begun = time.monotonic()
                counts, wrong = run(judge, [name], range(1, judge.calls + 2), 2 if name in WORKERS else 0)
                caught = len({line.partition(" at call ")[2].partition(":")[0] for line in wrong})
                print(
                    f"{name:12} {counts[name]:4} faults  {caught:4} violations  {time.monotonic() - begun:6.1f} s",
                    flush=True,
                )
                if name not in CONTROL:
                    bad += caught
                    print(*wrong, sep="\n", flush=True)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
