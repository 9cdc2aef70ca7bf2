"""Steps of a decoder whose network is not computed: what may be asked for, and which steps they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from kandinsky22.bundle.manifest import FORECASTS, Manifest, Role
from kandinsky22.bundle.reading import export_command
from kandinsky22.checks import NO_SKIP
from kandinsky22.errors import BundleError, InputError
from kandinsky22.request.job import Forecast

FIRST = 4
"""Steps at the beginning of a run that are always computed: what is in the picture is decided there."""
LAST = 2
"""Steps at its end that are always computed: what the network gives bends most there (docs/benchmarks.md)."""
BOTH = 2
"""Steps that are computed before one is forecast from them."""


def forecast(skip: str, decoder: Role, manifest: Manifest, parts: Sequence[tuple[slice, bool]]) -> Forecast | None:
    """The steps that `skip`, in its one form, leaves to a forecast; None where all are computed.

    `parts` are the runs of steps that are guided or not. Raises InputError where all steps are needed, BundleError
    where the bundle was exported without forecasts.
    """
    if skip == NO_SKIP:
        return None
    steps = forecast_steps(parts, int(skip.partition(":")[2]))
    if not steps:
        raise InputError(
            f"skip leaves none of {parts[-1][0].stop} steps out, as {skip}: the first {FIRST} and the last {LAST} are "
            f"computed, and {BOTH} where guidance begins or ends; ask for more steps, or for {NO_SKIP}."
        )
    role = FORECASTS[decoder]
    if role not in manifest.roles():
        again = export_command(dataclasses.asdict(manifest), Path(manifest.name))
        raise BundleError(
            f"The bundle {manifest.name} has no component for the role {str(role)!r}, which skip {skip} needs: it was "
            f"exported without, or by an older version; export it again: {again}"
        )
    return Forecast(manifest.name_of(role), steps)


def forecast_steps(parts: Sequence[tuple[slice, bool]], interval: int) -> tuple[int, ...]:
    """Which steps are forecast where one in `interval` is computed, after the first FIRST and before the last LAST.

    Of each part of the run, guided or not, two steps are computed before any is forecast: with guidance the output is
    of another kind than without.
    """
    end = parts[-1][0].stop - LAST
    return tuple(
        step
        for part, _ in parts
        for step in range(max(part.start + BOTH, FIRST), min(part.stop, end))
        if (step - FIRST + 1) % interval
    )
