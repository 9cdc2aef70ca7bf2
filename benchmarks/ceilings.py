"""What a device can do at best, with torch: the limit that measurements are compared with."""

from __future__ import annotations

import time
from typing import Any

import torch

from kandinsky22.measure.timing import Size

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Ceiling:
    """What a device can do at best: one large matrix product, convolution or copy within its memory.

    `run` gives seconds.
    """

    MATRIX = 4096
    CHANNELS, SIDE = 512, 64
    BYTES = 1 << 30

    def __init__(self, spec: dict[str, Any]) -> None:
        self.what, device = spec["what"], spec["device"]
        self.cuda = device == "cuda"
        if self.what == "copy":
            # Read and written beforehand: untouched pages would all be the same one.
            self.source, self.target = (torch.full((self.BYTES,), i, dtype=torch.uint8, device=device) for i in (1, 0))
            return
        dtype = DTYPES[spec["precision"]]
        if self.what == "matmul":
            self.operands = [torch.randn(self.MATRIX, self.MATRIX).to(dtype).to(device) for _ in range(2)]
            self.work = 2 * self.MATRIX**3
        else:
            layer = torch.nn.Conv2d(self.CHANNELS, self.CHANNELS, 3, padding=1).to(dtype).to(device)
            self.layer: Any = layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch lacks it
            picture = torch.randn(2, self.CHANNELS, self.SIDE, self.SIDE).to(dtype).to(device)
            self.operands = [picture.contiguous(memory_format=torch.channels_last)]
            self.work = 2 * 2 * 9 * self.CHANNELS**2 * self.SIDE**2

    def prepare(self, size: Size) -> None:
        """It has one size."""

    def run(self) -> float:
        """Seconds for one TFLOP; for the copy, seconds to read and write one GB."""
        started = time.perf_counter()
        with torch.inference_mode():
            self._compute()
            if self.cuda:
                torch.cuda.synchronize()
        work = 2 * self.BYTES / 1e9 if self.what == "copy" else self.work / 1e12
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
