"""Masks of inpainting against diffusers' own loop."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from diffusers.pipelines.kandinsky2_2 import pipeline_kandinsky2_2_inpainting as diffusers_inpainting
from torch.nn import functional

from kandinsky22.arrays import Floats
from kandinsky22.images import masks

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
