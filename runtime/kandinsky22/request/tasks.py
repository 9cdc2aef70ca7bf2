"""What a decoder may be led by beside embeddings: a picture to begin with, a mask, a depth hint.

A `Task` holds the user's inputs, read and checked; `conditions` encodes them into what the decoder's steps take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import PIL.Image

from kandinsky22 import checks
from kandinsky22.arrays import Array, Floats
from kandinsky22.bundle.manifest import Manifest
from kandinsky22.components import Components
from kandinsky22.errors import InputError
from kandinsky22.images import masks, reading
from kandinsky22.sampling import movq
from kandinsky22.sampling.conditions import Conditions
from kandinsky22.schedulers.schedule import Schedule

Shape = tuple[int, int, int]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Task:
    """A decoder and its inputs, one for all prompts or one a prompt.

    `component` is the step's name in the bundle. `images` are RGB pictures, or clean latents (n, C, h, w). With
    `strength` the run begins from them with its last steps; without, from noise. `overlay` puts the images' own pixels
    back where the masks are black.
    """

    component: str = "decoder_step"
    images: list[PIL.Image.Image] | Floats | None = None
    strength: float | None = None
    masks: list[PIL.Image.Image] | None = None
    hints: list[Floats] | None = None
    overlay: bool = False

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the bundle's components that this task runs between the prior and MoVQ's decoder, in order."""
        encoders = []
        if isinstance(self.images, list):
            encoders.append("movq_encoder")
        if self.hints is not None:
            encoders.append("hint_encoder")
        return (*encoders, self.component)

    def check(self, manifest: Manifest, prompts: int, shape: Shape) -> None:
        """Raise InputError where an input cannot serve so many prompts, or pictures with latents of `shape` (C, h, w).

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
            _latent_masks(manifest, self.masks, shape)

    def shortened(self, table: Schedule) -> Schedule:
        """The steps of `table` that are run. Raises InputError where `strength` leaves none."""
        return table if self.strength is None else table.last_part(self.strength)


def text_to_image() -> Task:
    """Embeddings alone."""
    return Task()


def image_to_image(image: Any, strength: object) -> Task:
    """Noise `image` and denoise it again (SDEdit, arXiv:2108.01073). Raises InputError on inputs that are wrong."""
    return Task(images=_images(image), strength=checks.share("strength", strength))


def inpainting(image: Any, mask_image: Any, *, overlay: bool = False) -> Task:
    """Repaint `image` where `mask_image` is white. Raises InputError on inputs that are wrong."""
    images = reading.several("image", image, reading.picture)
    found = reading.several("mask_image", mask_image, reading.mask)
    for i, mask in enumerate(found):
        place = f"mask_image[{i}]" if len(found) > 1 else "mask_image"
        for picture in images if len(found) == 1 else images[i : i + 1] or images[:1]:
            reading.same_size(place, mask.size, "the image", picture.size)
        if not (np.asarray(mask.convert("L")) >= 128).any():
            raise InputError(f"{place} is empty: nothing is white; expected white where the picture is repainted.")
    return Task("decoder_step_inpaint", images=images, masks=found, overlay=overlay)


def controlled(hint: Any, image: Any, strength: object) -> Task:
    """Follow the depth map `hint`, from noise or from `image`. Raises InputError on inputs that are wrong."""
    hints = reading.several("hint", hint, reading.depth)
    if image is None:
        if strength is not None:
            raise InputError("strength was given without an image to begin from; give the image too, or neither.")
        return Task("decoder_step_controlnet", hints=hints)
    strength = checks.share("strength", checks.STRENGTH if strength is None else strength)
    return Task("decoder_step_controlnet", images=_images(image), strength=strength, hints=hints)


def conditions(
    stages: Components, task: Task, table: Schedule, shape: Shape, pictures: int, noise: Floats | None
) -> Conditions:
    """Encode a task's inputs, which were checked, at the latents' `shape` (C, h, w), repeated to one a picture.

    `table` has the steps that are run; `noise` (pictures, C, h, w) is the caller's, if any.
    """
    manifest = stages.bundle.manifest
    size = _pixels(manifest, shape)
    known = mask = paste = hint_latents = None
    if isinstance(task.images, list):
        pixels = np.stack([reading.resized_picture(image, *size) for image in task.images])
        known = _spread(movq.to_latents(stages, pixels), pictures)
    elif task.images is not None:
        known = _spread(task.images, pictures)
    if task.masks is not None:
        mask = _spread(_latent_masks(manifest, task.masks, shape), pictures)
        # What is known is noised to the next timestep, and not at all after the last.
        paste = np.concatenate([table.scales[1:], np.array([[1, 0]], np.float32)])
    if task.hints is not None:
        hints = np.stack([reading.resized_depth(hint, *size) for hint in task.hints])
        hint_latents = _spread(movq.encode_hints(stages, hints), pictures)
    start = None if task.strength is None else table.scales[0]
    return Conditions(task.component, noise, known, start, mask, paste, hint_latents)


def overlaid(task: Task, pixels: Floats, of: range, count: int) -> Floats:
    """Painted `pixels` (n, H, W, 3) in 0..1 with the task's images put back where its masks are black.

    They are the pictures `of` a call for `count`. As diffusers' `VaeImageProcessor.apply_overlay` of masks and images
    of one size: grey mixes in proportion. It rounds on the way, so that at grey it may differ in the last bits.
    """
    if not isinstance(task.images, list) or task.masks is None:
        raise TypeError("Only inpainting has images and masks to overlay.")
    height, width = pixels.shape[1:3]
    images = np.stack([reading.resized_picture(image, height, width) for image in _of(task.images, of, count)])
    painted = np.stack([_painted_share(mask, height, width) for mask in _of(task.masks, of, count)])
    return pixels * painted + images * (1 - painted)


def _painted_share(mask: PIL.Image.Image, height: int, width: int) -> Floats:
    """How white a mask is, (height, width, 1) in 0..1, resized as `inputs.resized_mask` does it."""
    fitted = mask.resize((width, height), PIL.Image.Resampling.LANCZOS).convert("L")
    return np.asarray(fitted, np.float32)[..., None] / np.float32(255)


def _images(value: Any) -> list[PIL.Image.Image] | Floats:
    """Pictures, or clean latents (n, C, h, w) as diffusers takes them too."""
    if isinstance(value, np.ndarray) and value.ndim == 4:
        return reading.floats("image", value, "(n, C, h, w), clean latents")
    return reading.several("image", value, reading.picture)


def _pixels(manifest: Manifest, shape: Shape) -> tuple[int, int]:
    downscale = manifest.downscale
    return shape[1] * downscale, shape[2] * downscale


def _latent_masks(manifest: Manifest, found: Sequence[PIL.Image.Image], shape: Shape) -> Floats:
    """Masks (n, 1, h, w) as the inpainting steps take them. Raises InputError where one has nothing to repaint."""
    height, width = _pixels(manifest, shape)
    downscale = manifest.downscale
    latent = masks.to_latents(np.stack([reading.resized_mask(mask, height, width) for mask in found]), downscale)
    if (latent == 1).all(axis=(1, 2, 3)).any():
        raise InputError(
            f"mask_image has nothing left to repaint at {width}x{height}: its white is finer than the "
            f"{downscale} pixels that are repainted together; paint it larger."
        )
    return masks.prepare_mask(latent)


def _of(given: Sequence[_T], of: range, count: int) -> list[_T]:
    """The input of each of the pictures `of` a call for `count`; one alone is for all."""
    if len(given) == 1:
        return list(given)
    return [given[place * len(given) // count] for place in of]


def _spread(values: Array, pictures: int) -> Floats:
    """One entry a picture: those of a prompt follow each other."""
    return np.repeat(values, pictures // len(values), axis=0)
