"""The same picture as diffusers from every task that begins from pictures, and as if each were made alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import pytest
from diffusers.image_processor import VaeImageProcessor

from kandinsky22 import Pipeline

from .reference import PROMPT, steps_of_255
from .task_reference import SMALL, TaskCase, TaskReference, everything, mask_of, ours, photograph

LARGEST = 2.0  # of 255
BETWEEN_BATCHES = 1.0  # of 255
BLENDED = 2  # of 255: diffusers blends premultiplied bytes, and rounds them three times


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_same_picture_as_diffusers(shapes_pipe: Pipeline, task_reference: TaskReference, case: TaskCase) -> None:
    _same(shapes_pipe, task_reference, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", everything(), ids=str)
def test_same_picture_as_diffusers_in_every_combination(
    shapes_pipe: Pipeline, task_reference: TaskReference, case: TaskCase
) -> None:
    _same(shapes_pipe, task_reference, case)


@pytest.mark.parametrize("negative", [None, "a green star"])
@pytest.mark.parametrize(("strength", "guidance"), [(0.3, 4.0), (1.0, 1.0)])
def test_same_embeddings_from_a_picture(
    shapes_pipe: Pipeline, task_reference: TaskReference, strength: float, guidance: float, negative: str | None
) -> None:
    case = TaskCase("emb2emb", strength=strength, guidance=guidance, negative_prompt=negative, steps=10, seed=5)
    ours_ = shapes_pipe.emb2emb(
        PROMPT,
        photograph(case.size),
        negative,
        strength=strength,
        prior_num_inference_steps=case.steps,
        prior_guidance_scale=guidance,
        seed=case.seed,
    )
    embeds, negatives = task_reference.emb2emb(case)
    scale = np.abs(embeds).max()
    np.testing.assert_allclose(ours_.image_embeds, embeds, rtol=0, atol=1e-4 * scale)
    np.testing.assert_allclose(ours_.negative_image_embeds, negatives, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("task", ["img2img", "inpaint", "controlnet_img2img", "mix"])
def test_pictures_of_one_call_equal_single_calls(
    shapes_pipe: Pipeline, task_reference: TaskReference, task: str
) -> None:
    together = ours(shapes_pipe, task_reference, TaskCase(task, seed=7), num_images_per_prompt=3, batch_size=2)
    assert together.seeds == [7, 8, 9]
    for i, picture in enumerate(together.images):
        alone = ours(shapes_pipe, task_reference, TaskCase(task, seed=7 + i)).images[0]
        assert steps_of_255(np.asarray(picture), np.asarray(alone)) <= BETWEEN_BATCHES


def test_each_prompt_can_have_its_own_picture_and_mask(shapes_pipe: Pipeline, task_reference: TaskReference) -> None:
    """diffusers pastes the first picture of a call into all of them."""
    options = {"height": 64, "width": 64, "num_inference_steps": 4, "prior_num_inference_steps": 2}
    prompts, pictures = [PROMPT, "a green star"], [photograph((64, 64)), photograph((64, 64), seed=3)]
    masks = [mask_of("middle", (64, 64)), mask_of("corner", (64, 64))]
    together = shapes_pipe.inpaint(prompts, pictures, masks, seed=[3, 9], output_type="np", **options)
    for i, seed in enumerate((3, 9)):
        alone = shapes_pipe.inpaint(prompts[i], pictures[i], masks[i], seed=seed, output_type="np", **options)
        assert steps_of_255(np.asarray(together.images[i]), np.asarray(alone.images[0])) <= BETWEEN_BATCHES


@pytest.mark.parametrize("kind", ["middle", "corner", "speckled", "colours"])
def test_overlay_is_diffusers_own(shapes_pipe: Pipeline, kind: str) -> None:
    """Black and white give the same bytes; grey, which resizing makes of edges, is blended within rounding."""
    options: dict[str, Any] = {"height": 128, "width": 64, "num_inference_steps": 4, "prior_num_inference_steps": 2}
    picture, mask = photograph((128, 64)), mask_of(kind, (128, 64))
    plain, overlaid = (
        shapes_pipe.inpaint(PROMPT, picture, mask, seed=1, overlay=overlay, **options).images[0]
        for overlay in (False, True)
    )
    size = (64, 128)
    white = mask.resize(size, PIL.Image.Resampling.LANCZOS).convert("L")
    given = picture.resize(size, PIL.Image.Resampling.BICUBIC, reducing_gap=1)
    reference = np.asarray(VaeImageProcessor().apply_overlay(white, given, plain), np.int16)
    mine, clear = np.asarray(overlaid), np.isin(white, (0, 255))
    np.testing.assert_array_equal(mine[clear], reference[clear])
    assert np.abs(mine - reference).max() <= BLENDED
    black = np.asarray(white) == 0
    np.testing.assert_array_equal(mine[black], np.asarray(given)[black])
    assert (np.asarray(plain)[black] != np.asarray(given)[black]).any()
    assert black.any()
    assert not clear.all()


def test_overlay_knows_its_picture_in_every_batch(shapes_pipe: Pipeline) -> None:
    """The second batch puts back pixels of its own picture."""
    options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "prior_num_inference_steps": 2}
    pictures, masks = [photograph((64, 64)), photograph((64, 64), seed=3)], [mask_of("corner", (64, 64))] * 2
    call = {"overlay": True, "seed": 1, "batch_size": 1, "output_type": "np", **options}
    whole = shapes_pipe.inpaint([PROMPT, PROMPT], pictures, masks, **call).images
    batches: dict[int, Any] = {}
    shapes_pipe.inpaint([PROMPT, PROMPT], pictures, masks, callback_on_batch_end=batches.__setitem__, **call)
    for i in range(2):
        np.testing.assert_allclose(batches[i][0], whole[i], rtol=0, atol=1e-5)


def test_what_a_mask_keeps_survives_a_callback_that_replaces_the_last_latents(
    shapes_pipe: Pipeline, task_reference: TaskReference
) -> None:
    """diffusers pastes the known part once more after its loop."""
    case = TaskCase("inpaint", steps=4)

    def erased(step: int, latents: Any) -> dict[str, Any]:
        return {"latents": latents * 0} if step == case.steps - 1 else {}

    theirs = task_reference.picture(
        case, callback_on_step_end=lambda _, step, timestep, tensors: erased(step, tensors["latents"])
    )
    mine = ours(
        shapes_pipe,
        task_reference,
        case,
        callback_on_step_end=lambda _, step, timestep, tensors: erased(step, tensors["latents"]),
    ).images[0]
    assert steps_of_255(np.asarray(mine), theirs) <= LARGEST
    plain = ours(shapes_pipe, task_reference, case).images[0]
    assert steps_of_255(np.asarray(mine), np.asarray(plain)) > LARGEST, "the callback changed nothing"


def test_a_mask_that_is_an_array_is_of_the_size_that_is_painted(
    shapes_pipe: Pipeline, task_reference: TaskReference
) -> None:
    """As in the example of diffusers' own pipeline: a picture of any size, a float array as the mask."""
    case = TaskCase("inpaint", steps=4)
    mask = np.zeros(case.size, np.float32)
    mask[8:40, 16:48] = 1
    mine = ours(shapes_pipe, task_reference, case, mask_image=mask).images[0]
    assert steps_of_255(np.asarray(mine), task_reference.picture(case, mask_image=mask)) <= LARGEST


def test_a_mix_of_one_prompt_is_that_prompt(shapes_pipe: Pipeline) -> None:
    """The prior runs for the prompt with the same noise; a weight of 0 changes nothing but the noise after it."""
    options = {"prior_num_inference_steps": 3, "seed": 1}
    plain = shapes_pipe.embed(PROMPT, **options)
    for parts, weights in (([PROMPT], [1.0]), ([PROMPT, photograph((64, 64))], [1, 0])):
        mixed = shapes_pipe.interpolate(parts, weights, **options)
        np.testing.assert_allclose(mixed.image_embeds, plain.image_embeds, rtol=0, atol=1e-6)
        np.testing.assert_allclose(mixed.negative_image_embeds, plain.negative_image_embeds, rtol=0, atol=1e-6)


def _same(pipe: Pipeline, reference: TaskReference, case: TaskCase) -> None:
    mine = np.asarray(ours(pipe, reference, case).images[0])
    theirs = reference.picture(case)
    assert theirs.std() > 0.03, "the reference is a flat picture: nothing is compared"
    assert steps_of_255(mine, theirs) <= LARGEST
