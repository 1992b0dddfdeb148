"""What exact spans, control-token safety and cuts cost on top of the tokenizers library, in one run on one machine.

    TOKENIZERS_PARALLELISM=false python benchmarks/bench_tokenizer.py TOKENIZER CHATS.jsonl[.gz] [--records 2000]

CHATS holds {"messages": [{"role", "content"}, …]} per line. Every chat is written in ChatML with the tokenizer's first
and last special token as markers; contents are given as data, and every assistant turn begins at a cut. CPU seconds of
one process, the best of the repeats, taken in turn, each with a tokenizer just loaded (the library remembers words).
The bar: at most 1.25 × `encode_batch_fast` alone, which makes no array of ids yet; exit code 1 if not.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tokenizers

from maskpipe.tokenizer import Content, Tokenizer

BAR = 1.25


def chats(path: Path, records: int, before: str, after: str) -> list[tuple[str, Content, list[int]]]:
    """(text, content ranges, cuts) of each chat."""
    out = []
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in itertools.islice(lines, records):
            text, content, cuts = "", [], []
            for message in json.loads(line)["messages"]:
                text += f"{before}{message['role']}\n"
                if message["role"] == "assistant":
                    cuts.append(len(text))
                content.append((len(text), len(text) + len(message["content"]), None))
                text += f"{message['content']}{after}\n"
            out.append((text, content, cuts))
    return out


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("tokenizer", type=Path)
    arguments.add_argument("chats", type=Path)
    arguments.add_argument("--records", type=int, default=2000)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()

    special = sorted(Tokenizer.load(options.tokenizer).special)
    texts = chats(options.chats, options.records, special[0], special[-1])
    size = sum(len(text.encode()) for text, _, _ in texts)

    def library(tokenizer: Tokenizer) -> None:
        for text, _, _ in texts:
            tokenizer._library._encode([text], add_special_tokens=False)

    def library_ids(tokenizer: Tokenizer) -> None:
        for text, _, _ in texts:
            encoded = tokenizer._library._encode([text], add_special_tokens=False)[0]
            np.array(encoded.ids, dtype=np.int32)

    def spans(tokenizer: Tokenizer) -> None:
        for text, _, _ in texts:
            tokenizer.encode(text)

    def everything(tokenizer: Tokenizer) -> None:
        for text, content, cuts in texts:
            tokenizer.encode(text, content=content, cuts=cuts)

    runs: list[Callable[[Tokenizer], None]] = [library, library_ids, spans, everything]
    best = {run.__name__: float("inf") for run in runs}
    for _ in range(options.repeats):
        for run in runs:
            tokenizer = Tokenizer.load(options.tokenizer)
            tokenizer.encode("a first text")
            begin = time.process_time()
            run(tokenizer)
            best[run.__name__] = min(best[run.__name__], time.process_time() - begin)
    result = {
        "tokenizer": options.tokenizer.name,
        "chats": f"{options.chats.name} {hashlib.sha256(options.chats.read_bytes()).hexdigest()[:12]}",
        "texts": len(texts),
        "bytes": size,
        "cpu_seconds": {name: round(value, 4) for name, value in best.items()},
        "times_library": {name: round(value / best["library"], 3) for name, value in best.items()},
        "mb_per_second": {name: round(size / value / 1e6, 2) for name, value in best.items()},
        "versions": {"tokenizers": tokenizers.__version__, "python": platform.python_version()},
        "machine": platform.machine(),
    }
    if options.json:
        print(json.dumps(result))
    else:
        for key, value in result.items():
            print(f"{key:15} {value}")
    return int(best["everything"] > BAR * best["library"])


if __name__ == "__main__":
    sys.exit(main())
