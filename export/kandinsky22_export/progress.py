"""What an export says of itself while it runs."""

from __future__ import annotations

from collections.abc import Callable

OnStage = Callable[[str], None]
"""Told what is being done with one component: "loading", "tracing"."""
OnProgress = Callable[[str, str], None]
"""Told which component it is, and what is being done with it."""
