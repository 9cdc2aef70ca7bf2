"""Whether what was found is Kandinsky 2.2's and belongs together: one sentence for each thing that does not."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from torch import nn

from kandinsky22.bundle.manifest import ImageProcessor
from kandinsky22.errors import CheckpointError
from kandinsky22_export.architectures.kandinsky_2_2 import UNETS
from kandinsky22_export.graphs.encoders import HINT_DOWNSCALE

Config = Mapping[str, Any]

HINT_CHANNELS = 4
"""Latent channels that diffusers' UNet makes of a hint, whatever the config says."""

BICUBIC = 3  # Pillow's number
CLIP_PROCESSOR: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": BICUBIC,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""What CLIPImageProcessor does where its config is silent."""


def unet_purpose(unet: Config, movq: Config) -> str:
    """What a UNet is for, by its config: a key of UNETS."""
    if unet.get("addition_embed_type") == "image_hint":
        return "controlnet"
    return "inpaint" if unet["in_channels"] == 2 * movq["latent_channels"] + 1 else "decoder"


def require_fit(configs: Mapping[str, Config], samplers: Mapping[str, Config]) -> None:
    """Refuse networks that are of the right classes and yet not those of Kandinsky 2.2.

    `configs` are those of the networks by their names, `samplers` those of the schedulers by what they are for.
    """
    unets = {purpose: configs[name] for purpose, name in UNETS.items() if name in configs}
    for purpose, unet in unets.items():
        _require_unet(purpose, unet, configs["movq"], samplers[purpose])
    if unets and configs["movq"].get("lookup_from_codebook"):
        raise CheckpointError("The movq looks its latents up in its codebook; Kandinsky 2.2's does not.")
    first = next(iter(unets.values()), None)
    for purpose, unet in unets.items():
        for key in ("encoder_hid_dim", "out_channels"):
            _require(_called(purpose), unet, key, first and first[key])
    if "prior" in configs:
        prior, text = configs["prior"], configs["text_encoder"]
        embedding = prior["embedding_dim"]
        _require("text_encoder", text, "hidden_size", embedding)
        _require("text_encoder", text, "max_position_embeddings", prior["num_embeddings"])
        if "image_encoder" in configs:
            _require("image_encoder", configs["image_encoder"], "projection_dim", embedding)
            _require("image_encoder", configs["image_encoder"], "num_channels", 3)
        if first is not None:
            _require(_called(next(iter(unets))), first, "encoder_hid_dim", embedding)


def _require_unet(purpose: str, unet: Config, movq: Config, sampler: Config) -> None:
    name, latents = _called(purpose), movq["latent_channels"]
    hint = purpose == "controlnet"
    seen = {"decoder": latents, "controlnet": latents + HINT_CHANNELS, "inpaint": 2 * latents + 1}[purpose]
    _require(name, unet, "addition_embed_type", "image_hint" if hint else "image")
    _require(name, unet, "encoder_hid_dim_type", "image_proj")
    _require(name, unet, "in_channels", seen)
    if unet["out_channels"] != 2 * latents:
        learned = str(sampler.get("variance_type")).startswith("learned")
        if learned or unet["out_channels"] != latents:
            raise CheckpointError(
                f"The {name}'s out_channels is {unet['out_channels']}; {latents} are needed here, one for each latent"
                f" channel, or {2 * latents} where the scheduler's variance is learned."
            )
    downscale = 2 ** (len(movq["block_out_channels"]) - 1)
    if hint and downscale != HINT_DOWNSCALE:
        raise CheckpointError(
            f"The movq makes one latent of {downscale} pixels a side; a ControlNet's hint needs {HINT_DOWNSCALE}."
        )


def _called(purpose: str) -> str:
    """What a UNet is called in messages."""
    return "unet" if purpose == "decoder" else f"{purpose} unet"


def _require(part: str, config: Config, key: str, expected: object) -> None:
    if config.get(key) != expected:
        raise CheckpointError(f"The {part}'s {key} is {config.get(key)!r}; {expected!r} is needed here.")


def require_same_config(found: Config, other: str, others: Config) -> None:
    """Refuse the decoder of the repository `other`, where its MoVQ has another config than that of the bundle."""
    parameters = inspect.signature(diffusers.VQModel.__init__).parameters
    ours, theirs = (
        {key: _plain(config.get(key, default)) for key, default in _defaults(parameters).items()}
        for config in (found, others)
    )
    for key, value in ours.items():
        if value != theirs[key]:
            raise CheckpointError(
                f"The movq of {other} is another one than the bundle's ({key} is {theirs[key]!r}, not {value!r}), so"
                f" that their latents do not mean the same; export {other} on its own."
            )


def _defaults(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """What VQModel computes with; the other options of its config change nothing in it."""
    silent = ("self", "sample_size", "scaling_factor", "force_upcast")
    return {name: parameter.default for name, parameter in parameters.items() if name not in silent}


def _plain(value: Any) -> Any:
    """Tuples are lists in JSON."""
    return list(value) if isinstance(value, tuple) else value


def require_same_weights(found: nn.Module, other: str, others: nn.Module) -> None:
    """Refuse the decoder of the repository `other`, where its MoVQ has other weights than that of the bundle, `found`.

    They are compared in half precision: one repository may store what another rounds.
    """
    ours, theirs = found.state_dict(), others.state_dict()
    for key, value in ours.items():
        if not torch.equal(value.half(), theirs[key].half()):
            raise CheckpointError(
                f"The movq of {other} has other weights than the bundle's ({key} differs), so that their latents do not"
                f" mean the same; export {other} on its own."
            )


def image_processor(name: str, found: Config, side: int) -> ImageProcessor:
    """The manifest's record of a CLIPImageProcessor's config, for an image encoder that sees `side` pixels squared.

    Raises CheckpointError where it asks for something else than resizing, cropping and normalising as CLIP does.
    """
    config = {**CLIP_PROCESSOR, **found}
    size, crop = config["size"], config["crop_size"]
    size = size.get("shortest_edge") if isinstance(size, Mapping) else size
    crop = [crop.get("height"), crop.get("width")] if isinstance(crop, Mapping) else [crop, crop]
    if not isinstance(size, int) or size < side or crop != [side, side]:
        raise CheckpointError(
            f"The image processor of {name} resizes to {config['size']} and crops to {config['crop_size']};"
            f" {side} pixels a side are needed here, and a shortest edge of no fewer."
        )
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    for key in (*steps, "resample", "rescale_factor"):
        if not isinstance(config[key], int | float) or not math.isclose(config[key], CLIP_PROCESSOR[key], rel_tol=1e-6):
            raise CheckpointError(
                f"The image processor of {name} has {key} {config[key]}; {CLIP_PROCESSOR[key]} is needed."
            )
    mean, std = (_channels(name, key, config[key]) for key in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise CheckpointError(f"The image processor of {name} has image_std {list(std)}; numbers above 0 are needed.")
    return ImageProcessor(size, side, mean, std, "bicubic")


def _channels(name: str, key: str, found: Any) -> tuple[float, float, float]:
    """One number a channel of an image processor's config."""
    numbers = isinstance(found, list | tuple) and all(isinstance(each, int | float) for each in found)
    if not numbers or len(found) != 3 or not all(map(math.isfinite, found)):
        raise CheckpointError(f"The image processor of {name} has {key} {found}; three numbers are needed.")
    red, green, blue = map(float, found)
    return red, green, blue
