"""A user's callbacks, and how one is dressed for a backend's loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kandinsky22.arrays import Array, Floats
from kandinsky22.backends import OnStep
from kandinsky22.errors import InputError

if TYPE_CHECKING:
    import PIL.Image


class Callback(Protocol):
    """Called after each step, as in diffusers."""

    def __call__(
        self, pipeline: Any, step: int, timestep: int, tensors: dict[str, Array], /
    ) -> Mapping[str, Array] | None:
        """See `callback_on_step_end` of `kandinsky22.request.parameters`.

        `tensors` has `latents` and `x0`, and as `pictures` the place of each row's picture among all of the call, int64
        (rows,). The prior with negative prompts has two rows a picture: those of the prompts, then the negatives'.

        Raising `Cancelled` ends the call; `Cancelled(places)` ends those pictures, and the others go on with the next
        step. Where they do, the calls that follow see the rows of those that stay, in the same order.
        """


class OnBatch(Protocol):
    """Called after each batch."""

    def __call__(self, first: int, images: list[PIL.Image.Image] | Floats, /) -> object:
        """See `callback_on_batch_end` of `kandinsky22.request.parameters`.

        `images` are of neighbours: the first has the place `first` among all pictures of the call, the next one
        `first + 1`. A batch of which pictures in between were cancelled is handed over in as many parts as that leaves.
        """


@dataclass(frozen=True)
class Callbacks:
    """What a call is told of, and the `pipeline` that its callbacks are handed."""

    pipeline: Any = None
    on_step: Callback | None = None
    on_prior_step: Callback | None = None
    on_batch: OnBatch | None = None

    def decoder(self, timesteps: NDArray[np.int64]) -> OnStep | None:
        """What a loop of the decoder through these timesteps calls."""
        return _dressed(self.on_step, self.pipeline, timesteps)

    def prior(self, timesteps: NDArray[np.int64]) -> OnStep | None:
        """What a loop of the prior through these timesteps calls."""
        return _dressed(self.on_prior_step, self.pipeline, timesteps)


NO_CALLBACKS = Callbacks()
"""Nobody is told."""


def _dressed(callback: Callback | None, pipeline: Any, timesteps: NDArray[np.int64]) -> OnStep | None:
    """A user's callback for a backend's loop: raises InputError where it returns what cannot be."""
    if callback is None:
        return None

    def on_step(step: int, state: Mapping[str, Array]) -> Mapping[str, Array] | None:
        tensors = {"latents": state["latents"], "x0": state["x0_before"], "pictures": state["pictures"]}
        replaced = callback(pipeline, step, int(timesteps[step]), dict(tensors))
        return None if replaced is None else _replaced(replaced, tensors)

    return on_step


def _replaced(replaced: object, tensors: Mapping[str, Array]) -> Mapping[str, Array] | None:
    """What a callback returned, checked: the latents that take the place of the loop's, or None."""
    if not isinstance(replaced, Mapping):
        raise InputError(f"The callback returned {type(replaced).__name__}; expected None or {{'latents': …}}.")
    for name, value in replaced.items():
        # diffusers' callbacks return all that they were given, of which the rest is as it was.
        if name != "latents" and not (name in tensors and value is tensors[name]):
            raise InputError(f"The callback returned {name!r}; only 'latents' can be replaced: leave it out.")
    if "latents" not in replaced:
        return None
    expected = tensors["latents"].shape
    try:
        latents = np.asarray(replaced["latents"], np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(replaced["latents"]).__name__
        raise InputError(f"The callback returned latents of type {kind}; expected floats {expected}.") from error
    if latents.shape != expected:
        raise InputError(f"The callback returned latents {latents.shape}; expected {expected}.")
    if not np.isfinite(latents).all():
        raise InputError("The callback returned latents that are not finite; expected numbers.")
    return {"latents": latents}
