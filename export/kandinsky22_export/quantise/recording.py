"""What components are fed in real runs of a bundle: the states that graphs are calibrated on and compared with."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from kandinsky22 import backends
from kandinsky22.arrays import Array
from kandinsky22.backends import EXPORTED, Availability, Backend, LoadedComponent, OnStep, PerStep, Relay, Settings
from kandinsky22.backends.loop import plain_loop
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import STEP_ROLES, Component, Role
from kandinsky22.components import Components
from kandinsky22.errors import BackendError
from kandinsky22.pipeline import Output, Pipeline
from kandinsky22_export.quantise.calibration import Calibration
from kandinsky22_export.resuming import ARRAYS, Saved

Feeds = dict[str, Array]

DECODER_STEPS, PRIOR_STEPS = 20, 25
"""Steps of the runs that are recorded."""


class _Recorded:
    """A component that keeps what it is fed."""

    def __init__(self, inner: LoadedComponent, kept: list[Feeds]) -> None:
        self._inner, self._kept = inner, kept

    @property
    def component(self) -> Component:
        """See `LoadedComponent.component`."""
        return self._inner.component

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """See `LoadedComponent.run`."""
        self._kept.append({name: np.array(array) for name, array in feeds.items()})
        return self._inner.run(feeds)

    def loop(
        self,
        state: Mapping[str, Array],
        per_step: PerStep,
        constants: Mapping[str, Array],
        on_step: OnStep | None = None,
        relay: Relay | None = None,
    ) -> dict[str, Array]:
        """See `LoadedComponent.loop`."""
        return plain_loop(self, state, per_step, constants, on_step, relay)

    def close(self) -> None:
        """See `LoadedComponent.close`."""
        self._inner.close()


class _Recorder:
    """A backend whose components keep what they are fed, each in a list in `fed`."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.fed: dict[str, list[Feeds]] = {}

    def availability(self, bundle: Bundle | None = None) -> Availability:
        """See `Backend.availability`."""
        return self._inner.availability(bundle)

    def load(self, bundle: Bundle, name: str, settings: Settings, weights: str = EXPORTED) -> LoadedComponent:
        """See `Backend.load`."""
        return _Recorded(self._inner.load(bundle, name, settings, weights), self.fed.setdefault(name, []))


Keep = Callable[[Component, list[Feeds], int], list[Feeds]]
"""Which of the states that a component was fed in the runs for one prompt are kept; prompts are numbered from 0."""


def record(
    folder: Path,
    calibration: Calibration,
    note: Callable[[str], None],
    wanted: Mapping[str, Keep],
    saved: Saved | None = None,
) -> dict[str, dict[str, list[Feeds]]]:
    """What the components of the bundle in `folder` are fed when the prompts are painted.

    It is by what it is `wanted` for, and by the component's name. Each decoder paints: that of inpainting and that with
    a hint from the pictures of text to image. `note` is told how far it is. What was recorded for a prompt is kept in
    `saved`, as a part with the prompt's number, and taken from there.
    """
    bundle = Bundle(folder)
    saved = saved or Saved()
    recorder = _Recorder(_processor_backend(bundle))
    roles = bundle.manifest.roles()
    kept: dict[str, dict[str, list[Feeds]]] = {purpose: {} for purpose in wanted}
    with Pipeline(Components(bundle, recorder, Settings(low_memory=True))) as pipe, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of prompts that are too long for a tiny text encoder
        for number, prompt in enumerate(calibration.prompts):
            place = f"{number + 1} of {len(calibration.prompts)}"

            def painted(number: int = number, prompt: str = prompt, place: str = place) -> dict[str, Array]:
                note(f"painting {place}")
                _paint(pipe, roles, prompt, calibration.seed + number)
                found = {
                    f"{purpose}/{name}": keep(bundle.component(name), fed, number)
                    for purpose, keep in wanted.items()
                    for name, fed in recorder.fed.items()
                }
                for fed in recorder.fed.values():
                    fed.clear()
                return _flat(found)

            told = functools.partial(note, f"painted before: {place}")
            arrays: dict[str, Array] = saved.get(f"painted_{number + 1}", ARRAYS, painted, told)
            for (purpose, name), states in _of_components(arrays).items():
                kept[purpose].setdefault(name, []).extend(states)
    return kept


def _flat(states: Mapping[str, list[Feeds]]) -> dict[str, Array]:
    """States as arrays, each by what it is wanted for, the component, the state's number and the input."""
    return {
        f"{whose}/{number}/{each}": array
        for whose, fed in states.items()
        for number, feeds in enumerate(fed)
        for each, array in feeds.items()
    }


def _of_components(arrays: Mapping[str, Array]) -> dict[tuple[str, str], list[Feeds]]:
    """The states that `_flat` made arrays of, by what they are wanted for and the component."""
    found: dict[tuple[str, str], dict[int, Feeds]] = {}
    for place, array in arrays.items():
        purpose, name, number, each = place.split("/")
        found.setdefault((purpose, name), {}).setdefault(int(number), {})[each] = array
    return {whose: list(states.values()) for whose, states in found.items()}


def _processor_backend(bundle: Bundle) -> Backend:
    """The faster backend that runs the bundle on the processor; ONNX Runtime comes with the exporter."""
    try:
        return backends.get("openvino", bundle)
    except BackendError:
        return backends.get("onnxruntime")


def spread_over(calibration: Calibration) -> Keep:
    """Keep about `calibration.samples` states of a step component, evenly spread over the steps of all runs.

    Of another component it is one a prompt.
    """
    share = max(1, round(calibration.samples / len(calibration.prompts)))
    return lambda component, fed, _: _spread(fed, share if component.role in STEP_ROLES else 1)


def _spread(fed: list[Feeds], count: int) -> list[Feeds]:
    """So many of them, from the first to the last."""
    if len(fed) <= count:
        return list(fed)
    places = np.linspace(0, len(fed) - 1, count).round().astype(int) if count > 1 else [len(fed) // 2]
    return [fed[place] for place in places]


def _paint(pipe: Pipeline, roles: frozenset[Role], prompt: str, seed: int) -> None:
    """Run what there is to run: every decoder, and both ways through MoVQ."""
    steps: dict[str, Any] = {
        "num_inference_steps": DECODER_STEPS,
        "prior_num_inference_steps": PRIOR_STEPS,
        "seed": seed,
    }
    found = pipe(prompt, **steps)
    picture = _picture(found)
    if Role.CONTROLNET_DECODER in roles:
        hint = np.asarray(picture.convert("L").convert("RGB"), np.float32) / 255
        pipe.controlnet(prompt, hint=hint, output_type="latent", **steps)
    if Role.INPAINT_DECODER in roles:
        mask = np.zeros((picture.height, picture.width), np.float32)
        mask[:, : picture.width // 2] = 1
        pipe.inpaint(prompt, image=picture, mask_image=mask, output_type="latent", **steps)
    elif Role.MOVQ_ENCODER in roles:
        few = {**steps, "num_inference_steps": 2, "prior_num_inference_steps": 2}
        pipe.img2img(prompt, image=picture, strength=1.0, output_type="latent", **few)


def _picture(output: Output) -> PIL.Image.Image:
    (picture,) = output.images
    assert isinstance(picture, PIL.Image.Image)
    return picture
