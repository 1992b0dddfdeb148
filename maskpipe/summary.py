"""The last lines a person reads after a preparation: what was made, what gets loss, what was lost on the way.

Every count that is not zero is said somewhere: those that no line speaks of stand under "counted".
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from maskpipe.findings import Finding
from maskpipe.roles import Role
from maskpipe.shards.format import BATCH_TOKENS
from maskpipe.shards.manifest import Counts, Manifest

if TYPE_CHECKING:
    from pathlib import Path

    from maskpipe.pipeline import Prepared
    from maskpipe.ranks import Share
    from maskpipe.shards.verify import Verified
    from maskpipe.trial import Trial

_TURNS = "turns_"
_SPOKEN = ("tokens",)
"""Counts that other lines say."""


def of_dataset(prepared: Prepared) -> str:
    """The summary of a finished dataset."""
    manifest, counts = prepared.manifest, prepared.counts
    totals, other = manifest.totals, prepared.validation
    files = len(manifest.shards)
    path = prepared.path if other is None else prepared.path / "train"
    lines = [
        f"prepared  {manifest.records_kept:,} record{_s(manifest.records_kept)} -> {totals.documents:,} "
        f"document{_s(totals.documents)} -> {totals.sequences:,} sequence{_s(totals.sequences)} of "
        f"{manifest.sequence_length:,} in {files} shard{_s(files)} ({path}), {prepared.seconds:.1f} s",
        *_validation_lines(prepared.path, other),
        *_loss_lines(totals, manifest),
        _packing_line(totals, manifest, counts),
        *_text_cut_lines(counts),
        *_fact_lines(counts),
        *_finding_lines(prepared.findings),
        *([f"ids       by tokenizers: {prepared.backend.reason}"] if prepared.backend.refused else []),
        *_reject_lines(manifest.records, manifest.rejected, prepared.rejects, f"list in {path}/rejects.jsonl"),
        *_left_out_lines(manifest.left_out),
        *_dropped_lines(manifest, path),
        *_proof_lines(counts),
        _checked_line(manifest, counts),
        *_counted_lines(counts),
        f"next      maskpipe audit {shlex.quote(str(path))} --report report.html",
    ]
    return "\n".join(lines)


def of_trial(trial: Trial) -> str:
    """The summary of a dry run."""
    size = _projected_bytes(trial)
    share = _percent(trial.loss_tokens, trial.tokens)
    fill = _percent(trial.tokens, trial.sequences * trial.sequence_length)
    whole = "all records" if trial.ended else "the first records; more follow"
    lines = [
        f"dry run   {trial.records:,} record{_s(trial.records)} ({whole}): {trial.kept:,} kept -> {trial.documents:,} "
        f"document{_s(trial.documents)} -> {trial.sequences:,} sequence{_s(trial.sequences)} of "
        f"{trial.sequence_length:,}, {trial.seconds:.1f} s; nothing was written",
        f"loss      {trial.loss_tokens:,} of {trial.tokens:,} tokens ({share})",
        f"packing   fill {fill}" + _cut_and_dropped(trial.counts),
        *_text_cut_lines(trial.counts),
        f"size      about {_bytes(size)} in shards, {_bytes(size / max(1, trial.records))} per record",
        *_fact_lines(trial.counts),
        *_finding_lines(trial.findings),
        *_reject_lines(trial.records, trial.rejected, trial.rejects, "prepare lists them in rejects.jsonl"),
        *_proof_lines(trial.counts),
        *_counted_lines(trial.counts),
        *([f"not tried {', '.join(trial.not_tried)}: decided over all records"] if trial.not_tried else []),
        "next      the same command without --dry-run",
    ]
    return "\n".join(lines)


def of_share(share: Share) -> str:
    """What one rank did, and what comes next."""
    before = f", {share.found:,} of them before" if share.found else ""
    lines = [
        f"mapped    {share.records:,} record{_s(share.records)} in {share.chunks:,} chunk{_s(share.chunks)}{before}: "
        f"the share of rank {share.rank} of {share.world_size} ({share.path}), {share.seconds:.1f} s",
        f"kept      {share.kept:,} record{_s(share.kept)}, {share.tokens:,} tokens",
        *_reject_lines(share.records, share.rejected, share.rejects, "OUT/rejects.jsonl will list them"),
        "next      when all ranks are done: the same command without --rank and --world",
    ]
    return "\n".join(lines)


def of_verified(path: str, verified: Verified) -> str:
    """What `verify` prints when all is well."""
    return (
        f"verified  {path}: {verified.files} files, {_bytes(verified.bytes)}, {verified.sequences:,} sequences, "
        f"{verified.tokens:,} tokens\n"
        "checked   every byte, every rule of the format, all counts, every record accounted for"
    )


# -- the same as plain values, for --format json


def dataset_dict(prepared: Prepared) -> dict[str, Any]:
    manifest = prepared.manifest
    totals = manifest.totals
    return {
        "path": str(prepared.path),
        "fingerprint": manifest.fingerprint,
        "sequence_length": manifest.sequence_length,
        "shards": len(manifest.shards),
        "records": {
            "read": manifest.records,
            "kept": manifest.records_kept,
            "rejected": dict(manifest.rejected),
            "left_out": dict(manifest.left_out),
        },
        "dropped": dict(manifest.dropped),
        "sequences": totals.sequences,
        "documents": totals.documents,
        "tokens": totals.n_tokens,
        "loss_tokens": totals.n_loss,
        "loss_share": _ratio(totals.n_loss, totals.n_tokens),
        "signals_per_sequence": totals.signals_per_sequence,
        "fill": totals.fill,
        "counts": _nonzero(prepared.counts),
        "findings": _findings(prepared.findings),
        "rejects": prepared.rejects,
        "seconds": round(prepared.seconds, 3),
        **({} if prepared.validation is None else {"validation": _validation_dict(prepared.validation)}),
    }


def _validation_dict(manifest: Manifest) -> dict[str, Any]:
    totals = manifest.totals
    return {
        "fingerprint": manifest.fingerprint,
        "records_kept": manifest.records_kept,
        "sequences": totals.sequences,
        "documents": totals.documents,
        "tokens": totals.n_tokens,
        "loss_tokens": totals.n_loss,
    }


def trial_dict(trial: Trial) -> dict[str, Any]:
    return {
        "dry_run": True,
        "complete": trial.ended,
        "sequence_length": trial.sequence_length,
        "records": {"read": trial.records, "kept": trial.kept, "rejected": dict(sorted(trial.rejected.items()))},
        "sequences": trial.sequences,
        "documents": trial.documents,
        "tokens": trial.tokens,
        "loss_tokens": trial.loss_tokens,
        "loss_share": _ratio(trial.loss_tokens, trial.tokens),
        "fill": _ratio(trial.tokens, trial.sequences * trial.sequence_length),
        "projected_bytes": round(_projected_bytes(trial)),
        "counts": _nonzero(trial.counts),
        "findings": _findings(trial.findings),
        "rejects": trial.rejects,
        "not_tried": trial.not_tried,
        "seconds": round(trial.seconds, 3),
    }


def share_dict(share: Share) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "partial": str(share.path),
        "rank": share.rank,
        "world_size": share.world_size,
        "chunks": share.chunks,
        "found": share.found,
        "records": share.records,
        "records_kept": share.kept,
        "tokens": share.tokens,
        "rejected": dict(share.rejected.most_common()),
        "seconds": round(share.seconds, 1),
    }


def verified_dict(verified: Verified) -> dict[str, Any]:
    return {
        "ok": True,
        "files": verified.files,
        "bytes": verified.bytes,
        "sequences": verified.sequences,
        "tokens": verified.tokens,
    }


def _nonzero(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: n for name, n in sorted(counts.items()) if n}


def _findings(findings: Iterable[Finding]) -> list[dict[str, str]]:
    return [{"code": finding.code, "text": finding.text} for finding in findings]


# -- lines


def by_role(counts: Mapping[str, int]) -> dict[str, int]:
    """Sums of a "role.part" map per role, in the order of roles.Role, padding left out."""
    sums: Counter[str] = Counter()
    for key, n in counts.items():
        sums[key.partition(".")[0]] += n
    names = [role.name.lower() for role in Role if role is not Role.PADDING]
    return {name: sums[name] for name in names if sums[name]}


def _loss_lines(totals: Counts, manifest: Manifest) -> list[str]:
    roles, loss = by_role(totals.tokens), by_role(totals.loss)
    shares = [f"{name} {_percent(loss.get(name, 0), n)}" for name, n in roles.items()]
    return [
        f"loss      {totals.n_loss:,} of {totals.n_tokens:,} tokens ({_percent(totals.n_loss, totals.n_tokens)})",
        f"          of each role's own tokens: {'   '.join(shares)}",
        f"signals   {totals.signals_per_sequence:,.1f} per sequence of {manifest.sequence_length:,} "
        f"(pretraining would have {manifest.sequence_length - 1:,})",
    ]


def _packing_line(totals: Counts, manifest: Manifest, counts: Mapping[str, int]) -> str:
    per = totals.fragments / totals.sequences if totals.sequences else 0.0
    pieces = totals.fragments - totals.documents
    cut = f"   {pieces:,} pieces of cut documents" if pieces else ""
    fill = _percent(totals.n_tokens, totals.n_tokens + totals.padding)
    return f"packing   fill {fill}   {per:.1f} documents per sequence{cut}" + _cut_and_dropped(counts)


def _text_cut_lines(counts: Mapping[str, int]) -> list[str]:
    """Of texts (a count without turns) that lost their ends: how to keep all of them."""
    if not counts.get("tokens_truncated") or any(name.startswith(_TURNS) for name in counts):
        return []
    return ["          only the start of long texts is there; --packing concat_split or --on-too-long split keeps all"]


def _cut_and_dropped(counts: Mapping[str, int]) -> str:
    documents = counts.get("documents_truncated", 0) + counts.get("documents_split", 0)
    cut = f"   cut {documents:,}"
    if counts.get("tokens_truncated"):
        cut += f" ({counts['tokens_truncated']:,} tokens)"
    left_out = ("tokens_dropped_duplicate", "tokens_dropped_other_side")
    dropped = sum(n for name, n in counts.items() if name.startswith("tokens_dropped_") and name not in left_out)
    return cut + f"   dropped {dropped:,} tokens"


_VERDICTS = {
    "exact": "exact",
    "history_differs": "history differs",
    "no_stop": "no stop token",
    "refused": "refused",
}


def _fact_lines(counts: Mapping[str, int]) -> list[str]:
    lines = []
    turns = {name.removeprefix(_TURNS): n for name, n in sorted(counts.items()) if name.startswith(_TURNS) and n}
    if turns:
        shown = [f"{n:,} {' and '.join(_VERDICTS[bit] for bit in name.split('+'))}" for name, n in turns.items()]
        lines.append(f"turns     {'   '.join(shown)}   (assistant turns, by verdict)")
    neutralised = counts.get("control_tokens_neutralised", 0)
    lines.append(f"control   {neutralised:,} control token{_s(neutralised)} inside content encoded as ordinary text")
    lost = counts.get("fields_lost", 0)
    shortened = counts.get("fields_shortened_in_history", 0)
    lines.append(
        f"lost      {lost:,} field{_s(lost)} that the template does not show"
        + (f"   ({shortened:,} shown shortened in history, as at inference)" if shortened else "")
    )
    return lines


def _finding_lines(findings: list[Finding]) -> list[str]:
    lines = [f"{'findings' if k == 0 else '':<10}{finding}" for k, finding in enumerate(findings)]
    if findings:
        lines.append(f"          maskpipe rule {findings[0].code} explains")
    return lines


def _reject_lines(records: int, rejected: Mapping[str, int], examples: list[dict[str, Any]], where: str) -> list[str]:
    total = sum(rejected.values())
    if not total:
        return ["rejects   0 records"]
    lines = [f"rejects   {total:,} of {records:,} record{_s(records)}; {where}"]
    for reason, n in sorted(rejected.items(), key=lambda item: (-item[1], item[0])):
        first = next((entry["message"] for entry in examples if entry["reason"] == reason), "")
        lines.append(f"          {n:,} {reason}" + (f", first: {_one_line(first)}" if first else ""))
    return [*lines, "          maskpipe explain SOURCE --row N --tokenizer T says more about one"]


def _validation_lines(path: Path, other: Manifest | None) -> list[str]:
    if other is None:
        return []
    totals, kept, files = other.totals, other.records_kept, len(other.shards)
    return [
        f"and       {kept:,} record{_s(kept)} -> {totals.documents:,} document{_s(totals.documents)} -> "
        f"{totals.sequences:,} sequence{_s(totals.sequences)} in {files} shard{_s(files)} ({path / 'validation'}), "
        f"{totals.n_loss:,} tokens with loss; the lines below are about train"
    ]


def _left_out_lines(left_out: Mapping[str, int]) -> list[str]:
    if not left_out:
        return []
    shown = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in left_out.items())
    return [f"left out  records, because the recipe says so: {shown}"]


def _dropped_lines(manifest: Manifest, path: Path) -> list[str]:
    if not manifest.dropped:
        return []
    shown = ", ".join(f"{n:,} {policy.replace('_', ' ')}" for policy, n in manifest.dropped.items())
    return [f"dropped   turns or documents that came to nothing: {shown}; list in {path}/dropped.jsonl"]


def _proof_lines(counts: Mapping[str, int]) -> list[str]:
    proofs = {name.removeprefix("proof_"): n for name, n in sorted(counts.items()) if name.startswith("proof_") and n}
    if not proofs:
        return []
    shown = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in proofs.items())
    return [f"proof     provenance by a second, independent render: {shown}"]


def _checked_line(manifest: Manifest, counts: Mapping[str, int]) -> str:
    rejected = sum(manifest.rejected.values())
    left_out, repeated = sum(manifest.left_out.values()), counts.get("tokens_repeated", 0)
    made, again = counts["tokens"], f" + {repeated:,} repeated" if repeated else ""
    gone = made + repeated - manifest.totals.n_tokens
    return (
        f"checked   records: {manifest.records:,} read = {manifest.records_kept:,} kept + {rejected:,} rejected"
        + (f" + {left_out:,} left out" if left_out else "")
        + f"   tokens: {made:,} made{again} = {manifest.totals.n_tokens:,} in shards + {gone:,} cut or dropped"
    )


_SAID = (
    "control_tokens_neutralised", "fields_lost", "fields_shortened_in_history", "documents_truncated",
    "documents_split", "tokens_truncated", *_SPOKEN,
)  # fmt: skip


def _counted_lines(counts: Mapping[str, int]) -> list[str]:
    rest = [
        f"{name.replace('_', ' ')} {n:,}"
        for name, n in sorted(counts.items())
        if n and name not in _SAID and not name.startswith((_TURNS, "proof_"))
    ]
    return [f"counted   {'   '.join(rest)}"] if rest else []


def _projected_bytes(trial: Trial) -> float:
    """Ids, runs and documents as shard format v1 keeps them, and Arrow's own bytes per record batch."""
    tokens = trial.sequences * trial.sequence_length
    return 4.1 * tokens + 11 * trial.runs + 70 * trial.documents + 2000 * (tokens / BATCH_TOKENS)


def _one_line(text: str, width: int = 160) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def _percent(part: int, whole: int) -> str:
    if not whole or not part:
        return "0 %"
    return f"{100 * part / whole:.1f} %"


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def _bytes(size: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _s(n: int) -> str:
    return "" if n == 1 else "s"
