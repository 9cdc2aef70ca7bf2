"""The array types that cross the modules of the runtime, and image embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Embeddings:
    """Image embeddings (n, E) float32 of n pictures, and those (n, E) that guidance leads away from."""

    image_embeds: Floats
    negative_image_embeds: Floats

    def part(self, of: slice) -> Embeddings:
        """Those of some of the pictures."""
        return Embeddings(self.image_embeds[of], self.negative_image_embeds[of])
