"""Whole `prepare` of a file of chats beside its peers, in one run on one machine: tokens per second of processor time.

    python benchmarks/bench_prepare.py CHATS.jsonl[.gz] TOKENIZER [--records N] [--template FILE] [--json]

    bare         tokenizers.encode_batch_fast of the same rendered texts, in batches of 1,000: no reading, no rendering,
                 no mask
    trl          TRL's way to a mask, chat by chat: apply_chat_template(..., return_assistant_tokens_mask=True) with its
                 training template for this family (FILE, by default its qwen3_training.jinja); no reading, no writing
    tokenizers   maskpipe.prepare with one worker, from the file to the published dataset, ids by tokenizers
    fastokens    the same, ids by fastokens

Each runs alone in a fresh process with one thread; processor time of it and all its children, from the call to its end.
For maskpipe that has the start of the worker in it, which loads the tokenizer again, and the proof of fastokens.
CHATS holds {"messages": [{"role", "content"}, …]} per line. TRL's way takes what it can; its tokens are those it made.

Bars, exit code 1 when one is missed: tokenizers ≥ 0.5 × bare, fastokens ≥ 2.5 × trl; two workers have a task for
≥ 85 % of the map step; a chat of 200 turns costs ≤ 2.3 × one of 100, rendering apart. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BARS = {"tokenizers_to_bare": 0.5, "fastokens_to_trl": 2.5, "overlap": 0.85, "turns": 2.3}
BATCH = 1000


def chats(path: Path, records: int | None) -> Iterator[list[dict[str, Any]]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in itertools.islice(lines, records):
            yield json.loads(line)["messages"]


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


def bare(options: argparse.Namespace) -> dict[str, Any]:
    import tokenizers

    from maskpipe.errors import TemplateError
    from maskpipe.job import encoder_of

    engine = encoder_of(options.tokenizer).template.engine
    texts = []
    for messages in chats(options.chats, options.records):
        try:
            texts.append(engine.plain(messages))
        except TemplateError:
            continue
    library = tokenizers.Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
    library.no_truncation()
    begun = processor_seconds()
    tokens = 0
    for start in range(0, len(texts), BATCH):
        tokens += sum(map(len, library.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)))
    return {"tokens": tokens, "seconds": processor_seconds() - begun, "texts": len(texts)}


def trl(options: argparse.Namespace) -> dict[str, Any]:
    import trl as library
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    default = Path(library.__file__).parent / "chat_templates" / "qwen3_training.jinja"
    template = (options.template or default).read_text(encoding="utf-8")
    given = list(chats(options.chats, options.records))
    tokens = refused = 0
    begun = processor_seconds()
    for messages in given:
        try:
            encoded = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        except Exception:  # what its template refuses
            refused += 1
            continue
        tokens += len(encoded["input_ids"])
    return {"tokens": tokens, "seconds": processor_seconds() - begun, "texts": len(given) - refused, "refused": refused}


def prepared(options: argparse.Namespace, backend: str, workers: int) -> dict[str, Any]:
    import maskpipe

    with tempfile.TemporaryDirectory() as directory:
        path = options.chats
        if options.records is not None:
            path = Path(directory) / "slice.jsonl"
            lines = (json.dumps({"messages": messages}) + "\n" for messages in chats(options.chats, options.records))
            path.write_text("".join(lines), encoding="utf-8")
        tokenizer = maskpipe.Tokenizer.load(options.tokenizer)
        recipe = maskpipe.Recipe(on_bad_record="reject", tokenizer_backend=backend)  # type: ignore[arg-type]
        begun, clock = processor_seconds(), time.monotonic()
        out = maskpipe.prepare(path, Path(directory) / "out", tokenizer=tokenizer, recipe=recipe, workers=workers)
        seconds, passed = processor_seconds() - begun, time.monotonic() - clock
        tasks = json.loads((out.path / "run.json").read_text(encoding="utf-8"))["tasks"]
    return {
        "tokens": out.counts["tokens"],
        "seconds": seconds,
        "clock": passed,
        "texts": out.manifest.records_kept,
        "refused": sum(out.manifest.rejected.values()),
        "fingerprint": out.manifest.fingerprint,
        "used": out.backend.used,
        "overlap": tasks["busy_seconds"]["map"] / tasks["span_seconds"]["map"] / workers,
    }


def turns(options: argparse.Namespace) -> dict[str, Any]:
    """Processor seconds of one chat of 100 and of 200 turns, from the Conversation to its documents: without
    rendering, all of it, and without rendering and what the tokenizers library takes for the ids of its one text.
    Rendering is what the template itself runs and prints: in the core, which compares what it prints with the text that
    it must begin, in Python, and the proof of one by the other; not what is done with renders."""
    from maskpipe.chat import Conversation
    from maskpipe.job import encoder_of

    encoder = encoder_of(options.tokenizer)
    engine = encoder.template.engine
    inside, depth, tokenizing = 0.0, 0, 0.0
    ids_of = encoder.ids

    def ids(texts: list[str]) -> Any:
        nonlocal tokenizing
        begun = time.process_time()
        out = ids_of(texts)
        tokenizing += time.process_time() - begun
        return out

    encoder.ids = ids  # type: ignore[method-assign]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal inside, depth
            begun, depth = time.process_time(), depth + 1
            try:
                return function(*arguments, **named)
            finally:
                depth -= 1
                inside += (time.process_time() - begun) * (depth == 0)

        return run

    for name in ("_compare", "_tracked", "plain_of"):
        setattr(engine, name, timed(getattr(engine, name)))
    if engine._program is None:
        raise SystemExit("the core does not render this template")
    engine._program.timed(True)
    words = "The answer to the question is not hard to find when one looks at it from the other side. " * 4

    def cost(count: int) -> tuple[float, float, float]:
        nonlocal inside, tokenizing
        chat = [
            {"role": role, "content": f"{number} {words}"} for number in range(count) for role in ("user", "assistant")
        ]
        engine._program.timed(True)
        inside, tokenizing, begun = 0.0, 0.0, time.process_time()
        encoder.encode(Conversation(chat))
        all_of_it = time.process_time() - begun
        without = all_of_it - inside - engine._program.timed(True)
        return without, all_of_it, without - tokenizing

    cost(10)
    rounds = [(cost(100), cost(200)) for _ in range(9)]
    few, many = (list(zip(*each, strict=True)) for each in zip(*rounds, strict=True))
    return {
        "hundred": min(few[0]),
        "two_hundred": min(many[0]),
        "hundred_with_rendering": min(few[1]),
        "two_hundred_with_rendering": min(many[1]),
        "hundred_without_ids": min(few[2]),
        "two_hundred_without_ids": min(many[2]),
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "bare": bare,
    "trl": trl,
    "tokenizers": lambda options: prepared(options, "tokenizers", 1),
    "fastokens": lambda options: prepared(options, "fastokens", 1),
    "two_workers": lambda options: prepared(options, "tokenizers", 2),
    "turns": turns,
}


def measured(part: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, str(options.chats), str(options.tokenizer), "--part", part]
    command += [] if options.records is None else ["--records", str(options.records)]
    command += [] if options.template is None else ["--template", str(options.template)]
    threads = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **threads}, stdout=subprocess.PIPE, text=True, start_new_session=True, check=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("chats", type=Path)
    arguments.add_argument("tokenizer", type=Path)
    arguments.add_argument("--records", type=int, help="only the first of the file")
    arguments.add_argument("--template", type=Path, help="TRL's training template")
    arguments.add_argument("--json", action="store_true")
    arguments.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options)))
        return 0

    found = {}
    for part in PARTS:
        print(f"{part} …", file=sys.stderr)
        found[part] = measured(part, options)
    speeds = {part: found[part]["tokens"] / found[part]["seconds"] for part in found if "tokens" in found[part]}
    ratios = {
        "tokenizers_to_bare": speeds["tokenizers"] / speeds["bare"],
        "fastokens_to_trl": speeds["fastokens"] / speeds["trl"],
        "overlap": found["two_workers"]["overlap"],
        "turns": found["turns"]["two_hundred"] / found["turns"]["hundred"],
    }
    missed = [name for name, bar in BARS.items() if (ratios[name] > bar if name == "turns" else ratios[name] < bar)]
    same = len({found[part]["fingerprint"] for part in ("tokenizers", "fastokens", "two_workers")}) == 1
    missed += [] if same else ["one fingerprint"]
    names = ("tokenizers", "fastokens", "trl", "transformers", "pyarrow", "jinja2")
    result = {
        "chats": f"{options.chats.name} {hashlib.sha256(options.chats.read_bytes()).hexdigest()[:12]}",
        "tokenizer": options.tokenizer.name,
        "tokens_per_cpu_second": {part: round(speed) for part, speed in speeds.items()},
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "bars": BARS,
        "missed": missed,
        "measured": found,
        "versions": {name: importlib.metadata.version(name) for name in names},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
    }
    if options.json:
        print(json.dumps(result))
        return bool(missed)
    print(f"{result['chats']}, tokenizer {result['tokenizer']}, {result['machine']}")
    print(f"{'':12} {'tokens':>11} {'CPU s':>8} {'tokens/CPU s':>13} {'texts':>7} {'refused':>8}")
    for part, speed in speeds.items():
        got = found[part]
        print(
            f"{part:12} {got['tokens']:11,} {got['seconds']:8.2f} {speed:13,.0f} {got['texts']:7,} "
            f"{got.get('refused', 0):8,}"
        )
    for name, ratio in ratios.items():
        print(f"{name:20} {ratio:6.2f}   bar {BARS[name]}{'   MISSED' if name in missed else ''}")
    print(f"one fingerprint      {'yes' if same else 'NO: MISSED'}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
