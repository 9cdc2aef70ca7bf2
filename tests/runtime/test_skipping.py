"""Which steps are skipped, what a forecast is made of, and what is refused."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BundleError, Cancelled, InputError, Pipeline, Request
from kandinsky22.arrays import Array
from kandinsky22.backends.onnxruntime.cpu import OnnxRuntimeComponent
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.reading import export_command
from kandinsky22.request.merge import batch_key, merged
from kandinsky22.request.resolve import guided_parts, resolve
from kandinsky22.request.skipping import forecast_steps, shallow_steps
from kandinsky22.sampling import forecast

from .handmade import DECODER_STEP, SHALLOW_GRAPHS, SKIPPING_GRAPHS, write_bundle

QUICK: dict[str, Any] = {"height": 64, "width": 64, "prior_num_inference_steps": 2, "output_type": "latent", "seed": 3}
ALL = (0.0, 1.0)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(write_bundle(tmp_path_factory.mktemp("engines") / "skipping", SKIPPING_GRAPHS))


@pytest.fixture(scope="module")
def pipe(bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(bundle.path, "onnxruntime", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def shallow_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(write_bundle(tmp_path_factory.mktemp("engines") / "shallow", SHALLOW_GRAPHS))


@pytest.fixture(scope="module")
def shallow_pipe(shallow_bundle: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(shallow_bundle.path, "onnxruntime", threads=1) as loaded:
        yield loaded


# Which steps


@pytest.mark.parametrize(
    ("steps", "interval", "guided", "forecast"),
    [
        (12, 2, ALL, (4, 6, 8)),
        (13, 2, ALL, (4, 6, 8, 10)),
        (12, 3, ALL, (4, 5, 7, 8)),
        (12, 1000, ALL, (4, 5, 6, 7, 8, 9)),
        (7, 2, ALL, (4,)),
        (6, 2, ALL, ()),
        (1, 2, ALL, ()),
        (20, 2, ALL, (4, 6, 8, 10, 12, 14, 16)),  # 13 of 20 are computed
        (12, 2, (0, 0.5), (4, 8)),  # guidance ends before step 6: 6 and 7 are computed
        (12, 3, (0.25, 0.75), (5, 7, 8)),  # it begins at 3 and ends before 9
        (12, 2, (0, 0.75), (4, 6, 8)),
    ],
)
def test_the_first_four_one_in_n_the_last_two_and_two_at_a_change_are_computed(
    steps: int, interval: int, guided: tuple[float, float], forecast: tuple[int, ...]
) -> None:
    assert forecast_steps(guided_parts(steps, 4.0, guided), interval) == forecast


@pytest.mark.parametrize(
    ("steps", "interval", "guided", "shallow"),
    [
        (7, 2, ALL, (1, 3, 5)),
        (8, 3, ALL, (1, 2, 4, 5, 7)),
        (4, 1000, ALL, (1, 2, 3)),
        (1, 2, ALL, ()),
        (8, 3, (0, 0.5), (1, 2, 5, 6)),  # guidance ends before step 4, which is computed
        (8, 3, (0.125, 0.5), (2, 3, 5, 6)),  # it begins at 1
    ],
)
def test_the_first_step_of_each_part_and_one_in_n_are_whole(
    steps: int, interval: int, guided: tuple[float, float], shallow: tuple[int, ...]
) -> None:
    assert shallow_steps(guided_parts(steps, 4.0, guided), interval) == shallow


@pytest.mark.parametrize("guided", [ALL, (0, 0.5), (0.2, 0.7), (0.5, 1)])
@pytest.mark.parametrize("interval", [2, 3, 7])
def test_every_forecast_has_two_computed_steps_of_its_own_part_before_it(
    interval: int, guided: tuple[float, float]
) -> None:
    for steps in range(1, 60):
        parts = guided_parts(steps, 4.0, guided)
        skipped = forecast_steps(parts, interval)
        for step in skipped:
            (part,) = (part for part, _ in parts if part.start <= step < part.stop)
            assert len(set(range(part.start, step)) - set(skipped)) >= 2
        assert not set(skipped) & {*range(4), steps - 2, steps - 1}


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each role runs from now on, on ONNX Runtime."""
    runs: Counter[str] = Counter()
    run = OnnxRuntimeComponent.run

    def counting(self: OnnxRuntimeComponent, feeds: Mapping[str, Array]) -> dict[str, Array]:
        runs[str(self.component.role)] += 1
        return run(self, feeds)

    monkeypatch.setattr(OnnxRuntimeComponent, "run", counting)
    return runs


@pytest.mark.parametrize(
    ("skip", "more", "calls"),
    [
        ("none", {}, (20, 0)),
        ("forecast", {}, (13, 7)),
        ("forecast:2", {}, (13, 7)),
        ("forecast:4", {}, (9, 11)),  # 0 to 3, 7, 11, 15, 18, 19
        ("forecast", {"guidance_interval": (0, 0.5)}, (14, 6)),  # 10 and 11 are computed
    ],
)
def test_the_network_is_called_as_often_as_said(
    pipe: Pipeline, skip: str, more: dict[str, Any], calls: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = counted(monkeypatch)
    pipe("red", num_inference_steps=20, skip=skip, **more, **QUICK)
    assert (runs["decoder"], runs["decoder_forecast"]) == calls


# What a forecast is


@pytest.mark.parametrize("interval", [2, 3, 5])
def test_an_output_that_is_linear_in_the_timestep_is_forecast_exactly(interval: int) -> None:
    timesteps = np.array([999, 970, 800, 640, 633, 500, 480, 300, 299, 250, 120, 60, 20, 1])
    skipped = forecast_steps(guided_parts(len(timesteps), 1.0, ALL), interval)
    kept: dict[str, float] = dict.fromkeys(forecast.KEPT, np.nan)
    weights = forecast.weights(timesteps, skipped)
    for timestep, leg, (first, second) in zip(timesteps, forecast.legs(len(timesteps), skipped), weights, strict=True):
        output = 3 - 0.01 * float(timestep)
        if leg.graph == 0:
            kept.update(dict.fromkeys(leg.keeps, output))
            assert first == second == 0
        else:
            assert first * kept["model_0"] + second * kept["model_1"] == pytest.approx(output, abs=1e-5)


LINEAR = {
    **SKIPPING_GRAPHS,
    "decoder_step": SKIPPING_GRAPHS["decoder_step"]
    .replace("sum = Sum (latents, pulled, late)", "none = Sub (latents, latents)\n  sum = Sum (none, pulled, late)")
    .replace("m = Tanh (sum)", "m = Identity (sum)"),
}
"""A network that sees no latents: what it gives is linear in the timestep."""


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpm++", "dpm++-karras"])
@pytest.mark.parametrize("skip", ["forecast", "forecast:3", "forecast:5"])
def test_of_a_linear_network_nothing_is_lost(tmp_path: Path, scheduler: str, skip: str) -> None:
    path = write_bundle(tmp_path / "linear", LINEAR)
    asked = {"num_inference_steps": 17, "scheduler": scheduler, **QUICK}
    with Pipeline.load(path, "onnxruntime", threads=1) as pipe:
        whole = np.asarray(pipe("red", **asked).images)
        np.testing.assert_allclose(pipe("red", skip=skip, **asked).images, whole, rtol=1e-4, atol=1e-4)


def test_two_steps_at_one_timestep_have_no_slope() -> None:
    """As Karras' noise levels have them in a run of many steps: the later one is taken as it is."""
    weights = forecast.weights(np.array([30, 20, 20, 10]), (3,))
    np.testing.assert_array_equal(weights, [[0, 0], [0, 0], [0, 0], [1, 0]])
    with_slope = forecast.weights(np.array([30, 20, 10]), (2,))
    np.testing.assert_array_equal(with_slope, [[0, 0], [0, 0], [-1, 2]])


# Batches, cancelled pictures, callbacks

PROMPTS = ["red", "blue star", "a"]
PICTURES = [np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8) for i in range(3)]
MASK = np.pad(np.full((20, 30), 255, np.uint8), ((10, 34), (5, 29)))
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("text2img", {"prompt": PROMPTS, "scheduler": "DPM++"}),
    "half guided": ("text2img", {"prompt": PROMPTS, "guidance_interval": (0, 0.5)}),
    "inpaint": ("inpaint", {"prompt": PROMPTS, "image": PICTURES, "mask_image": MASK}),
    "controlnet": ("controlnet", {"prompt": PROMPTS, "hint": PICTURES}),
}


def asked_for(name: str, skip: str, **more: Any) -> Request:
    task, given = TASKS[name]
    return Request.of(task, **given, num_inference_steps=12, skip=skip, **QUICK, **more)


BOTH = pytest.mark.parametrize("skip", ["forecast", "shallow"])


@BOTH
@pytest.mark.parametrize("name", TASKS)
def test_pictures_together_equal_each_alone(shallow_pipe: Pipeline, name: str, skip: str) -> None:
    pipe = shallow_pipe
    together = pipe.run(asked_for(name, skip)).images  # type: ignore[union-attr]
    in_parts = pipe.run(asked_for(name, skip, batch_size=2)).images  # type: ignore[union-attr]
    np.testing.assert_allclose(in_parts, together, rtol=1e-5, atol=1e-5)
    task, given = TASKS[name]
    for i, picture in enumerate(together):
        alone = {key: value[i] if isinstance(value, list) else value for key, value in given.items()}
        request = Request.of(task, **alone, num_inference_steps=12, skip=skip, **{**QUICK, "seed": QUICK["seed"] + i})
        np.testing.assert_allclose(pipe.run(request).images[0], picture, rtol=1e-5, atol=1e-5)  # type: ignore[union-attr]


@BOTH
@pytest.mark.parametrize("step", range(12))
@pytest.mark.parametrize("name", TASKS)
def test_pictures_that_are_not_cancelled_are_as_they_would_have_been(
    shallow_pipe: Pipeline, name: str, step: int, skip: str
) -> None:
    """What is kept stays theirs, whichever rows are left out after whichever kind of step."""
    pipe = shallow_pipe
    whole = np.asarray(pipe.run(asked_for(name, skip)).images)  # type: ignore[union-attr]

    def cancel(_: Any, reached: int, timestep: int, tensors: dict[str, Array]) -> None:
        if reached == step:
            raise Cancelled([0] if step % 2 else [1])

    request = asked_for(name, skip, callback_on_step_end=cancel)
    output = getattr(pipe, "__call__" if request.task.name == "text2img" else request.task.name)(**request.given)
    stay = [1, 2] if step % 2 else [0, 2]
    np.testing.assert_allclose(output.images, whole[stay], rtol=1e-5, atol=1e-5)


def test_a_callback_is_told_each_step_as_ever(pipe: Pipeline) -> None:
    told: list[tuple[int, int, tuple[str, ...]]] = []

    def look(_: Any, step: int, timestep: int, tensors: dict[str, Array]) -> None:
        told.append((step, timestep, tuple(tensors)))

    asked = {"num_inference_steps": 12, "callback_on_step_end": look, **QUICK}
    pipe("red", skip="forecast", **asked)
    pipe("red", **asked)
    assert told[:12] == told[12:]
    assert [step for step, _, _ in told] == [*range(12)] * 2


def test_a_callback_that_replaces_latents_is_followed(pipe: Pipeline) -> None:
    """The forecast after it begins from the new latents; what it is made of stays. By NumPy, over one forecast step."""
    seen: dict[int, dict[str, Array]] = {}

    def erase(_: Any, step: int, timestep: int, tensors: dict[str, Array]) -> Mapping[str, Array]:
        seen[step] = {name: array.copy() for name, array in tensors.items()}
        return {"latents": tensors["latents"] * 0} if step == 3 else {}

    asked = {"num_inference_steps": 12, "scheduler": "ddim", "skip": "forecast", **QUICK}
    pipe("red", callback_on_step_end=erase, **asked)
    sampling = pipe.resolve(Request.of("text2img", prompt="red", **asked)).sampling
    assert sampling is not None
    a_x, a_m, b_0, b_x, b_m, b_h, *_ = sampling.schedule.coefficients[4]
    assert a_x != 0
    plain: dict[int, dict[str, Array]] = {}
    pipe("red", callback_on_step_end=lambda _, step, timestep, tensors: plain.update({step: tensors}), **asked)
    floor = sampling.schedule.thresholding.floor
    model = (plain[4]["latents"] - b_0 * plain[4]["x0"] - b_x * plain[3]["latents"] - b_h * plain[3]["x0"]) / b_m
    x0 = np.clip(a_m * model, -floor, floor)  # of the little graph, which looks for no quantile
    np.testing.assert_allclose(seen[4]["x0"], x0, rtol=1e-3, atol=1e-3)


# Jobs


def job(bundle: Bundle, task: str = "text2img", **given: Any) -> Any:
    return resolve(Request.of(task, **{"prompt": "red", "num_inference_steps": 12, **QUICK, **given}), bundle.manifest)


def test_a_job_says_which_component_takes_which_steps(bundle: Bundle) -> None:
    for task, given, name in (
        ("text2img", {}, "decoder_forecast"),
        ("inpaint", {"image": PICTURES[0], "mask_image": MASK}, "decoder_forecast_inpaint"),
        ("controlnet", {"hint": PICTURES[0]}, "decoder_forecast_controlnet"),
    ):
        found = job(bundle, task, skip="forecast", output_type="pil", **given)
        assert (found.sampling.skip.component, found.sampling.skip.steps) == (name, (4, 6, 8))
        assert found.components[-3].startswith("decoder_step")
        assert found.components[-2:] == (name, "movq_decoder")
        assert found.steps == job(bundle, task, **given).steps
        assert job(bundle, task, **given).sampling.skip is None


def test_shallow_steps_are_of_the_decoder_s_own_component(shallow_bundle: Bundle) -> None:
    for task, given, name in (
        ("text2img", {}, "decoder_step_shallow"),
        ("inpaint", {"image": PICTURES[0], "mask_image": MASK}, "decoder_step_shallow_inpaint"),
        ("controlnet", {"hint": PICTURES[0]}, "decoder_step_shallow_controlnet"),
    ):
        found = job(shallow_bundle, task, skip="shallow:4", output_type="pil", **given)
        assert (found.sampling.skip.kind, found.sampling.skip.component) == ("shallow", name)
        assert found.sampling.skip.steps == (1, 2, 3, 5, 6, 7, 9, 10, 11)
        assert found.components[-2:] == (name, "movq_decoder")


def test_steps_of_a_run_that_strength_shortens_are_counted_from_its_first(bundle: Bundle) -> None:
    found = job(bundle, "img2img", image=PICTURES[0], strength=0.7, skip="forecast", num_inference_steps=12)
    assert len(found.sampling.schedule.timesteps) == 8
    assert found.sampling.skip.steps == (4,)


def test_jobs_that_skip_alike_run_together_and_others_do_not(shallow_bundle: Bundle, shallow_pipe: Pipeline) -> None:
    bundle, pipe = shallow_bundle, shallow_pipe
    skips = ("none", "forecast", "forecast:3", "shallow", "shallow:2")
    assert len({batch_key(job(bundle, skip=skip)) for skip in skips}) == 5
    assert batch_key(job(bundle, skip="forecast")) == batch_key(job(bundle, skip="forecast:2", prompt="a", seed=8))
    each = [job(bundle, skip="forecast", prompt=prompt, seed=seed) for prompt, seed in (("red", 3), ("a", 9))]
    both = merged(each)
    assert both.components == each[0].components
    for picture, alone in zip(pipe.pictures(both).images, each, strict=True):
        np.testing.assert_allclose(picture, pipe.pictures(alone).images[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "one_form"),
    [
        ("none", "none"),
        ("forecast", "forecast:2"),
        ("forecast:2", "forecast:2"),
        ("forecast:0012", "forecast:12"),
        ("shallow", "shallow:3"),
        ("shallow:5", "shallow:5"),
    ],
)
def test_what_is_asked_for_has_one_form(given: str, one_form: str) -> None:
    request = Request.of("text2img", prompt="a", skip=given)
    assert request.parameters["skip"] == one_form
    assert Request.from_json(request.to_json()).parameters["skip"] == one_form


# Refusals


@pytest.mark.parametrize(
    "skip",
    ["", "all", "forecast:", "forecast:1", "forecast:1001", "forecast:-2", "forecast:2.5", "forecast:²", "none:2",
     "Forecast", "forecast:" + "9" * 5000, "shallow:", "shallow:1", "shallow:x", "shallow2", None, 3, True],
)  # fmt: skip
def test_anything_else_is_refused(skip: object) -> None:
    with pytest.raises(
        InputError, match=r"^skip is .*; expected none, forecast or shallow, the latter two with :N where"
    ):
        Request.of("text2img", prompt="a", skip=skip)


@pytest.mark.parametrize(
    ("task", "given", "steps"),
    [
        ("text2img", {"num_inference_steps": 6}, 6),
        ("img2img", {"image": PICTURES[0], "strength": 0.5}, 6),
        ("text2img", {"num_inference_steps": 8, "guidance_interval": (0, 0.5)}, 8),
    ],
)
def test_where_no_step_can_be_forecast_it_is_refused(bundle: Bundle, task: str, given: Any, steps: int) -> None:
    message = (
        f"skip leaves none of {steps} steps out, as forecast:2: the first 4 and the last 2 are computed, and 2 where "
        "guidance begins or ends; ask for more steps, or for none."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        job(bundle, task, skip="forecast", **given)


def test_a_bundle_that_was_exported_before_names_the_command(handmade_bundle: Bundle) -> None:
    with pytest.raises(
        BundleError,
        match=r"^The bundle handmade has no component for the role 'decoder_forecast', which skip forecast:2 needs: it "
        r"was exported without, or by an older version; export it again: kandinsky22-export SOURCE --max-size 512 -o "
        r"handmade --force$",
    ):
        job(handmade_bundle, skip="forecast")
    assert job(handmade_bundle).components[-1] == "decoder_step"


def test_a_run_of_one_step_has_none_that_is_shallow(shallow_bundle: Bundle) -> None:
    message = (
        "skip leaves none of 1 steps out, as shallow:3: the first is computed, and one where guidance begins or ends; "
        "ask for more steps, or for none."
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        job(shallow_bundle, skip="shallow", num_inference_steps=1)


def test_a_bundle_without_shallow_steps_names_the_command(bundle: Bundle, shallow_bundle: Bundle) -> None:
    with pytest.raises(
        BundleError,
        match=r"^The bundle handmade has no component for the role 'decoder_shallow', which skip shallow:3 needs: it "
        r"was exported without, or by an older version; export it again: kandinsky22-export SOURCE --max-size 512 -o "
        r"handmade --force --shallow$",
    ):
        job(bundle, skip="shallow")
    again = export_command(dataclasses.asdict(shallow_bundle.manifest), Path("handmade"))
    assert again == "kandinsky22-export SOURCE --shallow --max-size 512 -o handmade --force"


@pytest.mark.parametrize(
    ("graphs", "message"),
    [
        (
            {"decoder_step": SKIPPING_GRAPHS["decoder_step"]},
            "components.decoder_step.outputs are latents_next, x0, model, expected features too, since the bundle has "
            "a component for the role 'decoder_shallow'",
        ),
        (
            {
                "decoder_step_shallow": SHALLOW_GRAPHS["decoder_step_shallow"].replace(
                    "float[G,B,4,h,w] features", "float[B,G,4,h,w] features"
                )
            },
            "components.decoder_step_shallow.inputs lack features as they are in components.decoder_step.outputs",
        ),
    ],
)
def test_a_shallow_step_over_other_features_is_refused(graphs: dict[str, str], message: str, tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "other", {**SHALLOW_GRAPHS, **graphs})
    with pytest.raises(BundleError, match=re.escape(message)):
        Bundle(path)


def test_a_forecast_of_a_decoder_that_keeps_its_output_to_itself_is_refused(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "silent", {**SKIPPING_GRAPHS, "decoder_step": DECODER_STEP})
    with pytest.raises(
        BundleError, match=r"components\.decoder_step\.outputs are latents_next, x0, expected model too, since the"
    ):
        Bundle(path)
