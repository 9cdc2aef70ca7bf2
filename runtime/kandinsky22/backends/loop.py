"""The plain loop over step graphs, shared by the CPU backends; it is also the reference for the others."""

from __future__ import annotations

from collections.abc import Mapping

from kandinsky22.arrays import Array
from kandinsky22.backends import Leg, LoadedComponent, OnStep, PerStep, Relay
from kandinsky22.errors import BackendError


def plain_loop(
    looped: LoadedComponent,
    state: Mapping[str, Array],
    per_step: PerStep,
    constants: Mapping[str, Array],
    on_step: OnStep | None = None,
    relay: Relay | None = None,
) -> dict[str, Array]:
    """Run `looped` once a row of `per_step`, and replace each state input by the output that its `state` names for it.

    With a `relay`, other graphs take some of the steps, and outputs are kept as its legs say.

    All sequences in `per_step` have the same length. Returns the last state, by the names of the inputs. Outputs that
    are no state are shown to `on_step` beside it, by their own names. What `on_step` raises ends the loop and reaches
    the caller; BackendError is raised where it replaces what is no state.
    """
    now = dict(state)
    for step, leg in enumerate(legs_of(per_step, relay)):
        feeds = {**constants, **now, **{name: rows[step] for name, rows in per_step.items()}}
        graph = looped
        if relay is not None:
            graph = (looped, *relay.others)[leg.graph]
            feeds = {spec.name: feeds[spec.name] for spec in graph.component.inputs}
        feedback, outputs = graph.component.state, graph.run(feeds)
        now |= {name: outputs[output] for name, output in {**feedback, **leg.keeps}.items()}
        if on_step is not None:
            others = {name: array for name, array in outputs.items() if name not in feedback.values()}
            now.update(replacement(on_step(step, {**now, **others}), now))
    return now


def legs_of(per_step: PerStep, relay: Relay | None) -> tuple[Leg, ...]:
    """Who takes each of the steps that `per_step` has rows for."""
    (steps,) = {len(rows) for rows in per_step.values()}
    if relay is None:
        return (Leg(),) * steps
    if len(relay.legs) != steps:
        raise ValueError(f"There are {len(relay.legs)} legs for {steps} steps; expected one a step.")
    return relay.legs


def replacement(given: Mapping[str, Array] | None, state: Mapping[str, object]) -> Mapping[str, Array]:
    """What `on_step` gave to replace parts of the state: nothing for None.

    Raises BackendError where it names what is no state: an output of the step, say, which nothing would read.
    """
    unknown = sorted((given or {}).keys() - state.keys())
    if unknown:
        raise BackendError(f"A step callback replaced {', '.join(unknown)}; expected parts of {', '.join(state)}.")
    return given or {}
