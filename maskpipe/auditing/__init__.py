"""The audit: what a dataset holds, and what is wrong with it, as findings with codes and places. It changes nothing.

maskpipe.audit("out/")                                   a dataset of maskpipe: every byte, every token
maskpipe.audit("theirs/", tokenizer="./qwen3")           what another tool prepared
maskpipe.audit_batches(dataloader, "./qwen3")            what a training loop really gets

checks.py     rows of a dataset of maskpipe ─▶ findings and coverage, in one pass
foreign/      what other tools prepared, and batches of any training loop
files.py      bytes, identity and ledger of its directory
coverage.py   what a dataset holds, from its manifest and from its rows
trace.py      a token to the characters it comes from, and back
proof.py      every token beside what its source says. stored.py finds documents by record; expectation.py makes them
              anew: plain renders (renders.py, exchange.py, shown.py), rule.py, offsets (ids.py), selection.py
report.py     Report: findings, coverage, requirements, exit code     terminal.py   as a person sees it
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskpipe.errors import UsageError

if TYPE_CHECKING:
    from maskpipe.auditing.report import Report
    from maskpipe.shards.reader import Dataset
    from maskpipe.tokenizer import Tokenizer


def audit(
    path: str | Path | Dataset,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    source: str | Path | Sequence[str | Path] | None = None,
    proof: int | None = None,
    coverage_only: bool = False,
    require: Sequence[str] = (),
) -> Report:
    """What is wrong with a dataset, and what it holds.

    path           a dataset that maskpipe made (a directory, a URI, or one that is open), or a directory or file that
                   another tool made, which needs `tokenizer`
    tokenizer      of data that has none inside: a directory with tokenizer.json, a tokenizer.json, or a hub name
    source, proof  the files that the dataset was prepared from, and how many of their records are rendered and encoded
                   again to compare every token: -1 for all
    coverage_only  read the manifest and no row; nothing is checked
    require        such as "loss_share>=0.2"; see requirements.METRICS

    UsageError when it could not run: nothing there, an unknown metric, something missing. What is wrong with the data
    is never raised: it is a Finding.
    """
    from maskpipe.auditing import checks
    from maskpipe.auditing.requirements import parse

    wanted = [parse(text) for text in require]
    dataset = checks.opened(path)
    if dataset is None:
        return _audit_foreign(
            path, tokenizer, proof=source is not None or proof is not None or coverage_only
        ).requiring(wanted)
    if source is None and proof is not None:
        raise UsageError("proof compares the dataset with what it was made from: give that as source (--source)")
    if source is not None and coverage_only:
        raise UsageError(
            "coverage_only reads no row, so nothing can be proved: leave out one of coverage_only and source"
        )
    report = checks.coverage_of(dataset) if coverage_only else checks.audit_dataset(dataset, _loaded(tokenizer))
    if source is not None:
        from maskpipe.auditing.proof import proved

        report = proved(report, dataset, source, -1 if proof is None else proof)
    return report.requiring(wanted)


def _loaded(tokenizer: str | Path | Tokenizer | None) -> Tokenizer | None:
    from maskpipe.tokenizer import Tokenizer

    return tokenizer if tokenizer is None or isinstance(tokenizer, Tokenizer) else Tokenizer.load(tokenizer)


def _audit_foreign(path: str | Path | Dataset, tokenizer: str | Path | Tokenizer | None, *, proof: bool) -> Report:
    from maskpipe.auditing.foreign import audit_foreign

    if not isinstance(path, str | Path):
        raise UsageError(f"a path is needed, got {type(path).__name__}")
    if not Path(path).exists():
        raise UsageError(f"{path}: no such file or directory")
    if tokenizer is None:
        raise UsageError(
            f"{path}: no dataset of maskpipe here (no manifest.json); for data that another tool prepared give its "
            "tokenizer with --tokenizer"
        )
    if proof:
        raise UsageError(f"{path}: no dataset of maskpipe, so it has no source to prove it by and no manifest to show")
    return audit_foreign(path, tokenizer)


def audit_batches(batches: Iterable[Any], tokenizer: str | Path | Tokenizer, *, limit: int | None = None) -> Report:
    """What is wrong with the batches of a training loop, whoever makes them; at most `limit` batches are taken.

    batches    dicts, or objects such as BatchEncoding, with input_ids [rows, length] (or [length], or a list of rows)
               and labels or a loss mask of the same shape; attention_mask, position_ids, cu_seqlens, seq_lengths where
               the loop has them. Tensors of any library that numpy can read; none is imported.
    tokenizer  a directory with tokenizer.json, a tokenizer.json, or a hub name. Its chat template says how turns look.

    UsageError when it could not run: no batch came, or what came has no input_ids.
    """
    from maskpipe.auditing import foreign

    return foreign.audit_batches(batches, tokenizer, limit=limit)
