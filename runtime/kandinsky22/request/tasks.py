"""A task's own inputs, read: pictures, masks and depth maps that lead the decoder beside embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from kandinsky22.arrays import Floats
from kandinsky22.bundle.manifest import Role
from kandinsky22.errors import InputError
from kandinsky22.images import depth, masks, reading
from kandinsky22.images.masks import Mask
from kandinsky22.request.request import Request
from kandinsky22.schedulers.schedule import Schedule

Shape = tuple[int, int, int]
"""Channels, height and width of a picture's latents."""


@dataclass(frozen=True)
class Inputs:
    """Which decoder runs, and what it is given beside embeddings: one for all prompts, or one a prompt.

    `images` are RGB pictures, or clean latents (n, C, h, w). With `strength` the run begins from them with its last
    steps; without, from noise. `overlay` puts the images' own pixels back where the masks are black.
    """

    decoder: Role = Role.DECODER
    images: list[PIL.Image.Image] | Floats | None = None
    strength: float | None = None
    masks: list[Mask] | None = None
    hints: list[Floats] | None = None
    overlay: bool = False

    @property
    def roles(self) -> tuple[Role, ...]:
        """What is run between the prior and MoVQ's decoder, in order."""
        encoders = []
        if isinstance(self.images, list):
            encoders.append(Role.MOVQ_ENCODER)
        if self.hints is not None:
            encoders.append(Role.HINT_ENCODER)
        return (*encoders, self.decoder)

    def check(self, prompts: int, shape: Shape, downscale: int) -> None:
        """Raise InputError where an input cannot serve so many prompts, or pictures with latents of `shape`.

        There is one input for all prompts or one a prompt, latents are of the right shape, and at the latents' size
        every mask has something to repaint.
        """
        for name, values in (("image", self.images), ("mask_image", self.masks), ("hint", self.hints)):
            if values is not None and len(values) not in (1, prompts):
                raise InputError(
                    f"{name} has {len(values)} pictures for {prompts} prompts; expected one for all, or one a prompt."
                )
        if isinstance(self.images, np.ndarray) and self.images.shape[1:] != shape:
            raise InputError(f"image has latents of {self.images.shape[1:]} a picture; expected {shape} at this size.")
        if self.masks is not None:
            self._check_mask_sizes(shape[1] * downscale, shape[2] * downscale)
            latent_masks(self.masks, shape, downscale)

    def _check_mask_sizes(self, height: int, width: int) -> None:
        """Raise InputError where a mask has another size than its picture; an array may have the one that is painted.

        diffusers takes an array as being of the asked size, whatever its own is.
        """
        images, found = self.images, self.masks
        if not isinstance(images, list) or found is None:
            raise TypeError("Only inpainting has images and masks to compare.")
        for i, mask in enumerate(found):
            place = f"mask_image[{i}]" if len(found) > 1 else "mask_image"
            for picture in images if len(found) == 1 else images[i : i + 1] or images[:1]:
                asked = (width, height) if mask.from_array else None
                reading.same_size(place, mask.size, "the image", picture.size, asked)

    def shortened(self, schedule: Schedule) -> Schedule:
        """The steps of `schedule` that are run. Raises InputError where `strength` leaves none."""
        return schedule if self.strength is None else schedule.last_part(self.strength)


def read(request: Request) -> Inputs:
    """The inputs of a request for pictures. Raises InputError on inputs that are wrong or do not go together."""
    asked = request.parameters
    match request.task.name:
        case "img2img":
            return Inputs(images=_images(asked["image"]), strength=asked["strength"])
        case "inpaint":
            return _inpainting(asked["image"], asked["mask_image"], overlay=_overlay(request))
        case "controlnet":
            hints = _hints(asked["hint"], asked["depth_model"])
            if asked["image"] is not None:
                images = _images(asked["image"])
                return Inputs(Role.CONTROLNET_DECODER, images=images, strength=asked["strength"], hints=hints)
            return Inputs(Role.CONTROLNET_DECODER, hints=hints)
    return Inputs()


def pictures_for_clip(name: str, value: Any) -> list[PIL.Image.Image]:
    """Pictures that CLIP's image encoder sees: one or a list of them. Raises InputError where one is none."""
    return reading.several(name, value, picture_for_clip)


def picture_for_clip(name: str, value: Any) -> PIL.Image.Image:
    """A picture that CLIP's image encoder sees. Raises InputError where it is none, or far longer than it is wide."""
    picture = reading.picture(name, value)
    reading.not_too_long(name, picture)
    return picture


def latent_masks(found: Sequence[Mask], shape: Shape, downscale: int) -> Floats:
    """Masks (n, 1, h, w) as the inpainting steps take them. Raises InputError where one has nothing to repaint."""
    height, width = shape[1] * downscale, shape[2] * downscale
    latent = masks.to_latents(np.stack([mask.kept(height, width) for mask in found]), downscale)
    if (latent == 1).all(axis=(1, 2, 3)).any():
        raise InputError(
            f"mask_image has nothing left to repaint at {width}x{height}: its white is finer than the "
            f"{downscale} pixels that are repainted together; paint it larger."
        )
    return masks.prepare_mask(latent)


def _inpainting(image: Any, mask_image: Any, *, overlay: bool) -> Inputs:
    images = reading.several("image", image, reading.picture)
    found = reading.several("mask_image", mask_image, reading.inpainting_mask)
    for i, mask in enumerate(found):
        if mask.is_empty:
            place = f"mask_image[{i}]" if len(found) > 1 else "mask_image"
            raise InputError(f"{place} is empty: nothing is white; expected white where the picture is repainted.")
    return Inputs(Role.INPAINT_DECODER, images=images, masks=found, overlay=overlay)


def _overlay(request: Request) -> bool:
    asked = request.parameters
    if asked["overlay"] and asked["output_type"] == "latent":
        raise InputError("overlay puts pixels back and latents have none; choose another output_type, or no overlay.")
    return asked["overlay"]


def _hints(value: Any, depth_model: str | Path | None) -> list[Floats]:
    """Depth maps, as they are or made of pictures by a network."""
    if depth_model is None:
        return reading.several("hint", value, reading.depth)
    return reading.several("hint", value, lambda _, each: depth.estimate(depth_model, each))


def _images(value: Any) -> list[PIL.Image.Image] | Floats:
    """Pictures, or clean latents (n, C, h, w).

    diffusers 0.42.1 encodes latents once more and fails; here the run begins from them, as from their picture.
    """
    array = reading.array("image", value)
    if array is not None and array.ndim == 4:
        return reading.floats("image", array, "(n, C, h, w), clean latents")
    return reading.several("image", value, reading.picture)
