"""What the tasks promise beside parity: given noise, latents for pictures, order, batches, callbacks, files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from kandinsky22 import InputError, Pipeline
from kandinsky22.arrays import Array, Floats
from kandinsky22.noise import Generator

from .handmade import GRAPHS, MORE_GRAPHS, write_bundle

SHAPE = (4, 8, 8)
QUICK: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 4, "output_type": "np"}
PRIOR: dict[str, Any] = {"prior_num_inference_steps": 3}
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 50, 70, 3), dtype=np.uint8)
MASKS = np.zeros((3, 50, 70), np.uint8)
for _i in range(3):
    MASKS[_i, 10 : 20 + 9 * _i, 5 : 25 + 12 * _i] = 255


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    folder = write_bundle(tmp_path_factory.mktemp("engines") / "tasks", GRAPHS | MORE_GRAPHS)
    with Pipeline.load(folder, "onnxruntime", threads=1) as loaded:
        yield loaded


def embeds(rows: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((rows, 6)).astype(np.float32)


@pytest.mark.parametrize("task", ["text", "img2img", "inpaint", "controlnet"])
def test_given_latents_are_the_noise_that_a_seed_would_draw(pipe: Pipeline, task: str) -> None:
    options = {**QUICK, "scheduler": "DDIM", "image_embeds": embeds(1)}  # DDIM draws no more
    call = {
        "text": lambda **more: pipe(**options, **more),
        "img2img": lambda **more: pipe.img2img(image=PICTURES[0], strength=0.8, **options, **more),
        "inpaint": lambda **more: pipe.inpaint(image=PICTURES[0], mask_image=MASKS[0], **options, **more),
        "controlnet": lambda **more: pipe.controlnet(hint=PICTURES[0], **options, **more),
    }[task]
    drawn = call(seed=5).images
    given = call(seed=0, latents=Generator(5).randn((1, *SHAPE))).images
    np.testing.assert_array_equal(given, drawn)
    assert np.abs(np.asarray(call(seed=0).images) - np.asarray(drawn)).max() > 0.01


@pytest.mark.parametrize("negative", [None, ["b", "c"]])
def test_given_noise_of_the_prior_goes_row_by_row(pipe: Pipeline, negative: list[str] | None) -> None:
    """Negative prompts' noise is the second half."""
    copies = 1 if negative is None else 2
    noise = embeds(2 * copies)
    together = pipe.embed(["red", "blue"], negative, prior_latents=noise, seed=[1, 2], **PRIOR)
    for i, prompt in enumerate(["red", "blue"]):
        alone = pipe.embed(
            prompt, negative and negative[i], prior_latents=noise[i::2], seed=i + 1, batch_size=1, **PRIOR
        )
        np.testing.assert_allclose(together.image_embeds[i], alone.image_embeds[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(together.negative_image_embeds[i], alone.negative_image_embeds[0], rtol=0, atol=1e-6)
    other = pipe.embed(["red", "blue"], negative, prior_latents=noise[::-1], seed=[1, 2], **PRIOR)
    assert np.abs(other.image_embeds - together.image_embeds).max() > 1e-3


@pytest.mark.parametrize("negative", [None, "b"])
def test_embeddings_from_pictures_do_not_depend_on_the_batch(pipe: Pipeline, negative: str | None) -> None:
    prompts = ["red", "blue", "a"]
    options: dict[str, Any] = {"strength": 0.7, "prior_num_inference_steps": 5}
    pictures = list(PICTURES)
    whole = pipe.emb2emb(prompts, pictures, negative, seed=4, **options)
    parts = pipe.emb2emb(prompts, pictures, negative, seed=4, batch_size=2, **options)
    np.testing.assert_allclose(parts.image_embeds, whole.image_embeds, rtol=0, atol=1e-6)
    np.testing.assert_allclose(parts.negative_image_embeds, whole.negative_image_embeds, rtol=0, atol=1e-6)
    for i, prompt in enumerate(prompts):
        alone = pipe.emb2emb(prompt, PICTURES[i], negative, seed=4 + i, **options)
        np.testing.assert_allclose(whole.image_embeds[i], alone.image_embeds[0], rtol=0, atol=1e-6)


def test_embeddings_stand_for_the_picture_that_they_are_of(pipe: Pipeline) -> None:
    options: dict[str, Any] = {"strength": 0.7, "prior_num_inference_steps": 5, "seed": 0}
    of_picture = pipe.interpolate([PICTURES[0]], [1.0], **PRIOR)
    from_embeds = pipe.emb2emb("red", of_picture.image_embeds, **options)
    np.testing.assert_array_equal(from_embeds.image_embeds, pipe.emb2emb("red", PICTURES[0], **options).image_embeds)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 4])
def test_every_picture_is_as_if_made_alone(pipe: Pipeline, batch_size: int | None) -> None:
    """Three prompts with inputs of their own, two pictures each."""
    prompts = ["red", "blue", "a"]
    inputs: dict[str, Any] = {"num_images_per_prompt": 2, "batch_size": batch_size, "seed": 10, **QUICK, **PRIOR}
    calls = {
        "img2img": lambda p, i, **more: pipe.img2img(p, i[0], strength=0.8, **more),
        "inpaint": lambda p, i, **more: pipe.inpaint(p, i[0], i[1], "b", **more),
        "controlnet": lambda p, i, **more: pipe.controlnet(p, i[1], i[0], strength=0.6, **more),
    }
    for call in calls.values():
        together = np.asarray(call(prompts, (list(PICTURES), list(MASKS)), **inputs).images)
        assert together.shape == (6, 64, 64, 3)
        for n in range(6):
            own: dict[str, Any] = {**QUICK, **PRIOR, "seed": 10 + n}
            alone = call(prompts[n // 2], (PICTURES[n // 2], MASKS[n // 2]), **own).images
            np.testing.assert_allclose(together[n], alone[0], rtol=0, atol=1e-5)


def test_clean_latents_stand_for_the_picture_that_they_are_of(pipe: Pipeline) -> None:
    """The handmade encoder is the mean of 8x8 pixels, and of their channels."""
    blocks = PICTURES[0, :8, :8]
    picture = blocks.repeat(8, axis=0).repeat(8, axis=1)
    small = blocks.transpose(2, 0, 1) / 255
    latents = np.concatenate([small, small.mean(axis=0, keepdims=True)])[None]
    options = {**QUICK, **PRIOR, "strength": 0.5, "seed": 1}
    one, other = (np.asarray(pipe.img2img("a", image, **options).images) for image in (picture, latents))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_a_callback_sees_the_steps_that_are_run(pipe: Pipeline) -> None:
    seen: list[tuple[int, int]] = []

    def note(_: Pipeline, step: int, timestep: int, tensors: dict[str, Array]) -> None:
        assert tensors["latents"].shape == (1, *SHAPE)
        seen.append((step, timestep))

    pipe.img2img("a", PICTURES[0], strength=0.5, callback_on_step_end=note, **QUICK, **PRIOR)
    assert seen == [(0, 250), (1, 0)]
    seen.clear()
    pipe.inpaint("a", PICTURES[0], MASKS[0], callback_on_step_end=note, **QUICK, **PRIOR)
    assert [timestep for _, timestep in seen] == [750, 500, 250, 0]


def test_what_a_mask_keeps_is_the_picture_s_own_latents(pipe: Pipeline) -> None:
    options = {**QUICK, **PRIOR, "seed": 0, "output_type": "latent"}
    picture = PICTURES[0, :48, :64].repeat(2, axis=0)[:64]
    mask = np.zeros((64, 64), np.uint8)
    mask[:16, :16] = 255
    latents = np.asarray(pipe.inpaint("a", picture, mask, **options).images)[0]
    blocks = picture.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(latents[:3, 4:, 4:], blocks[:, 4:, 4:], rtol=0, atol=1e-6)
    assert np.abs(latents[:3, :2, :2] - blocks[:, :2, :2]).max() > 0.05


def test_overlay_leaves_what_each_mask_keeps_untouched(pipe: Pipeline) -> None:
    """Three pictures of the size that is painted, two paintings each: the given bytes where a mask is black."""
    pictures = [picture.repeat(2, axis=0)[:64, :64] for picture in PICTURES]
    masks = [np.pad(mask[:, :64], ((0, 14), (0, 0))) for mask in MASKS]
    options: dict[str, Any] = {**QUICK, **PRIOR, "seed": 2, "num_images_per_prompt": 2, "output_type": "pil"}
    plain = pipe.inpaint(["red", "blue", "a"], pictures, masks, **options).images
    overlaid = pipe.inpaint(["red", "blue", "a"], pictures, masks, overlay=True, batch_size=2, **options).images
    for i, (before, after) in enumerate(zip(plain, overlaid, strict=True)):
        keep = masks[i // 2] == 0
        np.testing.assert_array_equal(np.asarray(after)[keep], pictures[i // 2][keep])
        assert np.abs(np.asarray(after, int)[~keep] - np.asarray(before)[~keep]).max() <= 1
        assert (np.asarray(before)[keep] != pictures[i // 2][keep]).any()


def test_overlay_of_latents_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match=r"^overlay puts pixels back .* latents have none"):
        pipe.inpaint("a", PICTURES[0], MASKS[0], overlay=True, **{**QUICK, "output_type": "latent"})


def test_variations_are_a_mix_of_one(pipe: Pipeline, tmp_path: Path) -> None:
    PIL.Image.fromarray(PICTURES[0]).save(tmp_path / "a.png")
    mixed = pipe.mix([tmp_path / "a.png"], [1.0], seed=3, num_images_per_prompt=2, **QUICK).images
    for image in (str(tmp_path / "a.png"), tmp_path / "a.png", PICTURES[0]):
        varied = pipe.variations(image, seed=3, num_images_per_prompt=2, **QUICK).images
        np.testing.assert_array_equal(varied, mixed)


def test_embeddings_of_one_task_serve_another(pipe: Pipeline) -> None:
    pair = pipe.interpolate(["red", PICTURES[1]], [0.5, 0.5], seed=0, **PRIOR)
    out = pipe.controlnet(image_embeds=pair, hint=PICTURES[0], seed=1, **QUICK)
    assert np.shape(out.images) == (1, 64, 64, 3)
    assert "text_encoder" not in out.timings
