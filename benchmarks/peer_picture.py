"""A picture by diffusers' own decoder pipeline, in a process of its own: `python -m benchmarks.peer_picture '{…}'`.

Prints one JSON object: the seconds of a run from embeddings to pixels, after a short run that does not count. Text
encoder and prior are not in it: the prior's pipeline also holds CLIP's image encoder, which a picture of a text needs
for one constant.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from diffusers import KandinskyV22Pipeline

from benchmarks import peers
from benchmarks.ceilings import DTYPES
from kandinsky22.bundle.manifest import Role

SHORT = 2
"""Steps of the run that does not count."""


def main() -> None:
    """Make the picture that the argument describes, and print what was measured."""
    print(json.dumps(measure(json.loads(sys.argv[1]))))


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Seconds of `steps` steps and the decoding at `height` and `width`, in a way of `comparisons.PEERS`."""
    dtype = DTYPES[spec["precision"]]
    unet, scheduler = peers.network({**spec, "role": Role.DECODER})
    movq, _ = peers.network({**spec, "role": Role.MOVQ_DECODER})
    for network in (unet, movq):
        network.to(dtype).eval()
        if spec.get("channels_last"):
            network.to(memory_format=torch.channels_last)
        if spec.get("compile"):
            network.compile()
    pipeline: Any = KandinskyV22Pipeline
    pipe = pipeline(unet=unet, scheduler=scheduler, movq=movq)
    pipe.set_progress_bar_config(disable=True)
    torch.manual_seed(0)
    towards, away = torch.randn(2, 1, unet.config.encoder_hid_dim).to(dtype)

    def seconds(steps: int) -> float:
        started = time.perf_counter()
        pipe(
            image_embeds=towards,
            negative_image_embeds=away,
            height=spec["height"],
            width=spec["width"],
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(0),
        )
        return time.perf_counter() - started

    seconds(SHORT)
    return {"seconds": seconds(spec["steps"]), "version": peers.version()}


if __name__ == "__main__":
    main()
