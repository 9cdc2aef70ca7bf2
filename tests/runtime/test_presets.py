"""Presets: a name for several parameters, which what is given beside it overrules, and which no record keeps."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from kandinsky22 import InputError, Pipeline
from kandinsky22.arrays import Embeddings
from kandinsky22.images import writing
from kandinsky22.request import parameters, presets
from kandinsky22.request import request as request_module
from kandinsky22.request.kinds import PRIOR_SCHEDULERS, SCHEDULERS
from kandinsky22.request.parameters import PARAMETERS, TASKS
from kandinsky22.request.presets import PRESETS
from kandinsky22.request.request import Request

from .conftest import Cli
from .handmade import SKIPPING_GRAPHS, write_bundle

SMALL: dict[str, Any] = {"height": 64, "width": 64}
MACHINE = ("--size", "64x64", "--backend", "onnxruntime", "--threads", 1)
PICTURE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
MASK = np.kron([[0, 1], [1, 0]], np.ones((32, 32))).astype(np.float32)
INPUTS: dict[str, dict[str, Any]] = {
    "text2img": {"prompt": "a"},
    "img2img": {"prompt": "a", "image": PICTURE, "strength": 0.5},
    "inpaint": {"prompt": "a", "image": PICTURE, "mask_image": MASK},
    "controlnet": {"prompt": "a", "hint": PICTURE},
    "mix": {"images_and_prompts": ["a", PICTURE]},
    "variations": {"image": PICTURE},
    "embed": {"prompt": "a"},
    "emb2emb": {"prompt": "a", "image": PICTURE},
    "interpolate": {"images_and_prompts": ["a", PICTURE]},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("engines") / "tasks", SKIPPING_GRAPHS)


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(bundle, "onnxruntime", threads=1) as loaded:
        yield loaded


OF_PRIOR = {name: value for name, value in PRESETS["fast"].items() if PARAMETERS[name].part == "prior"}
"""What a preset sets of the prior."""


def test_every_value_is_one_that_its_parameter_takes_in_its_one_form() -> None:
    for values in PRESETS.values():
        assert set(values) == presets.SET
        for name, value in values.items():
            assert PARAMETERS[name].kind.check(name, value) == value
            assert PARAMETERS[name].flag
            assert PARAMETERS[name].stored
            assert not PARAMETERS[name].beside
        assert values["scheduler"] in (None, *SCHEDULERS)
        assert values["prior_scheduler"] in (None, *PRIOR_SCHEDULERS)


def test_the_same_is_what_is_computed_when_nothing_is_asked_for() -> None:
    for task in TASKS.values():
        for name in presets.SET & set(task.parameters()):
            assert PRESETS["same"][name] == task.default(name)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("task", TASKS)
def test_a_request_has_a_preset_s_values_and_not_its_name(task: str, preset: str) -> None:
    taken = {name: value for name, value in PRESETS[preset].items() if name in TASKS[task].parameters()}
    request = Request.of(task, preset=preset, **INPUTS[task])
    assert request.given == {**request.given, **taken}
    assert set(request.given) == {*INPUTS[task], *taken}
    assert request.parameters["preset"] is None
    assert request.to_json() == Request.of(task, **INPUTS[task], **taken).to_json()
    assert Request.from_json(json.loads(json.dumps(request.to_json()))).to_json() == request.to_json()


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.makes_pictures])
def test_a_preset_paints_what_its_values_paint_in_every_task(task: str, pipe: Pipeline) -> None:
    method = pipe if task == "text2img" else getattr(pipe, task)
    asked = {**INPUTS[task], **SMALL, "seed": 3, "output_type": "np"}
    made = {preset: method(**asked, preset=preset).images for preset in PRESETS}
    for preset, pictures in made.items():
        np.testing.assert_array_equal(pictures, method(**asked, **PRESETS[preset]).images)
    np.testing.assert_array_equal(made["same"], method(**asked).images)
    assert (made["same"] != made["fastest"]).any()


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if not task.makes_pictures])
def test_embeddings_take_what_a_preset_says_of_the_prior(task: str, pipe: Pipeline) -> None:
    asked = {**INPUTS[task], "seed": 3}
    made = getattr(pipe, task)(**asked, preset="fast").image_embeds
    np.testing.assert_array_equal(made, getattr(pipe, task)(**asked, **OF_PRIOR).image_embeds)
    assert (made != getattr(pipe, task)(**asked).image_embeds).any()


def test_a_preset_says_nothing_of_the_prior_where_embeddings_are_given(pipe: Pipeline) -> None:
    embeddings = pipe.embed("a", seed=1)
    request = Request.of("text2img", image_embeds=embeddings, preset="fast")
    assert not request.given.keys() & OF_PRIOR.keys()
    assert pipe.resolve(request).sampling is not None
    assert OF_PRIOR.items() <= Request.of("text2img", prompt="a", preset="fast").given.items()
    assert isinstance(embeddings, Embeddings)


def test_trained_pictures_of_a_preset_are_those_of_its_values_to_the_bit(shapes_pipe: Pipeline) -> None:
    asked: dict[str, Any] = {"prompt": "a red ring", "seed": 5, "height": 64, "width": 64, "output_type": "np"}
    for preset, values in PRESETS.items():
        np.testing.assert_array_equal(shapes_pipe(**asked, preset=preset).images, shapes_pipe(**asked, **values).images)


@pytest.mark.parametrize(
    "beside",
    [
        {"num_inference_steps": 3},
        {"num_inference_steps": 50},
        {"scheduler": None},
        {"guidance_interval": (0, 1), "scheduler": "DDIM"},
        {"guidance_scale": 2.0},
    ],
)
def test_what_is_given_beside_a_preset_wins_also_where_it_is_the_default(beside: dict[str, Any]) -> None:
    request = Request.of("text2img", prompt="a", preset="fastest", **beside)
    assert dict(request.given) == {"prompt": "a", **PRESETS["fastest"], **beside}


def test_a_preset_takes_the_place_of_what_presets_set_before() -> None:
    fast = Request.of("text2img", prompt="a", preset="fast", seed=1)
    for preset, values in PRESETS.items():
        assert dict(fast.with_(preset=preset).given) == {"prompt": "a", "seed": 1, **values}
    assert fast.with_(preset="fastest", num_inference_steps=9).given["num_inference_steps"] == 9
    assert fast.with_(preset=None).to_json() == fast.to_json() == fast.with_().to_json()


def test_no_preset_is_nothing() -> None:
    assert Request.of("text2img", prompt="a", preset=None).given == {"prompt": "a"}


@pytest.mark.parametrize("preset", ["", "faster", "FAST", 3, True, ["fast"], {}])
def test_what_is_no_preset_is_one_sentence(preset: Any) -> None:
    for call in (Request.of, lambda task, **given: Request.of(task).with_(**given)):
        with pytest.raises(InputError, match=r"^preset is .*; expected one of same, fast, fastest\.$"):
            call("text2img", preset=preset)
    with pytest.raises(InputError, match=r"^preset is .*; expected one of same, fast, fastest\.$"):
        Request.from_json({"task": "text2img", "preset": preset})


def test_stored_requests_do_not_change_with_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = json.dumps(Request.of("text2img", prompt="a", preset="fast").to_json())
    monkeypatch.setattr(request_module, "PRESETS", {"fast": {"num_inference_steps": 1}})
    again = Request.from_json(json.loads(stored))
    assert again.given["num_inference_steps"] == PRESETS["fast"]["num_inference_steps"]
    assert parameters.PARAMETERS["preset"].kind.schema == {"enum": ["same", "fast", "fastest", None]}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("command", ["generate", "mix", "variations"])
def test_a_picture_of_a_preset_tells_its_values_and_is_made_again(
    command: str, preset: str, cli: Cli, bundle: Path, tmp_path: Path
) -> None:
    PIL.Image.fromarray(PICTURE).save(tmp_path / "fox.png")
    subject = {
        "generate": ["a red ring"],
        "mix": ["--text", "a red ring", "--image", tmp_path / "fox.png", "--weights", 0.5, 0.5],
        "variations": [tmp_path / "fox.png"],
    }[command]
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    done = cli(command, bundle, *MACHINE, "--preset", preset, "--seed", 5, "-o", one, *subject)
    assert (done.code, done.err) == (0, "")
    told = writing.read_parameters(one)
    assert "preset" not in told["arguments"]
    for name, value in PRESETS[preset].items():
        assert told["arguments"].get(name) == (list(value) if isinstance(value, tuple) else value)
    line = cli("show", one).out.splitlines()[-1].removeprefix("again").strip()
    _, _, _, *rest = shlex.split(line)
    assert cli(command, bundle, "-o", two, *MACHINE[2:], *rest).code == 0
    assert writing.read_parameters(two) == told
    assert one.read_bytes() == two.read_bytes()


def test_a_flag_beside_a_preset_wins(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    words = ("--preset", "fast", "--steps", 2, "-o", tmp_path / "a.png")
    assert cli("generate", bundle, "a", *words, *MACHINE).code == 0
    told = writing.read_parameters(tmp_path / "a.png")["arguments"]
    assert (told["num_inference_steps"], told["scheduler"]) == (2, "dpm++-karras")


def test_an_unknown_preset_is_one_line(cli: Cli, bundle: Path) -> None:
    done = cli("generate", bundle, "a", "--preset", "faster")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "argument --preset: invalid choice: 'faster' (choose from " in done.err


def test_presets_are_compared(cli: Cli, bundle: Path, pipe: Pipeline, tmp_path: Path) -> None:
    """Each side its own; the head of the sheet says values, and none where there is none to say."""
    sides = ("--first=--preset same", "--second", "--preset fast")
    done = cli("compare", bundle, "--prompt", "a", *sides, *MACHINE, "--seed", 1, "-o", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    for name, preset in (("first", "same"), ("second", "fast")):
        expected = pipe("a", seed=1, preset=preset, **SMALL).images[0]
        with PIL.Image.open(tmp_path / "out" / f"1-{name}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), np.asarray(expected))
    both = ("--preset", "fastest", "--second=--preset=fast --steps 3")
    done = cli("compare", bundle, "--prompt", "a", *both, *MACHINE, "--seed", 1, "-o", tmp_path / "both")
    assert (done.code, done.err) == (0, "")
    told = json.loads((tmp_path / "both" / "comparison.json").read_text())
    steps = [told[side]["arguments"]["num_inference_steps"] for side in ("first", "second")]
    assert steps == [PRESETS["fastest"]["num_inference_steps"], 3]


def test_the_head_of_a_sheet_says_values_and_none_where_there_is_none() -> None:
    from kandinsky22.cli import flags

    assert flags.words("scheduler", None) == []
    assert flags.words("scheduler", "ddim") == ["--scheduler=ddim"]
