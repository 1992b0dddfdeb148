"""Report: what an audit found, as findings, coverage and requirements; as JSON, as a page in a notebook, as exit code.

to_dict() is a contract: docs/AUDIT.md names every key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from maskpipe.auditing.coverage import Coverage
from maskpipe.errors import UsageError
from maskpipe.findings import Finding, Place
from maskpipe.rules import LEVELS, RULES, Level, find

if TYPE_CHECKING:
    from maskpipe.auditing.gallery import Gallery
    from maskpipe.auditing.requirements import Requirement

REPORT_VERSION = 1
"""Of the keys of to_dict(): grows when one changes its meaning or goes away."""
FAIL_ON = "warning"
"""From which level findings are a failure, unless it is said."""


@dataclass(frozen=True)
class Met:
    """A requirement, and what the dataset has."""

    text: str
    value: float | None
    """None: the dataset does not say."""
    holds: bool


@dataclass(frozen=True)
class Report:
    """What an audit found."""

    name: str
    """Of the dataset, as a person knows it."""
    path: str
    kind: str
    """"maskpipe", the name of the tool that prepared the data, or "batches"."""
    rows: int
    tokens: int
    """Tokens of documents, without padding."""
    findings: tuple[Finding, ...] = ()
    """In the order of their codes."""
    coverage: Coverage = field(default_factory=Coverage)
    checked: bool = True
    """False: coverage alone; no row was looked at."""
    proof: Any = None
    """What the proof against the source established; None without one."""
    requirements: tuple[Met, ...] = ()
    gallery: Gallery | None = field(default=None, repr=False, compare=False)
    """Where html() gets rows to show; None: it shows none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "findings", tuple(sorted(self.findings, key=lambda finding: finding.code)))

    def of_level(self, level: Level) -> tuple[Finding, ...]:
        """The findings of one level."""
        return tuple(finding for finding in self.findings if level_of(finding) == level)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return self.of_level("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return self.of_level("warning")

    @property
    def notes(self) -> tuple[Finding, ...]:
        return self.of_level("note")

    def with_findings(self, findings: Iterable[Finding]) -> Report:
        """The same with more findings."""
        return replace(self, findings=(*self.findings, *findings))

    def requiring(self, requirements: Sequence[Requirement]) -> Report:
        """The same, with these requirements compared to it."""
        return replace(self, requirements=(*self.requirements, *(entry.compare(self) for entry in requirements)))

    def failures(self, fail_on: Sequence[str] = (FAIL_ON,)) -> tuple[Finding, ...]:
        """The findings that count as a failure: of a level in `fail_on` or above it, or of a code in it. "never" is
        no level, so alone it lets everything pass. UsageError for a word that is neither."""
        levels, codes = _parse_fail_on(fail_on)
        return tuple(f for f in self.findings if f.code in codes or level_of(f) in levels)

    def exit_code(self, fail_on: Sequence[str] = (FAIL_ON,)) -> int:
        """0: nothing that counts as a failure was found, and every requirement holds. 1: else."""
        return int(bool(self.failures(fail_on)) or not all(met.holds for met in self.requirements))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; what `--format json` prints. The keys are stable."""
        return {
            "report": REPORT_VERSION,
            "name": self.name,
            "path": self.path,
            "kind": self.kind,
            "checked": self.checked,
            "rows": self.rows,
            "tokens": self.tokens,
            "levels": {level: len(self.of_level(level)) for level in LEVELS},
            "findings": [finding_dict(finding) for finding in self.findings],
            "requirements": [vars(met) for met in self.requirements],
            "coverage": self.coverage.to_dict(),
            "proof": None if self.proof is None else self.proof.to_dict(),
        }

    def __str__(self) -> str:
        found = Counter(level_of(finding) for finding in self.findings)
        shown = ", ".join(f"{found[level]} {level}{'' if found[level] == 1 else 's'}" for level in LEVELS)
        lines = [f"{self.name} ({self.kind}): {self.rows:,} rows, {self.tokens:,} tokens; {shown}"]
        return "\n".join([*lines, *(f"{level_of(f):<8}{f}" for f in self.findings)])

    def html(self, *, rows: int = 20) -> str:
        """The report as one HTML page that needs nothing else, with a viewer of at most `rows` rows worth reading."""
        from maskpipe.auditing import page

        shown, missing = ([], []) if self.gallery is None else self.gallery.specimens(self.findings, rows)
        return page.html(self, shown, missing)

    def _repr_html_(self) -> str:
        from maskpipe.auditing import page

        return page.fragment(self)


def level_of(finding: Finding) -> Level:
    """error, warning or note."""
    return RULES[finding.code].level


def finding_dict(finding: Finding) -> dict[str, Any]:
    """A finding as plain values; what does not apply to a place is left out."""
    return {
        "code": finding.code,
        "name": RULES[finding.code].name,
        "level": level_of(finding),
        "count": finding.count,
        "text": finding.text,
        "places": [place_dict(place) for place in finding.places],
    }


def place_dict(place: Place) -> dict[str, Any]:
    """The parts of a place that apply."""
    return {name: value for name, value in vars(place).items() if value not in ("", -1)}


def _parse_fail_on(words: Sequence[str]) -> tuple[set[str], set[str]]:
    levels: set[str] = set()
    codes: set[str] = set()
    for word in words:
        if word in LEVELS:
            levels |= set(LEVELS[: LEVELS.index(word) + 1])
        elif word != "never":
            try:
                codes.add(find(word).code)
            except UsageError:
                raise UsageError(
                    f"--fail-on {word}: expected error, warning, note, never, or a code such as MP303"
                ) from None
    return levels, codes
