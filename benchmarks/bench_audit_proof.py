"""The proof against the source beside `prepare` of the same input, in one run on one machine: processor time.

    python benchmarks/bench_audit_proof.py CHATS.jsonl[.gz] TOKENIZER [--records N] [--runs N] [--json]

    prepare    maskpipe.prepare with one worker, from the file to the published dataset: ids by tokenizers, which
               the proof must use for its offsets, and by fastokens where it is installed
    proof      every record of it rendered, encoded and decided again, and compared token by token
    audit      `maskpipe audit OUT --source CHATS --proof all`, the command: every check and the report too

Each runs alone in a fresh process, in turns; processor time of it and all its children: of prepare and the proof from
the call to its end, loading the tokenizer included, of the command from its start. The least of --runs (default 1)
counts. The proof of 100 records says what it costs before the first chat. CHATS holds one record per line; all of them
are taken unless --records says how many. Bar, exit code 1 when it is missed: proof ≤ 3 × prepare with either backend,
and nothing differs. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

BAR = 3.0
FEW = 100


def processor_seconds() -> float:
    """Of every process of this session, and of the children that they have waited for."""
    total, session = 0, os.getsid(0)
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else None
        except OSError:
            continue
        if fields and int(fields[3]) == session:
            total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def prepare(chats: Path, out: Path, tokenizer: str, backend: str) -> dict[str, Any]:
    import maskpipe

    begun = processor_seconds()
    recipe = maskpipe.Recipe(sequence_length=4096, on_bad_record="reject", tokenizer_backend=backend)
    made = maskpipe.prepare(str(chats), str(out), tokenizer=tokenizer, recipe=recipe, workers=1)
    return {"seconds": processor_seconds() - begun, "tokens": made.manifest.totals.n_tokens}


def proof(chats: Path, out: Path) -> dict[str, Any]:
    import maskpipe
    from maskpipe.auditing.proof import prove

    begun = processor_seconds()
    found = prove(maskpipe.open(out), str(chats))
    return {"seconds": processor_seconds() - begun, **found.to_dict()}


def audit(chats: Path, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "maskpipe", "audit", str(out), "--source", str(chats), "--proof", "all"]
    ran = subprocess.run([*command, "--format", "json"], check=True, capture_output=True, text=True)
    spent = os.times()
    return {"seconds": spent.children_user + spent.children_system, **json.loads(ran.stdout)["proof"]}


def alone(step: str, chats: Path, out: Path, tokenizer: str, backend: str = "tokenizers") -> dict[str, Any]:
    command = [sys.executable, __file__, str(chats), tokenizer, "--step", step, "--out", str(out), "--backend", backend]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, start_new_session=True)
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


def measured(chats: Path, folder: Path, tokenizer: str, runs: int) -> dict[str, dict[str, Any]]:
    """Per step the run that took least."""
    backends = ["tokenizers", *(["fastokens"] if importlib.util.find_spec("fastokens") else [])]
    few = folder / "few.jsonl"
    with chats.open(encoding="utf-8") as lines:
        few.write_text("".join(itertools.islice(lines, FEW)), encoding="utf-8")
    alone("prepare", few, folder / "few", tokenizer)
    least: dict[str, dict[str, Any]] = {}
    for run in range(runs):
        steps = [(f"prepare with {b}", ("prepare", chats, folder / f"{b}{run}", tokenizer, b)) for b in backends]
        steps += [(name, (name, chats, folder / f"{backends[0]}{run}", tokenizer)) for name in ("proof", "audit")]
        steps += [("proof of few", ("proof", few, folder / "few", tokenizer))]
        for name, step in steps:
            result = alone(*step)
            if name not in least or result["seconds"] < least[name]["seconds"]:
                least[name] = result
    return least


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("chats", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--records", type=int)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", choices=("prepare", "proof", "audit"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--backend", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step == "prepare":
        print(json.dumps(prepare(given.chats, given.out, given.tokenizer, given.backend)))
        return 0
    if given.step is not None:
        print(json.dumps((proof if given.step == "proof" else audit)(given.chats, given.out)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        chats = Path(folder) / "chats.jsonl"
        opened = gzip.open if given.chats.suffix == ".gz" else open
        with opened(given.chats, "rt", encoding="utf-8") as lines, chats.open("w", encoding="utf-8") as kept:
            kept.writelines(itertools.islice(lines, given.records))
        steps = measured(chats, Path(folder), given.tokenizer, given.runs)
    proved, few = steps["proof"], steps["proof of few"]
    ratios = {name: proved["seconds"] / step["seconds"] for name, step in steps.items() if name.startswith("prepare")}
    good = max(ratios.values()) <= BAR and not proved["documents_that_differ"]
    each = (proved["seconds"] - few["seconds"]) / max(1, proved["records"] - few["records"])
    if given.json:
        print(json.dumps({"steps": steps, "ratios": ratios, "seconds_per_record": each, "bar": BAR, "good": good}))
        return 0 if good else 1
    print(f"{proved['records']:,} records, {proved['tokens_proved']:,} tokens; CPU seconds, the least of {given.runs}")
    for name, step in steps.items():
        tokens = step.get("tokens", step.get("tokens_proved", 0))
        ratio = "".join(f"   {step['seconds'] / steps[other]['seconds']:5.2f} x {other}" for other in ratios)
        print(f"{name:24} {step['seconds']:8.2f} s   {tokens / step['seconds']:10,.0f} tokens/s{ratio}")
    print(f"each record after the first {few['records']}: {1000 * each:.3f} ms")
    print(f"bar: proof at most {BAR:g} x prepare, with either backend: {'met' if good else 'MISSED'}")
    print(json.dumps(proved))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
