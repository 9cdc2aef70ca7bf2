"""Named settings of several parameters: what `preset` stands for."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "same": {"scheduler": None, "num_inference_steps": 50, "guidance_interval": (0.0, 1.0)},
        "fast": {"scheduler": "dpm++-karras", "num_inference_steps": 20, "guidance_interval": (0.0, 1.0)},
        "fastest": {"scheduler": "dpm++-karras", "num_inference_steps": 12, "guidance_interval": (0.0, 0.5)},
    }
)
"""The parameters that each preset sets. `same` is what is computed when nothing is asked for: diffusers' pictures.

Each sets the same parameters, so that one takes the place of another. A scheduler has its name of the command line,
which pictures tell, so that `show` can say how to make them again.
"""

SET = frozenset(name for values in PRESETS.values() for name in values)
"""The parameters that presets set."""
