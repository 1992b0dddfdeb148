"""What tests share: where real data lies, if it is there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no failure, and a gate draws the same examples each time; elsewhere they are new ones.
settings.register_profile("maskpipe", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("maskpipe")

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """../shared/data beside the checkout; skips where it is absent. Nothing of it may be committed."""
    if not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}; not found")
    return SHARED
