"""What a device can do at best, with torch: the limit that measurements are compared with."""

from __future__ import annotations

import time
from typing import Any

import torch

from kandinsky22.measure.timing import Size

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


SIDES = {"matmul": (1024, 2048, 4096), "convolution": (16, 32, 64)}
"""Of the matrices, and of the pictures that are convolved: the larger, the nearer to the limit."""
CHANNELS = 512
BYTES = 1 << 30
PATIENCE = 20.0
"""Seconds that a run may take. Where a precision is emulated, a run of the largest would take minutes."""


def flop(what: str, side: int) -> int:
    """FLOP of a matrix product, or of two pictures' convolution."""
    return 2 * side**3 if what == "matmul" else 2 * 2 * 9 * CHANNELS**2 * side**2


def largest_side(what: str, seconds: float) -> int:
    """The largest side of which a run takes no more than `PATIENCE`, where the smallest takes `seconds`."""
    smallest, *larger = SIDES[what]
    rate = flop(what, smallest) / seconds
    return max([smallest, *(side for side in larger if flop(what, side) / rate <= PATIENCE)])


class Ceiling:
    """What a device can do at best: one large matrix product, convolution or copy within its memory.

    `run` gives seconds.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.what, self.device = spec["what"], spec["device"]
        if self.what == "copy":
            # Read and written beforehand: untouched pages would all be the same one.
            self.source, self.target = (
                torch.full((BYTES,), fill, dtype=torch.uint8, device=self.device) for fill in (1, 0)
            )
            return
        dtype = DTYPES[spec["precision"]]
        self._make(SIDES[self.what][0], dtype)
        self.run()
        self._make(largest_side(self.what, self.run() * flop(self.what, self.side) / 1e12), dtype)

    def _make(self, side: int, dtype: torch.dtype) -> None:
        """What is multiplied or convolved."""
        self.side = side
        if self.what == "matmul":
            self.operands = [torch.randn(side, side).to(dtype).to(self.device) for _ in range(2)]
            return
        layer: Any = torch.nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1).to(dtype).to(self.device)
        self.layer = layer.to(memory_format=torch.channels_last)
        picture = torch.randn(2, CHANNELS, side, side).to(dtype).to(self.device)
        self.operands = [picture.contiguous(memory_format=torch.channels_last)]

    def prepare(self, size: Size) -> None:
        """It has one size."""

    def run(self) -> float:
        """Seconds for one TFLOP; for the copy, seconds to read and write one GB."""
        started = time.perf_counter()
        with torch.inference_mode():
            self._compute()
            if self.device == "cuda":
                torch.cuda.synchronize()
        work = 2 * BYTES / 1e9 if self.what == "copy" else flop(self.what, self.side) / 1e12
        return (time.perf_counter() - started) / work

    def _compute(self) -> None:
        if self.what == "copy":
            self.target.copy_(self.source)
        elif self.what == "convolution":
            self.layer(*self.operands)
        else:
            torch.mm(*self.operands)


def version() -> str:
    """Of what it is measured with."""
    return f"torch {torch.__version__}"
