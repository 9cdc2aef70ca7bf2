"""Masks of inpainting against diffusers' own loop."""

from __future__ import annotations

import time

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers.pipelines.kandinsky2_2 import pipeline_kandinsky2_2_inpainting as diffusers_inpainting
from torch.nn import functional

from kandinsky22.arrays import Floats
from kandinsky22.images import masks, reading

FASTER = 1000
"""Times, at 1024 x 1024."""


def _loop(mask: Floats) -> Floats:
    """diffusers' own, which changes its argument."""
    prepared: Floats = diffusers_inpainting.prepare_mask(torch.from_numpy(mask.copy())).numpy()
    return prepared


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (16, 16), (17, 11)])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.99, 1.0])
def test_prepared_mask_is_that_of_the_loop(size: tuple[int, int], kept: float) -> None:
    random = np.random.default_rng(round(kept * 100) + size[0])
    mask = (random.random((3, 1, *size)) < kept).astype(np.float32)
    before = mask.copy()
    np.testing.assert_array_equal(masks.prepare_mask(mask), _loop(mask))
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("row", [0, 4, 8])
@pytest.mark.parametrize("column", [0, 4, 8])
def test_one_hole_grows_as_in_the_loop(row: int, column: int) -> None:
    """In the middle, on every border and in every corner."""
    mask = np.ones((1, 1, 9, 9), np.float32)
    mask[0, 0, row, column] = 0
    np.testing.assert_array_equal(masks.prepare_mask(mask), _loop(mask))


def test_values_between_are_holes_that_keep_their_value() -> None:
    mask = np.random.default_rng(0).choice(np.array([0, 0.5, 1], np.float32), (2, 1, 12, 12), p=[0.05, 0.05, 0.9])
    np.testing.assert_array_equal(masks.prepare_mask(mask), _loop(mask))


def test_latent_masks_take_the_pixels_that_torch_takes() -> None:
    mask = (np.random.default_rng(1).random((2, 1, 64, 192)) < 0.5).astype(np.float32)
    expected = functional.interpolate(torch.from_numpy(mask), (8, 24), mode="nearest").numpy()
    np.testing.assert_array_equal(masks.to_latents(mask, 8), expected)


PICTURE = PIL.Image.fromarray(np.random.default_rng(3).integers(0, 256, (256, 256, 3), dtype=np.uint8))


def drawn(height: int, width: int) -> Floats:
    """Greys in small blocks, and some right at the limit."""
    values = np.random.default_rng(height * width).random((-(-height // 3), -(-width // 3))).astype(np.float32)
    mask = values.repeat(3, axis=0).repeat(3, axis=1)[:height, :width]
    mask.flat[:4] = 0.5, np.nextafter(np.float32(0.5), np.float32(0)), 1, 0
    return np.ascontiguousarray(mask)


@pytest.mark.parametrize("size", [(64, 64), (256, 256), (64, 128), (100, 50), (13, 300), (1, 1), (767, 1025)])
@pytest.mark.parametrize("made", [(64, 64), (128, 192), (768, 768)])
def test_an_array_is_taken_as_being_of_the_asked_size_as_in_diffusers(
    size: tuple[int, int], made: tuple[int, int]
) -> None:
    """Whatever its own size and the picture's, down to the last latent."""
    given = drawn(*size)
    prepared, _ = diffusers_inpainting.prepare_mask_and_masked_image(PICTURE, given.copy(), *made)
    latent = (made[0] // 8, made[1] // 8)
    expected = functional.interpolate(prepared, latent, mode="nearest").numpy()
    mask = reading.inpainting_mask("mask_image", given)
    assert mask.from_array
    assert mask.size == size[::-1]
    np.testing.assert_array_equal(masks.to_latents(mask.kept(*made)[None], 8), expected)


def test_a_pil_mask_is_resized_and_an_array_is_picked_from() -> None:
    given = drawn(256, 256)
    picture = PIL.Image.fromarray((given * 255).round().astype(np.uint8))
    array, drawing = (reading.inpainting_mask("mask_image", value) for value in (given, picture))
    assert not drawing.from_array
    np.testing.assert_array_equal(array.kept(256, 256), drawing.kept(256, 256))
    expected, _ = diffusers_inpainting.prepare_mask_and_masked_image(PICTURE, picture, 64, 64)
    np.testing.assert_array_equal(drawing.kept(64, 64)[None], expected.numpy())
    assert (array.kept(64, 64) != drawing.kept(64, 64)).any()


def test_nearest_places_are_those_of_torch_for_every_size() -> None:
    for given in (1, 2, 3, 7, 8, 63, 64, 65, 97, 100, 255, 256, 500, 511, 767, 1000, 1024):
        source = torch.arange(given, dtype=torch.float32)[None, None, None]
        for wanted in range(64, 1025, 64):
            expected = functional.interpolate(source, (1, wanted), mode="nearest").numpy().ravel()
            np.testing.assert_array_equal(masks._nearest(given, wanted), expected)


def test_whiteness_and_emptiness() -> None:
    ramp = np.linspace(0, 1, 64, dtype=np.float32)[None].repeat(64, axis=0)
    mask = reading.inpainting_mask("mask_image", ramp)
    np.testing.assert_allclose(mask.whiteness(64, 64)[..., 0], ramp, rtol=0, atol=0.5 / 255 + 1e-6)
    assert mask.whiteness(8, 16).shape == (8, 16, 1)
    assert not mask.is_empty
    assert reading.inpainting_mask("mask_image", np.full((8, 8), 0.49, np.float32)).is_empty
    assert not reading.inpainting_mask("mask_image", np.full((8, 8), 0.5, np.float32)).is_empty


@pytest.mark.slow
def test_prepared_mask_is_much_faster_than_the_loop() -> None:
    mask = (np.random.default_rng(2).random((1, 1, 1024, 1024)) < 0.5).astype(np.float32)
    times = []
    for function in (masks.prepare_mask, _loop):
        start = time.process_time()
        result = function(mask)
        times.append(time.process_time() - start)
        del result
    ours, theirs = times
    assert theirs / ours >= FASTER
