"""Named settings of several parameters: what `preset` stands for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


def _setting(
    prior_scheduler: str | None, prior_steps: int, scheduler: str | None, steps: int, guided: tuple[float, float]
) -> Mapping[str, Any]:
    return {
        "prior_scheduler": prior_scheduler,
        "prior_num_inference_steps": prior_steps,
        "scheduler": scheduler,
        "num_inference_steps": steps,
        "guidance_interval": guided,
    }


PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "same": _setting(None, 25, None, 50, (0.0, 1.0)),
        "fast": _setting("dpm++", 6, "dpm++-karras", 15, (0.0, 1.0)),
        "fastest": _setting("ddim", 4, "dpm++-karras", 10, (0.0, 0.5)),
    }
)
"""The parameters that each preset sets. `same` is what is computed when nothing is asked for: diffusers' pictures.

Each sets the same parameters, so that one takes the place of another. A scheduler has its name of the command line,
which pictures tell, so that `show` can say how to make them again.
"""

SET = frozenset(name for values in PRESETS.values() for name in values)
"""The parameters that presets set."""
