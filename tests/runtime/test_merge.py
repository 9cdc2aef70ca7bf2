"""Jobs that run together: every picture as if its job had run alone, and keys that tell which jobs can."""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import Cancelled, Pipeline, Request
from kandinsky22.arrays import Array, Embeddings, Floats
from kandinsky22.callbacks import Callbacks
from kandinsky22.pipeline import Output
from kandinsky22.request.job import Job
from kandinsky22.request.merge import batch_key, merged

from .handmade import GRAPHS, MORE_GRAPHS, write_bundle

DRAW = np.random.default_rng(0)
PICTURES = [DRAW.integers(0, 256 - 90 * i, (50, 70, 3), dtype=np.uint8) for i in range(3)]
MASKS = [np.pad(np.full((9 + 7 * i, 20), 255, np.uint8), ((10, 31 - 7 * i), (5, 45))) for i in range(3)]
NOISE = DRAW.standard_normal((4, 4, 8, 8)).astype(np.float32)
EMBEDS = Embeddings(*DRAW.standard_normal((2, 2, 6)).astype(np.float32))
QUICK: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 3, "output_type": "np", "seed": 3}
PRIOR: dict[str, Any] = {"prior_num_inference_steps": 3}

SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "prompt": ("text2img", {"prompt": "red", **PRIOR}),
    "prompts": (
        "text2img",
        {"prompt": ["blue", "a star"], "num_images_per_prompt": 2, "seed": [9, 2, 2, 7], **PRIOR},
    ),
    "negative": ("text2img", {"prompt": "green circle", "negative_prompt": "blue", "seed": 5, **PRIOR}),
    "negatives": (
        "text2img",
        {"prompt": ["red", "a"], "negative_prompt": ["", "star"], "seed": 8, **PRIOR},
    ),
    "longer prior": ("text2img", {"prompt": "red star", "prior_num_inference_steps": 5}),
    "faster prior": ("text2img", {"prompt": ["red", "blue star"], "prior_scheduler": "DPM++", **PRIOR}),
    "unguided prior": ("text2img", {"prompt": "red star", "prior_guidance_scale": 1.0, **PRIOR}),
    "prior's noise": ("text2img", {"prompt": "red", "prior_latents": EMBEDS.image_embeds[:1], **PRIOR}),
    "prior's picture": (
        "text2img",
        {"prompt": ["red", "blue"], "prior_image": PICTURES[0], "prior_strength": 0.7, "prior_num_inference_steps": 5},
    ),
    "embeddings": ("text2img", {"image_embeds": EMBEDS, "num_images_per_prompt": 2}),
    "mix": ("mix", {"images_and_prompts": ["red", PICTURES[1], "blue"], "weights": [0.2, 0.5, 0.3], **PRIOR}),
    "mix led away": (
        "mix",
        {
            "images_and_prompts": [PICTURES[1], "blue"],
            "negative_prompt": "star",
            "negative_prior_prompt": "green",
            "num_images_per_prompt": 2,
            **PRIOR,
        },
    ),
    "variations": ("variations", {"image": PICTURES[2], "num_images_per_prompt": 2, **PRIOR}),
}
"""Every kind of source, which all lead the same decoder: task and parameters."""
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "prior's other noise": ("text2img", {"prompt": "a", "prior_latents": EMBEDS.image_embeds[1:], **PRIOR}),
    "prior's other picture": (
        "text2img",
        {"prompt": "a", "prior_image": PICTURES[1], "prior_strength": 0.7, "prior_num_inference_steps": 5},
    ),
}
"""The same with other arrays."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("engines") / "tasks", GRAPHS | MORE_GRAPHS)


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(bundle, "onnxruntime", threads=1) as loaded:
        yield loaded


def job(pipe: Pipeline, task: str, **given: Any) -> Job:
    return pipe.resolve(Request.of(task, **{**QUICK, **given}))


def sources(pipe: Pipeline, **more: Any) -> dict[str, Job]:
    return {name: job(pipe, task, **{**given, **more}) for name, (task, given) in (SOURCES | OTHERS).items()}


def images(output: Output) -> Floats:
    return np.asarray(output.images)


def assert_as_alone(pipe: Pipeline, jobs: Sequence[Job], atol: float = 1e-5) -> None:
    together = pipe.pictures(merged(jobs))
    alone = np.concatenate([images(pipe.pictures(each)) for each in jobs])
    assert together.seeds == [seed for each in jobs for seed in each.seeds]
    np.testing.assert_allclose(images(together), alone, rtol=0, atol=atol)
    assert np.abs(alone[:, None] - alone).max(axis=(2, 3, 4)).max() > 10 * atol


def test_latents_of_any_two_sources_are_as_if_made_alone(pipe: Pipeline) -> None:
    jobs = sources(pipe, output_type="latent", num_inference_steps=2)
    alone = {name: images(pipe.pictures(each)) for name, each in jobs.items()}
    for one, other in itertools.combinations_with_replacement(SOURCES, 2):
        together = pipe.pictures(merged([jobs[one], jobs[other]]))
        expected = np.concatenate([alone[one], alone[other]])
        np.testing.assert_allclose(together.images, expected, rtol=0, atol=1e-5, err_msg=f"{one}, {other}")


@pytest.mark.parametrize(("scheduler", "batch_size"), [("DDPM", None), ("DPM++", None), ("DDPM", 1), ("DPM++", 4)])
def test_pictures_of_all_sources_are_as_if_made_alone(pipe: Pipeline, scheduler: str, batch_size: int | None) -> None:
    assert_as_alone(pipe, list(sources(pipe, scheduler=scheduler, batch_size=batch_size).values()))


@pytest.mark.parametrize("first_noise", ["drawn", "given"])
@pytest.mark.parametrize(
    ("task", "given"),
    [
        ("img2img", {"image": True, "strength": 0.7}),
        ("inpaint", {"image": True, "mask_image": True, "overlay": True}),
        ("controlnet", {"hint": True}),
        ("controlnet", {"hint": True, "image": True, "strength": 0.7}),
    ],
    ids=["img2img", "inpaint", "controlnet", "controlnet from pictures"],
)
def test_pictures_with_inputs_are_as_if_made_alone(
    pipe: Pipeline, task: str, given: dict[str, Any], first_noise: str
) -> None:
    """One input for a job's two pictures, one for each of its two prompts, and one."""
    inputs = {"image": PICTURES, "mask_image": MASKS, "hint": PICTURES[::-1]}

    def asked(of: slice, prompt: str | list[str], each: int, **more: Any) -> Job:
        found = {name: inputs[name][of] if name in inputs else value for name, value in given.items()}
        count = each * (1 if isinstance(prompt, str) else len(prompt))
        if first_noise == "given":
            more["latents"] = NOISE[:count]
        return job(pipe, task, prompt=prompt, num_images_per_prompt=each, num_inference_steps=4, **found, **more)

    assert_as_alone(
        pipe,
        [
            asked(slice(0, 1), "red", 2, **PRIOR),
            asked(slice(1, 3), ["blue", "a"], 2, negative_prompt="star", **PRIOR),
            asked(slice(2, 3), "star", 1, image_embeds=None, prior_num_inference_steps=5),
        ],
    )


def test_an_input_for_several_pictures_is_encoded_once(pipe: Pipeline) -> None:
    jobs = [
        job(pipe, "img2img", prompt="red", image=PICTURES[0], strength=0.7, num_images_per_prompt=3, **PRIOR),
        job(pipe, "img2img", prompt="red", image=PICTURES[1], strength=0.7, **PRIOR),
    ]
    sampling = merged(jobs).sampling
    assert sampling is not None
    assert isinstance(sampling.inputs.images, list)
    assert len(sampling.inputs.images) == 4
    assert len({id(each) for each in sampling.inputs.images}) == 2
    assert_as_alone(pipe, jobs)


def test_clean_latents_are_merged_too(pipe: Pipeline) -> None:
    common: dict[str, Any] = {"prompt": "red", "strength": 0.7, **PRIOR}
    jobs = [job(pipe, "img2img", image=NOISE[i : i + 1], num_images_per_prompt=2, **common) for i in range(2)]
    assert_as_alone(pipe, jobs)


@pytest.mark.parametrize("task", ["embed", "emb2emb", "interpolate"])
def test_embeddings_are_as_if_made_alone(pipe: Pipeline, task: str) -> None:
    options: dict[str, dict[str, Any]] = {
        "embed": {"negative_prompt": "a"},
        "emb2emb": {"image": PICTURES[0], "strength": 0.7},
        "interpolate": {},
    }
    words = ["images_and_prompts" if task == "interpolate" else "prompt"] * 2
    jobs = [
        pipe.resolve(Request.of(task, **{name: text, "seed": i, "prior_num_inference_steps": 5, **options[task]}))
        for i, (name, text) in enumerate(zip(words, (["red"], ["blue"]), strict=True))
    ]
    together = pipe.embeddings(merged(jobs))
    for i, each in enumerate(jobs):
        alone = pipe.embeddings(each)
        np.testing.assert_allclose(together.image_embeds[i], alone.image_embeds[0], rtol=0, atol=1e-6)
        np.testing.assert_allclose(together.negative_image_embeds[i], alone.negative_image_embeds[0], rtol=0, atol=1e-6)


def test_runs_of_the_prior_that_can_be_one_are_one(pipe: Pipeline) -> None:
    names = ["prompt", "negative", "prompts", "longer prior", "prior's noise", "negatives", "prompt"]
    jobs = sources(pipe)
    seen: list[list[int]] = []

    def note(_: Any, step: int, timestep: int, tensors: dict[str, Array]) -> None:
        if step == 0:
            seen.append(tensors["pictures"].tolist())

    together = merged([jobs[name] for name in names])
    pipe.pictures(together, Callbacks(on_prior_step=note))
    assert seen == [[0, 2, 3, 4, 5, 10], [1, 8, 9, 1, 8, 9], [6], [7]]
    assert together.source.steps == 3 + 3 + 5 + 3


def test_a_merged_job_is_merged_again(pipe: Pipeline) -> None:
    jobs = list(sources(pipe).values())
    again = merged([merged(jobs[:4]), jobs[4], merged(jobs[5:])])
    assert again.source.steps == merged(jobs).source.steps
    np.testing.assert_allclose(images(pipe.pictures(again)), images(pipe.pictures(merged(jobs))), rtol=0, atol=1e-5)


def test_one_job_is_merged_to_itself(pipe: Pipeline) -> None:
    alone = sources(pipe)["mix"]
    assert merged([alone]) is alone


def test_a_merged_job_asks_for_the_memory_of_all_its_pictures(pipe: Pipeline) -> None:
    names = ("variations", "prompts", "embeddings")
    whole = merged([sources(pipe)[name] for name in names]).demand
    assert whole.components == ("image_encoder", "text_encoder", "prior_step", "decoder_step", "movq_decoder")
    assert (whole.pictures, whole.at_once, whole.latents) == (2 + 4 + 4, 10, (8, 8))
    in_batches = merged([sources(pipe, batch_size=3)[name] for name in names])
    assert (in_batches.demand.pictures, in_batches.demand.at_once) == (10, 3)
    assert [part.start for part in in_batches.batches] == [0, 3, 6, 9]
    latents = merged([sources(pipe, output_type="latent")[name] for name in names])
    assert latents.components == ("image_encoder", "text_encoder", "prior_step", "decoder_step")


def test_jobs_that_cannot_run_together_are_refused(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="2 jobs were given to merge; expected one or more, all of the same batch_key"):
        merged([job(pipe, "text2img", prompt="a", **PRIOR), job(pipe, "text2img", prompt="a", eta=0, height=128)])
    with pytest.raises(ValueError, match="0 jobs"):
        merged([])


BASE: dict[str, Any] = {"prompt": "a", **PRIOR, "guidance_scale": 3.0, "num_inference_steps": 4}
DIFFERENT: list[tuple[str, dict[str, Any]]] = [
    ("text2img", {"height": 128}),
    ("text2img", {"width": 128}),
    ("text2img", {"num_inference_steps": 5}),
    ("text2img", {"scheduler": "DDIM"}),
    ("text2img", {"scheduler": "DDIM", "eta": 0.5}),
    ("text2img", {"scheduler": {"_class_name": "DDPMScheduler", "beta_end": 0.012, "clip_sample": True}}),
    ("text2img", {"guidance_scale": 3.5}),
    ("text2img", {"guidance_scale": 1.0}),
    ("text2img", {"guidance_interval": (0.0, 0.5)}),
    ("text2img", {"guidance_interval": (0.5, 1.0)}),
    ("text2img", {"latents": NOISE[:1]}),
    ("text2img", {"output_type": "latent"}),
    ("text2img", {"output_type": "pil"}),
    ("text2img", {"batch_size": 1}),
    ("text2img", {"batch_size": 2}),
    ("img2img", {"image": PICTURES[0], "strength": 0.5}),
    ("img2img", {"image": PICTURES[0], "strength": 1.0}),
    ("img2img", {"image": NOISE[:1], "strength": 1.0}),
    ("inpaint", {"image": PICTURES[0], "mask_image": MASKS[0]}),
    ("inpaint", {"image": PICTURES[0], "mask_image": MASKS[0], "overlay": True}),
    ("controlnet", {"hint": PICTURES[0]}),
    ("controlnet", {"hint": PICTURES[0], "image": PICTURES[1], "strength": 1.0}),
]
"""What no two of can run as one."""
ALIKE: list[tuple[str, dict[str, Any]]] = [
    ("text2img", {"prompt": ["b", "c"], "seed": 9, "num_images_per_prompt": 3}),
    ("text2img", {"negative_prompt": "b"}),
    ("text2img", {"prior_num_inference_steps": 7, "prior_guidance_scale": 2}),
    ("text2img", {"prior_scheduler": "DDIM"}),
    ("text2img", {"prior_image": PICTURES[0], "prior_strength": 0.9}),
    ("text2img", {"height": 60, "width": 40}),
    ("text2img", {"guidance_scale": 3}),
    ("text2img", {"scheduler": "DDPM"}),
    ("text2img", {"eta": 0.0}),
    ("text2img", {"callback_on_step_end": print, "callback_on_batch_end": print}),
]
"""What can run as one with BASE."""


def test_the_key_has_what_a_run_of_the_decoder_shares_and_nothing_else(pipe: Pipeline) -> None:
    base = batch_key(job(pipe, "text2img", **BASE))
    assert re.fullmatch("[0-9a-f]{64}", base)
    keys = [batch_key(job(pipe, task, **{**BASE, **given})) for task, given in DIFFERENT]
    same = [i for i, key in enumerate([base, *keys]) if [base, *keys].count(key) > 1]
    assert not same, [DIFFERENT[i - 1] for i in same]
    for task, given in ALIKE:
        assert batch_key(job(pipe, task, **{**BASE, **given})) == base, given


def test_without_guidance_its_scale_is_not_in_the_key(pipe: Pipeline) -> None:
    one, other = (batch_key(job(pipe, "text2img", **{**BASE, "guidance_scale": scale})) for scale in (1, 0.5))
    assert one == other


def test_a_run_from_noise_and_one_from_a_picture_have_different_keys(pipe: Pipeline) -> None:
    found = job(pipe, "img2img", prompt="a", image=PICTURES[0], strength=1.0, **PRIOR)
    assert found.sampling is not None
    inputs = dataclasses.replace(found.sampling.inputs, strength=None)
    from_noise = dataclasses.replace(found, sampling=dataclasses.replace(found.sampling, inputs=inputs))
    assert batch_key(from_noise) != batch_key(found)


def test_keys_of_inputs_do_not_depend_on_what_they_show(pipe: Pipeline) -> None:
    for task, given in {
        "img2img": ({"image": PICTURES[i], "strength": 0.5} for i in (0, 1)),
        "inpaint": ({"image": PICTURES[i], "mask_image": MASKS[i]} for i in (0, 1)),
        "controlnet": ({"hint": PICTURES[i]} for i in (0, 1)),
    }.items():
        one, other = (batch_key(job(pipe, task, **{**BASE, **each})) for each in given)
        assert one == other


def test_embeddings_have_keys_of_their_own(pipe: Pipeline) -> None:
    def key(task: str, **given: Any) -> str:
        return batch_key(pipe.resolve(Request.of(task, **{**PRIOR, **given})))

    one = key("embed", prompt="a")
    assert one == key("embed", prompt=["b", "c"], seed=4) == key("embed", prompt="a", prior_scheduler="UnCLIP")
    others = [
        key("embed", prompt="a", negative_prompt="b"),
        key("embed", prompt="a", prior_num_inference_steps=4),
        key("embed", prompt="a", prior_scheduler="DPM++"),
        key("embed", prompt="a", prior_scheduler="DDIM"),
        key("embed", prompt="a", prior_guidance_scale=2.0),
        key("embed", prompt="a", batch_size=1),
        key("emb2emb", prompt="a", image=PICTURES[0], strength=1.0),
        key("interpolate", images_and_prompts=["a"]),
        batch_key(job(pipe, "text2img", **BASE)),
    ]
    assert len({one, *others}) == 1 + len(others)


def test_keys_are_equal_in_every_process(pipe: Pipeline, bundle: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from kandinsky22 import Request;"
        "from kandinsky22.bundle.bundle import Bundle; from kandinsky22.request.resolve import resolve;"
        "from kandinsky22.request.merge import batch_key;"
        "request = Request.of('text2img', prompt='a', scheduler='DPM++ Karras');"
        "print(batch_key(resolve(request, Bundle(Path(sys.argv[1])).manifest)))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    ran = subprocess.run([sys.executable, "-c", program, bundle], env=environment, capture_output=True, check=True)
    here = batch_key(pipe.resolve(Request.of("text2img", prompt="a", scheduler="DPM++ Karras")))
    assert ran.stdout.decode().split() == [here]


@pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])
def test_real_networks_run_together_and_go_on_without_what_is_cancelled(
    shapes_bundle: Path, shapes_pipe: Pipeline, backend: str
) -> None:
    """Two tasks' pictures in one run, of which one is cancelled: the others differ by rounding from those alone."""
    common = {**QUICK, "num_inference_steps": 2, "prior_num_inference_steps": 2}

    def stop(_: Any, step: int, timestep: int, tensors: dict[str, Array]) -> None:
        if step == 0:
            raise Cancelled([0])

    pipe = shapes_pipe if backend == "onnxruntime" else Pipeline.load(shapes_bundle, backend, precision="fp32")
    jobs = [
        job(pipe, "variations", image=PICTURES[0], **common),
        job(pipe, "text2img", prompt="a blue ring", negative_prompt="red", **{**common, "seed": 8}),
    ]
    together = merged([*jobs, jobs[0]])
    whole = images(pipe.pictures(together))
    alone = [images(pipe.pictures(each))[0] for each in jobs]
    np.testing.assert_allclose(whole, [alone[0], alone[1], alone[0]], rtol=0, atol=1 / 255)
    out = pipe.pictures(together, Callbacks(on_step=stop))
    assert out.seeds == [8, 3]
    np.testing.assert_allclose(out.images, [alone[1], alone[0]], rtol=0, atol=1 / 255)
    if pipe is not shapes_pipe:
        pipe.close()
