"""docs/server-contracts.md names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

SERVE = Path(__file__).parent


def test_every_test_that_the_contracts_name_is_there() -> None:
    text = (SERVE.parents[1] / "docs" / "server-contracts.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", text))
    there = {
        name
        for path in SERVE.glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named
    assert named <= there, sorted(named - there)
