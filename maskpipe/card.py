"""The dataset card: README.md of a dataset, with the header that data set sites and `datasets.load_dataset` read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import yaml

from maskpipe.shards.manifest import Manifest
from maskpipe.summary import by_role

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
)


def of(manifest: Manifest, counts: Counter[str]) -> str:
    """The card's text, a function of the dataset alone. It names no license: the sources decide that."""
    totals = manifest.totals
    length = manifest.sequence_length
    objective = manifest.recipe["objective"]
    sources = [(f"`{_code(s.name)}`", f"{s.records:,}", f"`{s.sha256}`") for s in manifest.sources]
    rejected = sum(manifest.rejected.values())
    elsewhere = _reasons(manifest.rejected) + _left_out(manifest.left_out)
    share = f"{100 * totals.n_loss / totals.n_tokens:.1f} %" if totals.n_tokens else "0 %"
    return f"""{header(totals.sequences, ("maskpipe", objective), "arrow", "part-*.arrow")}
# {totals.sequences:,} packed sequences of {length:,} tokens

Made by maskpipe for objective `{objective}`: {manifest.records_kept:,} records became
{totals.documents:,} documents, packed into rows of exactly {length:,} tokens. Every token carries whose it is (role),
what it is (part), whether the model itself would write it (sampled), and whether it gets loss. {totals.n_loss:,} of
{totals.n_tokens:,} tokens do ({share}), {totals.signals_per_sequence:,.1f} per sequence; {totals.fill:.1%} of all
positions are filled.

{_table(("role", "tokens", "with loss"), _roles(totals.tokens, totals.loss))}

## Where it comes from

{_table(("source", "records", "SHA-256"), sources)}

{manifest.records:,} records read = {manifest.records_kept:,} kept + {rejected:,} rejected{elsewhere}.
{_counted(counts)}

## How to read it

```python
import maskpipe

dataset = maskpipe.open(".")        # checks hashes as it reads
row = dataset[0]                    # row.input_ids, row.loss_mask, row.role_ids, row.position_ids, row.segment_ids
```

Without maskpipe, the rows are plain Arrow; one line of numpy expands the runs into a mask:

```python
import glob, numpy, pyarrow.ipc

row = pyarrow.ipc.open_file(sorted(glob.glob("part-*.arrow"))[0]).read_all().slice(0, 1).to_pylist()[0]
end, flags = numpy.array([(run["end"], run["flags"]) for run in row["runs"]]).T
loss_mask = numpy.repeat(flags >> 1 & 1, numpy.diff(end, prepend=0))     # [{length}]
```

`maskpipe verify .` checks every byte; `maskpipe stats .` shows the counts; `maskpipe export . --to hf DEST` writes
`input_ids` and `labels` for trainers that know nothing of maskpipe (also `--to trl`, `megatron-bridge`, `olmo`).

## Recipe

The same sources, tokenizer and recipe give the same bytes again.

```yaml
{yaml.safe_dump(_short(manifest.recipe), sort_keys=False, allow_unicode=True).rstrip()}
```

Fingerprint `{manifest.fingerprint}`,
format {".".join(map(str, manifest.format))}, label version {manifest.label_version}.
"""


def header(rows: int, tags: tuple[str, ...], kind: str, pattern: str) -> str:
    """The YAML header of a card."""
    size = next((name for limit, name in _SIZES if rows < limit), "n>1B")
    values = {
        "tags": [*tags, kind],
        "size_categories": [size],
        "task_categories": ["text-generation"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": pattern}]}],
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---\n"


def _roles(tokens: Mapping[str, int], loss: Mapping[str, int]) -> list[tuple[str, ...]]:
    of_loss = by_role(loss)
    return [(role, f"{n:,}", f"{of_loss.get(role, 0):,}") for role, n in by_role(tokens).items()]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    rule = tuple("---" if k == 0 else "---:" for k in range(len(head)))
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def _left_out(reasons: Mapping[str, int]) -> str:
    shown = ", ".join(f"{n:,} {reason.replace('_', ' ')}" for reason, n in sorted(reasons.items()))
    return f" + {sum(reasons.values()):,} left out ({shown})" if shown else ""


def _reasons(rejected: Mapping[str, int]) -> str:
    shown = ", ".join(f"{n:,} {reason}" for reason, n in sorted(rejected.items()))
    return f" ({shown}; listed in `rejects.jsonl`)" if shown else ""


def _counted(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in sorted(counts.items()) if n)
    return f"Counted on the way: {shown}." if shown else ""


def _code(name: str) -> str:
    """A name that cannot end the code span or the table cell it stands in."""
    return "".join(c if c.isprintable() and c not in "`|" else "?" for c in name)


def _short(recipe: Mapping[str, object]) -> dict[str, object]:
    """The recipe without the text of a template, which `template.jinja` holds."""
    return {
        key: "(see template.jinja)" if key == "chat_template" and value is not None else value
        for key, value in recipe.items()
    }
