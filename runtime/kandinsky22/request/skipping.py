"""Steps of a decoder that are not computed as a whole: what may be asked for, and which steps they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kandinsky22.bundle.manifest import FORECASTS, SHALLOWS, Manifest, Role
from kandinsky22.bundle.reading import export_command
from kandinsky22.checks import FORECAST, NO_SKIP, SHALLOW
from kandinsky22.errors import BundleError, InputError
from kandinsky22.request.job import Skip

FIRST = 4
"""Steps at the beginning of a run that are always computed beside forecasts: what is in the picture is decided
there."""
LAST = 2
"""Steps at its end that are: what the network gives bends most there (docs/benchmarks.md)."""
BOTH = 2
"""Steps that are computed before one is forecast from them."""

Parts = Sequence[tuple[slice, bool]]
"""The runs of steps that are guided or not."""


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A way to skip: `roles` of the components that take steps, by the decoder's, and which steps of a run those are.

    `computed` says which ones are not, for who asked for a run that is too short.
    """

    roles: Mapping[Role, Role]
    steps: Callable[[Parts, int], tuple[int, ...]]
    computed: str


def skipped(asked: str, decoder: Role, manifest: Manifest, parts: Parts) -> Skip | None:
    """The steps that `asked`, a skip in its one form, leaves to another component; None where there are none.

    Raises InputError where all steps are needed, BundleError where the bundle was exported without that component.
    """
    if asked == NO_SKIP:
        return None
    name, _, interval = asked.partition(":")
    kind = _KINDS[name]
    steps = kind.steps(parts, int(interval))
    if not steps:
        raise InputError(
            f"skip leaves none of {parts[-1][0].stop} steps out, as {asked}: {kind.computed}; ask for more steps, or "
            f"for {NO_SKIP}."
        )
    role = kind.roles[decoder]
    if role not in manifest.roles():
        again = export_command(dataclasses.asdict(manifest), Path(manifest.name))
        raise BundleError(
            f"The bundle {manifest.name} has no component for the role {str(role)!r}, which skip {asked} needs: it was "
            f"exported without, or by an older version; export it again: {again}{_also(name, again)}"
        )
    return Skip(name, manifest.name_of(role), steps)


def _also(name: str, command: str) -> str:
    """The flag that a command of the exporter lacks for a way to skip."""
    return " --shallow" if name == SHALLOW and "--shallow" not in command else ""


def forecast_steps(parts: Parts, interval: int) -> tuple[int, ...]:
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


def shallow_steps(parts: Parts, interval: int) -> tuple[int, ...]:
    """Which steps are shallow where one in `interval` is computed in full: the first of each part, then every n-th.

    Features have as many branches as guidance, so that none outlive a part of the run.
    """
    return tuple(step for part, _ in parts for step in range(part.start, part.stop) if (step - part.start) % interval)


_KINDS = {
    FORECAST: _Kind(
        FORECASTS,
        forecast_steps,
        f"the first {FIRST} and the last {LAST} are computed, and {BOTH} where guidance begins or ends",
    ),
    SHALLOW: _Kind(SHALLOWS, shallow_steps, "the first is computed, and one where guidance begins or ends"),
}
