"""JSON as a user, or a disk, may have left it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


def damaged(value: Any) -> Iterator[Any]:
    """Copies of a JSON value, each wrong at one place: another kind there, a number that cannot be, or nothing."""
    yield from (other for other in ("x", -1, 0, 10**400, math.nan, True, None, [], {}))
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, each in items:
        rest = [(other, same) for other, same in items if other != key]
        yield dict(rest) if isinstance(value, dict) else [same for _, same in rest]
        for wrong in damaged(each):
            changed = [(other, wrong if other == key else same) for other, same in items]
            yield dict(changed) if isinstance(value, dict) else [same for _, same in changed]
