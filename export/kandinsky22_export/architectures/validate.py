"""Whether what was found is Kandinsky 2.2's and belongs together: one sentence for each thing that does not."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn

from kandinsky22 import schema
from kandinsky22.bundle.manifest import ImageProcessor
from kandinsky22.errors import CheckpointError
from kandinsky22_export.architectures.configs import CropSize, ProcessorConfig, ShortestEdge
from kandinsky22_export.architectures.kandinsky_2_2 import UNETS
from kandinsky22_export.graphs.encoders import HINT_DOWNSCALE

Config = Mapping[str, Any]

MOST_PATCHES = 4096
"""Patches that an image encoder cuts a picture into. The published one has 256."""
HINT_CHANNELS = 4
"""Latent channels that diffusers' UNet makes of a hint, whatever the config says."""


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
    if "image_encoder" in configs:
        _require_patches(configs["image_encoder"])
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


def _require_patches(encoder: Config) -> None:
    """Refuse an image encoder with so many patches that its attention would take all memory."""
    side, patch = encoder["image_size"], encoder["patch_size"]
    if side % patch or (side // patch) ** 2 > MOST_PATCHES:
        raise CheckpointError(
            f"The image_encoder has an image_size of {side} and a patch_size of {patch}; expected a multiple of it,"
            f" and at most {MOST_PATCHES} patches."
        )


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


def image_processor(name: str, config: ProcessorConfig, side: int) -> ImageProcessor:
    """The manifest's record of a CLIPImageProcessor's config, for an image encoder that sees `side` pixels squared.

    Raises CheckpointError where its sizes are others.
    """
    size = config.size.shortest_edge if isinstance(config.size, ShortestEdge) else config.size
    crop = config.crop_size
    height, width = (crop.height, crop.width) if isinstance(crop, CropSize) else (crop, crop)
    if size < side or (height, width) != (side, side):
        raise CheckpointError(
            f"The image processor of {name} resizes to {size} and crops to {height} x {width};"
            f" {side} pixels a side are needed here, and a shortest edge of no fewer."
        )
    return ImageProcessor(size, side, config.image_mean, config.image_std, "bicubic")


def scheduler(path: Path, config: Config) -> dict[str, Any]:
    """A scheduler's config that can be solved, as the manifest records it: its class, and options of plain values.

    The runtime does not look at what other schedulers' options hold, which diffusers writes into configs that were
    converted. Raises CheckpointError where that is no value of an option.
    """
    kept = {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}
    for key, value in kept.items():
        if key != "trained_betas":  # which was checked number by number
            plain = value is None or isinstance(value, bool | int | float) or is_short(value)
            if not plain or abs(value if isinstance(value, int) else 0) > 1 << 53:
                raise CheckpointError(f"{path} has {schema.shown(key)} {schema.shown(value)}; expected a plain value.")
    return kept


def is_short(value: object) -> bool:
    """Whether a value is a name: a text of few characters that all can be printed."""
    return isinstance(value, str) and len(value) <= 80 and value.isprintable()
