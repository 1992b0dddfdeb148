"""MP6xx: the dataset is not what its source says."""

from __future__ import annotations

from maskpipe.rules.rule import Rule

RULES: tuple[Rule, ...] = ()
