"""Whatever ends a preparation, there is no dataset or the whole right one; the same command finishes it.

Short by default: every sort of call once. MASKPIPE_LONG=1, or `make faults`: every call, every kind of fault.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.campaign import CAMPAIGNS, CONTROL, WORKERS, Judge, run, stratified
from tests.faults.harness import Fault, compile_shim, compiler, job

LONG = os.environ.get("MASKPIPE_LONG") == "1"
pytestmark = pytest.mark.skipif(compiler() is None, reason="needs gcc or cc, to compile the shim; not found")


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        with job(scratch, compile_shim(scratch / "shim.so")) as faults:
            yield Judge(faults)


def points(judge: Judge, name: str) -> list[int]:
    if LONG:
        return list(range(1, judge.calls + 2))
    if name == "short":
        return [point for point, (call, _) in enumerate(judge.log, 1) if call in ("write", "pwrite")][::5]
    chosen = stratified(judge.log, 1)
    place = list(CAMPAIGNS).index(name)
    return chosen[place % 6 :: 6]  # each sort of call meets one kind of fault or two


def test_the_shim_sees_every_call_that_changes_the_directory(judge: Judge) -> None:
    calls = {call for call, _ in judge.log}
    assert {"mkdir", "open", "write", "fsync", "rename", "link", "unlink", "rmdir"} <= calls
    assert any(call == "rename" and path == "out" for call, path in judge.log)


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_a_fault_at_any_call_leaves_no_dataset_or_the_right_one(judge: Judge, name: str) -> None:
    chosen = points(judge, name)
    counts, wrong = run(judge, [name], chosen)
    print(f"{name}: {counts[name]} faults at {len(chosen)} of {judge.calls} calls, {len(wrong)} violations")
    assert wrong == []
    assert counts[name] >= (len(chosen) // 8 if name == "short" and LONG else len(chosen) - 1)


@pytest.mark.parametrize("name", WORKERS)
def test_a_lost_worker_is_replaced_and_nothing_else_changes(judge: Judge, name: str) -> None:
    """Killed before or after any of its calls, or stopped there: the same bytes, one attempt more."""
    calls = [point for point, (_, path) in enumerate(judge.log, 1) if "/stage/map" in path or "/commits/" in path]
    chosen = range(1, judge.calls + 1) if LONG else [calls[4 + 3 * list(WORKERS).index(name)]]
    counts, wrong = run(judge, [name], chosen, workers=2)
    print(f"{name}: {counts[name]} faults, {len(wrong)} violations")
    assert wrong == []
    assert counts[name] > 0


def test_a_build_that_does_not_sync_is_caught(judge: Judge) -> None:
    """The control: with fsync doing nothing, power losses must leave violations, or the campaign proves nothing."""
    chosen = range(1, judge.calls + 2) if LONG else [judge.calls // 2, judge.calls - 24, judge.calls + 1]
    counts, wrong = run(judge, list(CONTROL), chosen)
    print(f"without fsync: {len(wrong)} violations in {counts.total()} power losses")
    assert any(line.startswith("deaf_bytes") for line in wrong)
    assert any(line.startswith("deaf_all") for line in wrong)


def test_finished_tasks_are_not_done_again_after_a_kill_at_each_commit(judge: Judge) -> None:
    commits = [point for point, (call, path) in enumerate(judge.log, 1) if call == "link" and "/commits/" in path]
    assert len(commits) == sum(judge.tasks.values())
    for number, point in enumerate(commits if LONG else commits[::2]):
        judge.faults.clear()
        judge.faults.run(Fault("torn", point))  # the record is there, and nothing after it
        assert len(judge.faults.commits()) == (number if LONG else 2 * number) + 1
        assert list(judge._again(workers=0)) == []


def test_a_disk_that_is_really_full(judge: Judge) -> None:
    """A small tmpfs: an error that names the file, nothing published, and the same command goes on when there is
    space."""
    faults = judge.faults
    faults.clear()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(faults.area)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here ({mounted.stderr.strip()}); the shim's full disk is tested above")
    try:
        statuses = []
        for size in range(8, 400, 8 if LONG else 48):
            subprocess.run(["mount", "-o", f"remount,size={size}k", str(faults.area)], check=True)
            outcome = faults.run()
            statuses.append(outcome.status)
            assert outcome.status in ("made", "refused"), outcome.message
            if outcome.status == "made":
                break
            assert "No space left on device" in outcome.message
            assert str(faults.area) in outcome.message
            assert faults.digest() is None
        assert statuses[-1] == "made", "it goes on as space comes"
        assert len(statuses) > 2
        assert faults.digest() == judge.right
    finally:
        subprocess.run(["umount", str(faults.area)], check=True)
