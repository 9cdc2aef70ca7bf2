"""What a bundle is calibrated on: prompts, and how many states of real runs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from kandinsky22.errors import ExportError, InputError

PROMPTS = (
    "A portrait of a young woman, freckles, soft light",
    "a red fox in a snowy forest, photograph",
    "oil painting of a stormy sea with a lighthouse",
    "a bowl of ramen, top view, high detail",
    "futuristic city at night, neon lights, rain",
    "a watercolour of mountains and a lake at dawn",
    "an old man reading a newspaper in a cafe",
    "a yellow bicycle leaning against a blue wall",
    "isometric illustration of a small wooden house",
    "a black cat with green eyes on a velvet chair",
    "abstract pattern of circles and triangles",
    "astronaut riding a horse on the moon, 4k",
)
"""Calibrated on where no file of prompts is given: faces, animals, landscapes, things; light, dark, flat and rich."""

PAINTERS = ("text_encoder", "prior_step", "decoder_step", "movq_decoder")
"""The components that paint the pictures."""


def require_painters(components: Collection[str]) -> None:
    """Raise ExportError where a bundle of these components paints no picture to be calibrated on."""
    missing = [name for name in PAINTERS if name not in components]
    if missing:
        raise ExportError(
            f"Quantised graphs and shallow steps are made by painting, which needs {', '.join(missing)}; export a "
            "checkpoint of text to image with its prior and all of its components, or do without, in precision fp16."
        )


@dataclass(frozen=True)
class Calibration:
    """Prompts that are painted, the first one's seed (each further one has the next), and how many states are kept.

    `samples` are of each step component; the other components have one a prompt.
    """

    prompts: tuple[str, ...] = PROMPTS
    seed: int = 0
    samples: int = 48

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("There is no prompt to calibrate on; expected one a line.")
        if self.samples < 3:
            raise InputError(f"The number of samples is {self.samples}; expected 3 or more, one a range of timesteps.")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"The seed of the calibration is {self.seed}; expected 0 to 2**63 - 1.")
