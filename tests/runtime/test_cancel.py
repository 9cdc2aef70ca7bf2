"""Some pictures of a run are cancelled: the others are as they would have been, on every backend and in every task."""

from __future__ import annotations

import gc
import pickle
import shutil
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from kandinsky22 import Cancelled, InputError, Pipeline, Request
from kandinsky22.arrays import Array, Floats
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.callbacks import Callbacks
from kandinsky22.request.merge import merged

from .fake_machines import MACHINES
from .handmade import GRAPHS, MORE_GRAPHS, write_bundle

DRAW = np.random.default_rng(1)
PICTURES = [DRAW.integers(0, 256 - 90 * i, (50, 70, 3), dtype=np.uint8) for i in range(3)]
MASK = np.pad(np.full((20, 30), 255, np.uint8), ((10, 20), (5, 35)))
STEPS, PRIOR_STEPS = 4, 3
QUICK: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_inference_steps": STEPS,
    "prior_num_inference_steps": PRIOR_STEPS,
    "output_type": "latent",
    "seed": 3,
}
THREE = ["red", "blue star", "a"]
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("text2img", {"prompt": THREE}),
    "negative": ("text2img", {"prompt": THREE, "negative_prompt": ["green", "", "star"], "scheduler": "DPM++"}),
    "noise": ("text2img", {"prompt": THREE, "latents": DRAW.standard_normal((3, 4, 8, 8))}),
    "prior's noise": (
        "text2img",
        {"prompt": THREE, "negative_prompt": "green", "prior_latents": DRAW.standard_normal((6, 6))},
    ),
    "half guided": ("text2img", {"prompt": THREE, "guidance_interval": (0.25, 0.75), "scheduler": "DPM++"}),
    "unguided": ("text2img", {"prompt": THREE, "guidance_scale": 1.0, "prior_guidance_scale": 1.0}),
    "prior's picture": (
        "text2img",
        {"prompt": THREE, "prior_image": PICTURES, "prior_strength": 0.7, "prior_num_inference_steps": 5},
    ),  # PRIOR_STEPS of the 5 are run
    "img2img": ("img2img", {"prompt": THREE, "image": PICTURES, "strength": 1.0, "scheduler": "DPM++"}),
    "inpaint": ("inpaint", {"prompt": THREE, "image": PICTURES, "mask_image": MASK, "negative_prompt": "green"}),
    "controlnet": ("controlnet", {"prompt": THREE, "hint": PICTURES}),
    "controlnet from pictures": (
        "controlnet",
        {"prompt": THREE, "hint": PICTURES, "image": PICTURES[::-1], "strength": 1.0},
    ),
    "mix": (
        "mix",
        {
            "images_and_prompts": ["red", PICTURES[0], "star"],
            "negative_prompt": "green",
            "negative_prior_prompt": "a",
            "num_images_per_prompt": 3,
        },
    ),
}
"""Three pictures of each kind."""
FEWER = ("negative", "inpaint")
"""What is run on the backends that take longer."""


class Stop(NamedTuple):
    """The pictures to cancel after a step of the prior or the decoder."""

    where: str
    step: int
    pictures: Sequence[int] | None


class Stopping:
    """Callbacks that cancel, and a record of what they were shown: (where, step, places of the rows)."""

    def __init__(self, *stops: Stop, run: int = 0) -> None:
        """In the prior, the `run`-th run of a blend is meant."""
        self.seen: list[tuple[str, int, list[int]]] = []
        self._stops, self._run = stops, run
        self._runs = -1
        self.callbacks = Callbacks(None, self._called("decoder"), self._called("prior"))

    def _called(self, where: str) -> Callable[..., None]:
        def called(_: Any, step: int, timestep: int, tensors: dict[str, Array]) -> None:
            assert len(tensors["pictures"]) == len(tensors["latents"]) == len(tensors["x0"]) > 0
            self.seen.append((where, step, tensors["pictures"].tolist()))
            self._runs += where == "prior" and step == 0
            for stop in self._stops:
                if (stop.where, stop.step) == (where, step) and (where == "decoder" or self._runs == self._run):
                    raise Cancelled(stop.pictures)

        return called


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("engines") / "tasks", GRAPHS | MORE_GRAPHS)


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(bundle, "onnxruntime", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def whole(pipe: Pipeline) -> dict[str, Floats]:
    """The latents of every task, of which nothing was cancelled."""
    return {name: np.asarray(pipe.run(request(name)).images) for name in TASKS}  # type: ignore[union-attr]


def request(name: str, **more: Any) -> Request:
    task, given = TASKS[name]
    return Request.of(task, **{**QUICK, **given, **more})


def assert_stays(pipe: Pipeline, asked: Request, stopping: Stopping, expected: Floats, stay: Sequence[int]) -> None:
    out = pipe.pictures(pipe.resolve(asked), stopping.callbacks)
    assert out.seeds == [3 + place for place in stay]
    np.testing.assert_allclose(np.asarray(out.images), expected[list(stay)], rtol=0, atol=1e-5)


def assert_all_ways(pipe: Pipeline, name: str, expected: Floats) -> None:
    """Each picture in turn ends at the first, a middle and the last step of the prior and of the decoder."""
    for where, last in (("prior", PRIOR_STEPS - 1), ("decoder", STEPS - 1)):
        for step in (0, 1, last):
            for place in range(3):
                stay = [each for each in range(3) if each != place]
                stopping = Stopping(Stop(where, step, [place]))
                assert_stays(pipe, request(name), stopping, expected, stay)
                after = stopping.seen[[each[:2] for each in stopping.seen].index((where, step)) + 1 :]
                assert after or (where, step) == ("decoder", last)
                for _, _, rows in after:
                    assert rows in (stay, stay * 2)


@pytest.mark.parametrize("name", TASKS)
def test_the_others_are_as_if_nothing_was_cancelled(pipe: Pipeline, whole: dict[str, Floats], name: str) -> None:
    assert np.abs(whole[name][:, None] - whole[name]).max(axis=(2, 3, 4))[~np.eye(3, dtype=bool)].min() > 1e-2
    assert_all_ways(pipe, name, whole[name])


@pytest.mark.parametrize("name", FEWER)
def test_so_they_are_on_openvino(bundle: Path, whole: dict[str, Floats], name: str) -> None:
    pytest.importorskip("openvino")
    with Pipeline.load(bundle, "openvino", precision="fp32", threads=1) as pipe:
        assert_all_ways(pipe, name, whole[name])


@pytest.mark.parametrize("kind", MACHINES)
def test_so_they_are_on_a_device(
    bundle: Path, whole: dict[str, Floats], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    machine = MACHINES[kind](Bundle(copy), monkeypatch)
    with machine.pipeline() as pipe:
        for name in FEWER:
            assert_all_ways(pipe, name, whole[name])
    assert not any(machine.cuda.alive().values())


def test_two_pictures_end_at_once_and_one_after_the_other(pipe: Pipeline, whole: dict[str, Floats]) -> None:
    for name in TASKS:
        for stops in (
            (Stop("decoder", 1, [0, 2]),),
            (Stop("decoder", 0, [2]), Stop("decoder", 1, {0})),
            (Stop("decoder", 1, [0]), Stop("decoder", STEPS - 1, np.array([2]))),
            (Stop("prior", 0, (0,)), Stop("prior", PRIOR_STEPS - 1, [0, 2])),
            (Stop("prior", 1, [2]), Stop("decoder", 2, [0])),
        ):
            assert_stays(pipe, request(name), Stopping(*stops), whole[name], [1])  # type: ignore[arg-type]


@pytest.mark.parametrize("run", [0, 1, 2])
def test_every_run_of_a_blend_s_prior_can_be_the_one(pipe: Pipeline, whole: dict[str, Floats], run: int) -> None:
    for step in range(PRIOR_STEPS):
        assert_stays(pipe, request("mix"), Stopping(Stop("prior", step, [1]), run=run), whole["mix"], [0, 2])


def test_nobody_ends_where_nobody_is_named(pipe: Pipeline, whole: dict[str, Floats]) -> None:
    stopping = Stopping(*(Stop(where, step, []) for where in ("prior", "decoder") for step in range(STEPS)))
    assert_stays(pipe, request("negative"), stopping, whole["negative"], [0, 1, 2])
    assert [step for where, step, _ in stopping.seen if where == "decoder"] == list(range(STEPS))


@pytest.mark.parametrize("pictures", [None, [0, 1, 2], "enough"])
@pytest.mark.parametrize("where", ["prior", "decoder"])
def test_where_none_stays_the_call_ends(pipe: Pipeline, where: str, pictures: Any) -> None:
    stopping = Stopping(Stop(where, 1, pictures))
    with pytest.raises(Cancelled, match="enough" if pictures == "enough" else "asked to stop"):
        pipe.pictures(pipe.resolve(request("text")), stopping.callbacks)
    assert stopping.seen[-1][:2] == (where, 1)


def test_the_last_to_go_ends_the_call(pipe: Pipeline) -> None:
    stopping = Stopping(Stop("prior", 0, [0]), Stop("decoder", 0, [2]), Stop("decoder", 2, [1]))
    with pytest.raises(Cancelled):
        pipe.pictures(pipe.resolve(request("text")), stopping.callbacks)
    assert stopping.seen[-1] == ("decoder", 2, [1])


@pytest.mark.parametrize("place", [3, -1])
def test_a_picture_that_is_not_in_the_call_is_named(pipe: Pipeline, place: int) -> None:
    with pytest.raises(InputError, match=rf"^Cancelled names the picture {place}; expected .* 0 to 2\.$"):
        pipe.pictures(pipe.resolve(request("text")), Stopping(Stop("decoder", 1, [1, place])).callbacks)


def test_embeddings_are_cancelled_too(pipe: Pipeline) -> None:
    asked = Request.of("embed", prompt=THREE, negative_prompt="green", prior_num_inference_steps=PRIOR_STEPS, seed=0)
    job = pipe.resolve(asked)
    every = pipe.embeddings(job)
    for batch_size in (None, 1, 2):
        job = pipe.resolve(asked.with_(batch_size=batch_size))
        some = pipe.embeddings(job, Stopping(Stop("prior", 1, [1])).callbacks)
        np.testing.assert_allclose(some.image_embeds, every.image_embeds[[0, 2]], rtol=0, atol=1e-6)
        np.testing.assert_allclose(some.negative_image_embeds, every.negative_image_embeds[[0, 2]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("where", ["prior", "decoder"])
@pytest.mark.parametrize("name", ["negative", "inpaint", "prior's picture", "prior's noise"])
def test_pictures_of_other_batches_can_be_named(
    pipe: Pipeline, whole: dict[str, Floats], name: str, where: str
) -> None:
    """Those that wait are not begun; those that are finished do not come out."""
    for place in range(3):
        for batch_size in (1, 2):
            stay = [each for each in range(3) if each != place]
            asked = request(name, batch_size=batch_size)
            assert_stays(pipe, asked, Stopping(Stop(where, 1, [place])), whole[name], stay)


def test_merged_jobs_are_cancelled_by_their_places_in_the_whole(pipe: Pipeline, whole: dict[str, Floats]) -> None:
    names = ("text", "negative", "prior's picture")
    job = merged([pipe.resolve(request(name, scheduler="DDPM")) for name in names])
    every = np.asarray(pipe.pictures(job).images)
    for run in range(3):
        for place in (1, 4, 8):
            stay = [each for each in range(9) if each not in (place, 6)]
            stopping = Stopping(Stop("prior", 1, [place]), Stop("decoder", 1, [6]), run=run)
            out = pipe.pictures(job, stopping.callbacks)
            assert out.seeds == [job.seeds[each] for each in stay]
            np.testing.assert_allclose(np.asarray(out.images), every[stay], rtol=0, atol=1e-5)
    np.testing.assert_allclose(every[:3], whole["text"], rtol=0, atol=1e-5)


def test_overlay_puts_back_the_picture_s_own_pixels(pipe: Pipeline) -> None:
    asked = request("inpaint", overlay=True, output_type="np")
    every = np.asarray(pipe.pictures(pipe.resolve(asked)).images)
    assert_stays(pipe, asked, Stopping(Stop("decoder", 1, [1])), every, [0, 2])


def test_what_a_mask_keeps_is_pasted_into_those_that_stay(pipe: Pipeline) -> None:
    """Also over what a callback put there in the last step."""

    def stop_and_erase(_: Any, step: int, timestep: int, tensors: dict[str, Array]) -> dict[str, Array] | None:
        if step == 1 and cancel:
            raise Cancelled(cancel)
        return {"latents": np.zeros_like(tensors["latents"])} if step == STEPS - 1 else None

    job = pipe.resolve(request("inpaint"))
    cancel: list[int] = []
    every = np.asarray(pipe.pictures(job, Callbacks(on_step=stop_and_erase)).images)
    assert np.abs(every).max() > 0.1
    cancel = [0]
    out = pipe.pictures(job, Callbacks(on_step=stop_and_erase))
    np.testing.assert_allclose(np.asarray(out.images), every[1:], rtol=0, atol=1e-5)


# Batches that are handed over


@pytest.mark.parametrize("output_type", ["latent", "np", "pil"])
def test_a_batch_with_a_gap_is_handed_over_in_parts(pipe: Pipeline, output_type: str) -> None:
    asked = request("text", num_images_per_prompt=2, batch_size=3, output_type=output_type)
    job = pipe.resolve(asked)
    every = pipe.pictures(job).images
    handed: list[tuple[int, Any]] = []
    for stops, firsts in (
        ((Stop("decoder", 1, [1]),), [(0, 1), (2, 1), (3, 3)]),
        ((Stop("decoder", 1, [0, 4]),), [(1, 2), (3, 1), (5, 1)]),
        ((Stop("prior", 1, [5, 2]),), [(0, 2), (3, 2)]),
        ((Stop("prior", 1, [0, 1, 2]),), [(3, 3)]),
        ((Stop("decoder", 1, [3, 4, 5]),), [(0, 3)]),
    ):
        handed.clear()
        callbacks = Stopping(*stops).callbacks
        on_batch = Callbacks(None, callbacks.on_step, callbacks.on_prior_step, lambda *batch: handed.append(batch))
        out = pipe.pictures(job, on_batch)
        assert [(first, len(images)) for first, images in handed] == firsts
        stay = [place for first, count in firsts for place in range(first, first + count)]
        assert out.seeds == [3 + place for place in stay]
        for place, one, other in zip(stay, out.images, (each for _, some in handed for each in some), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
            found, expected = (np.asarray(each, np.float32) for each in (one, every[place]))
            np.testing.assert_allclose(found, expected, rtol=0, atol=1 if output_type == "pil" else 1e-5)


def test_who_is_handed_a_batch_may_cancel_what_comes(pipe: Pipeline, whole: dict[str, Floats]) -> None:
    def cancel(first: int, images: Any) -> None:
        if first == 0:
            raise Cancelled([1])

    job = pipe.resolve(request("text", batch_size=1))
    out = pipe.pictures(job, Callbacks(on_batch=cancel))
    assert out.seeds == [3, 5]
    np.testing.assert_allclose(np.asarray(out.images), whole["text"][[0, 2]], rtol=0, atol=1e-5)


# What is left behind


@pytest.mark.parametrize("name", ["negative", "inpaint", "controlnet"])
def test_nothing_of_what_ended_stays_in_memory(pipe: Pipeline, name: str) -> None:
    """Three pictures of 64 x 64 latents, two of which end: a third of the arrays is left at the next step."""
    asked = request(name, height=512, width=512, num_inference_steps=10, scheduler="DDPM")
    kept: list[Cancelled] = []
    sizes: list[int] = []

    def stop(_: Any, step: int, timestep: int, tensors: dict[str, Array]) -> None:
        if step < 3:
            gc.collect()
        sizes.append(tracemalloc.get_traced_memory()[0] - start)
        if step == 1:
            kept.append(Cancelled([0, 2]))
            raise kept[0]

    job = pipe.resolve(asked)
    pipe.pictures(job)  # what is made once is there
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        pipe.pictures(job, Callbacks(on_step=stop))
    finally:
        tracemalloc.stop()
    noise = 4 * 64 * 64 * 4
    assert 33 * noise < sizes[0] < 60 * noise
    assert sizes[2] < sizes[1] / 3 + 2.5 * noise  # latents and x0 that the loop is entered with again are two


@pytest.mark.parametrize("low_memory", [False, True])
def test_the_pipeline_goes_on_after_it(bundle: Path, whole: dict[str, Floats], low_memory: bool) -> None:
    with Pipeline.load(bundle, "onnxruntime", threads=1, low_memory=low_memory) as pipe:
        assert_stays(pipe, request("inpaint"), Stopping(Stop("decoder", 1, [1])), whole["inpaint"], [0, 2])
        assert bool(pipe._components.loaded) != low_memory
        assert_stays(pipe, request("inpaint"), Stopping(), whole["inpaint"], [0, 1, 2])


def test_what_was_cancelled_travels_between_processes() -> None:
    for asked in (Cancelled([2, 0]), Cancelled(), Cancelled("enough")):
        again = pickle.loads(pickle.dumps(asked))
        assert (again.pictures, str(again)) == (asked.pictures, str(asked))
    assert Cancelled([2, 0]).pictures == {0, 2}
    with pytest.raises(TypeError):
        Cancelled([0.5])  # type: ignore[list-item]
