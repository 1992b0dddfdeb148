"""The proof against the source beside `prepare` of the same input, in one run on one machine: processor time.

    python benchmarks/bench_audit_proof.py CHATS.jsonl[.gz] TOKENIZER [--records N] [--json]

    prepare    maskpipe.prepare with one worker, from the file to the published dataset: ids by tokenizers, which
               the proof must use for its offsets, and by fastokens where it is installed
    proof      every record of it rendered, encoded and decided again, and compared token by token

Each runs alone in a fresh process; processor time of it and all its children, from the call to its end, loading the
tokenizer included. CHATS holds one record per line. Bar, exit code 1 when it is missed: proof ≤ 3 × prepare, and
nothing differs. Linux only (/proc).
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


def alone(step: str, chats: Path, out: Path, tokenizer: str, backend: str = "tokenizers") -> dict[str, Any]:
    command = [sys.executable, __file__, str(chats), tokenizer, "--step", step, "--out", str(out), "--backend", backend]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, start_new_session=True)
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("chats", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--records", type=int)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", choices=("prepare", "proof"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--backend", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step == "prepare":
        print(json.dumps(prepare(given.chats, given.out, given.tokenizer, given.backend)))
        return 0
    if given.step == "proof":
        print(json.dumps(proof(given.chats, given.out)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        chats, out = Path(folder) / "chats.jsonl", Path(folder) / "out"
        opened = gzip.open if given.chats.suffix == ".gz" else open
        with opened(given.chats, "rt", encoding="utf-8") as lines:
            chats.write_text("".join(itertools.islice(lines, given.records)), encoding="utf-8")
        made = alone("prepare", chats, out, given.tokenizer)
        fast = None
        if importlib.util.find_spec("fastokens"):
            fast = alone("prepare", chats, Path(folder) / "fast", given.tokenizer, "fastokens")
        proved = alone("proof", chats, out, given.tokenizer)
    ratio = proved["seconds"] / made["seconds"]
    good = ratio <= BAR and not proved["documents_that_differ"]
    if given.json:
        values = {"prepare": made, "fastokens": fast, "proof": proved, "ratio": ratio, "bar": BAR, "good": good}
        print(json.dumps(values))
    else:
        print(f"prepare   {made['seconds']:8.2f} CPU s   {made['tokens'] / made['seconds']:10,.0f} tokens/s")
        print(
            f"proof     {proved['seconds']:8.2f} CPU s   {proved['tokens_proved'] / proved['seconds']:10,.0f} tokens/s"
        )
        print(f"ratio     {ratio:8.2f}         bar {BAR}: {'met' if good else 'MISSED'}")
        if fast is not None:
            print(f"to prepare with fastokens, {fast['seconds']:.2f} CPU s: {proved['seconds'] / fast['seconds']:.2f}")
        print(json.dumps(proved))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
