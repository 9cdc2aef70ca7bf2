"""A ControlNet and an inpainting decoder beside the text-to-image one, for as long as there are no trained ones.

Each is the trained UNet with the inputs that it lacks, whose weights are drawn: pictures still mean something, and
every new input changes them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel, VQModel
from diffusers.pipelines.kandinsky2_2 import KandinskyV22ControlnetPipeline, KandinskyV22InpaintPipeline

EXTRA = 0.2
"""Standard deviation of what a new channel adds for an input of 1: enough to see in a picture."""


def folder(checkpoint: Path, name: str, scratch: Path) -> Path:
    """The decoder "controlnet-depth" or "inpaint": of `checkpoint` where it is there, else made in `scratch`."""
    if (checkpoint / name).is_dir():
        return checkpoint / name
    if not (scratch / name).is_dir():
        _make(checkpoint / "decoder", name, scratch / name)
    return scratch / name


def _make(decoder: Path, name: str, destination: Path) -> None:
    trained = UNet2DConditionModel.from_pretrained(decoder / "unet")
    controlled = name == "controlnet-depth"
    config = {**trained.config, "in_channels": 8 if controlled else 9}
    if controlled:
        config["addition_embed_type"] = "image_hint"
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # for the layers that the trained UNet does not have
        unet = UNet2DConditionModel.from_config(config)
    weights = trained.state_dict()
    old = weights.pop("conv_in.weight")
    unet.load_state_dict(weights, strict=False)
    with torch.no_grad():
        unet.conv_in.weight.normal_(0, EXTRA / old[0, 0].numel() ** 0.5, generator=generator)
        unet.conv_in.weight[:, : old.shape[1]] = old
        if controlled:
            for parameter in unet.add_embedding.input_hint_block.parameters():  # as drawn, its output is almost nothing
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=generator)
    cls = KandinskyV22ControlnetPipeline if controlled else KandinskyV22InpaintPipeline
    movq = VQModel.from_pretrained(decoder / "movq")
    scheduler = DDPMScheduler.from_pretrained(decoder / "scheduler")
    cls(unet=unet, movq=movq, scheduler=scheduler).save_pretrained(destination)
