"""The plain loop over a step graph, shared by the CPU backends; it is also the reference for the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kandinsky22.arrays import Array
from kandinsky22.backends import OnStep, PerStep
from kandinsky22.errors import BackendError


def plain_loop(
    run: Callable[[Mapping[str, Array]], dict[str, Array]],
    feedback: Mapping[str, str],
    state: Mapping[str, Array],
    per_step: PerStep,
    constants: Mapping[str, Array],
    on_step: OnStep | None = None,
) -> dict[str, Array]:
    """Call `run` once a row of `per_step`, and replace each state input by the output that `feedback` names for it.

    All sequences in `per_step` have the same length. Returns the last state, by the names of the inputs. Outputs that
    are no state are shown to `on_step` beside it, by their own names. What `on_step` raises ends the loop and reaches
    the caller; BackendError is raised where it replaces what is no state.
    """
    now = dict(state)
    (steps,) = {len(rows) for rows in per_step.values()}
    for step in range(steps):
        outputs = run({**constants, **now, **{name: rows[step] for name, rows in per_step.items()}})
        now = {name: outputs[output] for name, output in feedback.items()}
        if on_step is not None:
            others = {name: array for name, array in outputs.items() if name not in feedback.values()}
            now.update(replacement(on_step(step, {**now, **others}), now))
    return now


def replacement(given: Mapping[str, Array] | None, state: Mapping[str, object]) -> Mapping[str, Array]:
    """What `on_step` gave to replace parts of the state: nothing for None.

    Raises BackendError where it names what is no state: an output of the step, say, which nothing would read.
    """
    unknown = sorted((given or {}).keys() - state.keys())
    if unknown:
        raise BackendError(f"A step callback replaced {', '.join(unknown)}; expected parts of {', '.join(state)}.")
    return given or {}
