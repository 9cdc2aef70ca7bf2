"""The plain loop over a step graph, shared by the CPU backends; it is also the reference for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kandinsky22.arrays import Array
from kandinsky22.backends import OnStep, PerStep


def plain_loop(
    run: Callable[[Mapping[str, Array]], dict[str, Array]],
    feedback: Mapping[str, str],
    state: Mapping[str, Array],
    per_step: PerStep,
    constants: Mapping[str, Array],
    on_step: OnStep | None = None,
) -> dict[str, Array]:
    """Call `run` once a row of `per_step`, and replace each state input by the output that `feedback` names for it.

    All sequences in `per_step` have the same length. Returns the last state, by the names of the inputs. What
    `on_step` raises ends the loop and reaches the caller.
    """
    now = dict(state)
    (steps,) = {len(rows) for rows in per_step.values()}
    for step in range(steps):
        outputs = run({**constants, **now, **{name: rows[step] for name, rows in per_step.items()}})
        now = {name: outputs[output] for name, output in feedback.items()}
        if on_step is not None:
            now.update(on_step(step, now) or {})
    return now
