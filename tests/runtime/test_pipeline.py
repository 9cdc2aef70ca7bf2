"""What `Pipeline` promises beside the picture itself: seeds, embeddings, callbacks, stopping, memory, refusals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BackendError, BundleError, Cancelled, InputError, Pipeline, batching
from kandinsky22.arrays import Array
from kandinsky22.backends.onnxruntime.cpu import OnnxRuntimeComponent
from kandinsky22.bundle.bundle import Bundle

PROMPT = "a large red circle in the middle of a blue background"
QUICK: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 3, "prior_num_inference_steps": 2}


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(shapes_pipe: Pipeline) -> None:
    one, again, other = (shapes_pipe(PROMPT, seed=seed, output_type="np", **QUICK).images for seed in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert np.abs(np.asarray(one) - np.asarray(other)).max() > 0.05


def test_without_a_seed_the_seed_that_was_drawn_is_told(shapes_pipe: Pipeline) -> None:
    first = shapes_pipe(PROMPT, output_type="np", **QUICK)
    second = shapes_pipe(PROMPT, output_type="np", **QUICK)
    assert first.seeds != second.seeds
    again = shapes_pipe(PROMPT, seed=first.seeds[0], output_type="np", **QUICK)
    np.testing.assert_array_equal(first.images, again.images)


def test_a_list_of_seeds_gives_each_picture_its_own(shapes_pipe: Pipeline) -> None:
    out = shapes_pipe(PROMPT, seed=[9, 2], num_images_per_prompt=2, output_type="np", **QUICK)
    assert out.seeds == [9, 2]
    alone = shapes_pipe(PROMPT, seed=2, output_type="np", **QUICK)
    np.testing.assert_allclose(np.asarray(out.images)[1], np.asarray(alone.images)[0], atol=1 / 255)


def test_embeddings_can_be_kept_and_used_again(shapes_pipe: Pipeline) -> None:
    embeddings = shapes_pipe.embed([PROMPT, "a green star"], "blue", prior_num_inference_steps=2, seed=3)
    wide = shapes_pipe.bundle.manifest.geometry.embedding_dim
    assert embeddings.image_embeds.shape == embeddings.negative_image_embeds.shape == (2, wide)
    options = {"height": 64, "width": 64, "num_inference_steps": 3, "seed": 1, "output_type": "np"}
    pair = shapes_pipe(image_embeds=embeddings, **options)
    arrays = shapes_pipe(
        image_embeds=embeddings.image_embeds, negative_image_embeds=embeddings.negative_image_embeds, **options
    )
    np.testing.assert_array_equal(pair.images, arrays.images)
    against_zero = shapes_pipe(image_embeds=embeddings.image_embeds, **options)
    assert np.abs(np.asarray(against_zero.images) - np.asarray(pair.images)).max() > 0.01


def test_without_a_negative_prompt_the_negative_embedding_is_the_zero_image_s(shapes_pipe: Pipeline) -> None:
    embeddings = shapes_pipe.embed(PROMPT, prior_num_inference_steps=2, num_images_per_prompt=2, seed=0)
    zero = shapes_pipe.bundle.constants()["zero_image_embeds"]
    np.testing.assert_array_equal(embeddings.negative_image_embeds, np.repeat(zero, 2, axis=0))


def test_latents_are_what_the_pixels_come_from(shapes_pipe: Pipeline) -> None:
    latents = np.asarray(shapes_pipe(PROMPT, seed=0, output_type="latent", **QUICK).images)
    assert latents.shape == (1, 4, 8, 8)
    assert latents.dtype == np.float32


def test_batch_size_changes_nothing_but_memory(shapes_pipe: Pipeline) -> None:
    options = {"seed": 4, "num_images_per_prompt": 3, "output_type": "np", **QUICK}
    whole = np.asarray(shapes_pipe(PROMPT, **options).images)
    parts = np.asarray(shapes_pipe(PROMPT, batch_size=2, **options).images)
    np.testing.assert_allclose(parts, whole, atol=1 / 255)


@pytest.mark.parametrize("output_type", ["pil", "np", "latent"])
def test_batches_are_handed_over_as_they_are_finished(shapes_pipe: Pipeline, output_type: Any) -> None:
    events: list[Any] = []
    options: dict[str, Any] = {"seed": 4, "num_images_per_prompt": 3, "batch_size": 2, "output_type": output_type}
    out = shapes_pipe(
        PROMPT,
        callback_on_step_end=lambda pipe, step, timestep, tensors: events.append(step),
        callback_on_batch_end=lambda first, images: events.append((first, images)),
        **options,
        **QUICK,
    )
    steps = [*range(QUICK["num_inference_steps"])]
    assert [event if isinstance(event, int) else event[0] for event in events] == [*steps, 0, *steps, 2]
    handed = [picture for event in events if not isinstance(event, int) for picture in event[1]]
    at_once = shapes_pipe(PROMPT, **options, **QUICK).images
    for one, other, whole in zip(handed, out.images, at_once, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(np.asarray(one, np.float32), np.asarray(whole, np.float32), atol=1e-3)


def test_pictures_go_through_movq_in_even_parts(handmade_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend may compile for each number of pictures: four where three fit are twice two, not three and one."""
    given: list[int] = []
    run = OnnxRuntimeComponent.run

    def watched(component: OnnxRuntimeComponent, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if set(feeds) == {"latents"}:
            given.append(len(feeds["latents"]))
        return run(component, feeds)

    monkeypatch.setattr(OnnxRuntimeComponent, "run", watched)
    four = {**QUICK, "seed": 0, "num_images_per_prompt": 4, "output_type": "np"}
    with Pipeline.load(handmade_bundle.path, "onnxruntime") as pipe:
        together = pipe("a circle", **four).images
        monkeypatch.setattr(batching, "PIXELS_AT_ONCE", 3 * 64 * 64)
        in_parts = pipe("a circle", **four).images
    assert given == [4, 2, 2]
    np.testing.assert_allclose(in_parts, together, atol=1e-5)


def test_low_memory_frees_every_stage_and_gives_the_same_picture(shapes_bundle: Path, shapes_pipe: Pipeline) -> None:
    frugal = Pipeline.load(shapes_bundle, "onnxruntime", low_memory=True)
    out = frugal(PROMPT, seed=5, output_type="np", **QUICK)
    assert not frugal._components._loaded
    np.testing.assert_array_equal(out.images, shapes_pipe(PROMPT, seed=5, output_type="np", **QUICK).images)


def test_a_closed_pipeline_loads_again(shapes_bundle: Path) -> None:
    with Pipeline.load(shapes_bundle, "onnxruntime") as pipe:
        first = pipe(PROMPT, seed=5, output_type="np", **QUICK).images
    assert not pipe._components._loaded
    np.testing.assert_array_equal(pipe(PROMPT, seed=5, output_type="np", **QUICK).images, first)


def test_timings_name_every_stage_and_add_up(shapes_bundle: Path) -> None:
    with Pipeline.load(shapes_bundle, "onnxruntime") as pipe:
        timings = pipe(PROMPT, seed=0, **QUICK).timings
        assert set(timings) == {"load", "text_encoder", "prior_step", "decoder_step", "movq_decoder", "total"}
        stages = sum(seconds for name, seconds in timings.items() if name != "total")
        assert 0.5 * timings["total"] < stages <= timings["total"]
        assert "load" not in pipe(PROMPT, seed=0, **QUICK).timings


def test_callbacks_see_every_step_with_latents_and_x0(shapes_pipe: Pipeline) -> None:
    seen: list[tuple[str, int, int]] = []
    last: dict[str, Array] = {}

    def watch(name: str) -> Any:
        def callback(pipe: Pipeline, step: int, timestep: int, tensors: dict[str, Array]) -> None:
            assert pipe is shapes_pipe
            seen.append((name, step, timestep))
            last.update(tensors)

        return callback

    latents = shapes_pipe(
        PROMPT,
        seed=0,
        output_type="latent",
        callback_on_step_end=watch("decoder"),
        prior_callback_on_step_end=watch("prior"),
        **QUICK,
    ).images
    assert [(name, step) for name, step, _ in seen] == [("prior", 0), ("prior", 1)] + [("decoder", i) for i in range(3)]
    assert [timestep for name, _, timestep in seen if name == "prior"] == [999, 0]
    np.testing.assert_array_equal(last["latents"], latents)
    assert last["x0"].shape == last["latents"].shape


def test_a_callback_may_replace_the_latents(shapes_pipe: Pipeline) -> None:
    def zero(pipe: Pipeline, step: int, timestep: int, tensors: dict[str, Array]) -> Mapping[str, Array]:
        return {"latents": np.zeros_like(tensors["latents"])}

    latents = shapes_pipe(PROMPT, seed=0, output_type="latent", callback_on_step_end=zero, **QUICK).images
    assert not np.asarray(latents).any()


def test_a_callback_that_returns_another_shape_is_refused(shapes_pipe: Pipeline) -> None:
    def wrong(pipe: Pipeline, step: int, timestep: int, tensors: dict[str, Array]) -> Mapping[str, Array]:
        return {"latents": np.zeros((1, 2, 3))}

    with pytest.raises(InputError, match=r"returned latents \(1, 2, 3\); expected \(1, 4, 8, 8\)"):
        shapes_pipe(PROMPT, seed=0, callback_on_step_end=wrong, **QUICK)


@pytest.mark.parametrize("low_memory", [False, True])
def test_cancelling_stops_at_once_and_leaves_the_pipeline_usable(shapes_bundle: Path, low_memory: bool) -> None:
    steps = []

    def stop(pipe: Pipeline, step: int, timestep: int, tensors: dict[str, Array]) -> None:
        steps.append(step)
        if step == 1:
            raise Cancelled("enough")

    with Pipeline.load(shapes_bundle, "onnxruntime", low_memory=low_memory) as pipe:
        with pytest.raises(Cancelled, match="enough"):
            pipe(PROMPT, seed=0, callback_on_step_end=stop, **QUICK)
        assert steps == [0, 1]
        assert bool(pipe._components._loaded) != low_memory
        assert pipe(PROMPT, seed=0, **QUICK).images


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 0}, "height is 0; expected a whole number from 1 to"),
        ({"width": 100000}, "width is 100000"),
        ({"height": "big"}, "height is 'big'"),
        ({"height": 64.5}, "height is 64.5"),
        ({"width": True}, "width is True"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001"),
        ({"prior_num_inference_steps": 0}, "prior_num_inference_steps is 0"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"prior_guidance_scale": -1}, "prior_guidance_scale is -1"),
        ({"prompt": []}, "prompt is \\[\\]; expected a string, or a list of at least one string"),
        ({"prompt": [1]}, "prompt is \\[1\\]"),
        ({"prompt": None}, "prompt is None"),
        ({"negative_prompt": ["a", "b"]}, "expected None, a string, or a list of 1 strings"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0 to 9223372036854775807"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"seed": 2**63 - 1, "num_images_per_prompt": 2}, "seed of the last picture"),
        ({"seed": [1, 2, 3]}, "seed has 3 values for 1 pictures"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"scheduler": "euler"}, "(?i)euler"),
        ({"scheduler": {"_class_name": "DDPMScheduler", "no_such_option": 1}}, "no_such_option"),
        ({"eta": 2.0, "scheduler": "DDIM"}, "eta"),
        ({"output_type": "pt"}, "output_type is 'pt'; expected one of pil, np, latent"),
        ({"image_embeds": np.zeros((1, 96), np.float32)}, "Both a prompt and image_embeds"),
        ({"prompt": None, "image_embeds": np.zeros((1, 5), np.float32)}, "image_embeds has shape \\(1, 5\\)"),
        ({"prompt": None, "image_embeds": np.full((1, 96), np.nan, np.float32)}, "not finite"),
    ],
)
def test_impossible_arguments_are_named(shapes_pipe: Pipeline, arguments: dict[str, Any], message: str) -> None:
    quick = {name: value for name, value in QUICK.items() if "image_embeds" not in arguments or "prior" not in name}
    with pytest.raises(InputError, match=message):
        shapes_pipe(**{"prompt": PROMPT, "seed": 0, **quick, **arguments})


def test_an_unknown_backend_and_an_impossible_precision_are_named(shapes_bundle: Path) -> None:
    with pytest.raises(BackendError, match="There is no backend 'torch'; choose one of auto"):
        Pipeline.load(shapes_bundle, "torch")
    with pytest.raises(InputError, match="precision is 'int4'"):
        Pipeline.load(shapes_bundle, precision="int4")
    pipe = Pipeline.load(shapes_bundle, "onnxruntime", precision="bf16")
    with pytest.raises(BackendError, match="no bf16"):
        pipe(PROMPT, seed=0, **QUICK)


def test_from_pretrained_opens_a_bundle_as_load_does(handmade_bundle: Bundle) -> None:
    with Pipeline.from_pretrained(handmade_bundle.path, "onnxruntime", threads=1) as pipe:
        assert pipe.backend.name == "onnxruntime"
        assert pipe.precision == "fp32"
        assert pipe("a", **QUICK).images
    with pytest.raises(BundleError, match="is not a folder"):
        Pipeline.from_pretrained("kandinsky-community/kandinsky-2-2-decoder")


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        Pipeline.load(tmp_path)
    with pytest.raises(BundleError, match="is not a folder"):
        Pipeline.load(tmp_path / "nowhere")
