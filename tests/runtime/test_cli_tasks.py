"""The tasks on the command line: what they paint is what `Pipeline` paints, and what is stored makes it again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import PIL.Image
import pytest

from kandinsky22 import Pipeline, depth, images
from kandinsky22.arrays import Array

from .conftest import QUICK, Cli
from .handmade import GRAPHS, MORE_GRAPHS, write_bundle

OPTIONS: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "prior_num_inference_steps": 2}
DEPTH = """
<ir_version: 10, opset_import: ["" : 20]>
depth (float[1,3,H,W] pixel_values) => (float[1,H,W] predicted_depth) {
  axis = Constant <value_ints = [1]> ()
  predicted_depth = ReduceMean <keepdims = 0> (pixel_values, axis)
}
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("engines") / "tasks", GRAPHS | MORE_GRAPHS)


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(bundle, "onnxruntime", threads=2) as loaded:
        yield loaded


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A folder with a picture, a mask, a depth map and a depth model."""
    rng = np.random.default_rng(0)
    PIL.Image.fromarray(rng.integers(0, 256, (48, 80, 3), dtype=np.uint8)).save(tmp_path / "fox.png")
    mask = np.zeros((48, 80), np.uint8)
    mask[8:30, 20:60] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "mask.png")
    PIL.Image.fromarray(rng.integers(0, 65536, (48, 80), dtype=np.uint16)).save(tmp_path / "hint.png")
    onnx.save(onnx.parser.parse_model(DEPTH), tmp_path / "depth.onnx")
    return tmp_path


def pixels(path: Path | str) -> Array:
    with PIL.Image.open(path) as picture:
        return np.asarray(picture)


TASKS = ["img2img", "inpaint", "controlnet", "controlnet_img2img", "depth", "mix", "variations"]


def commands(inputs: Path) -> dict[str, list[Any]]:
    image, mask, hint = (inputs / name for name in ("fox.png", "mask.png", "hint.png"))
    parts = ["--text=a red circle", "--image", image, "--text=-b", "--weights", "0.5", "0.75", "-0.25"]
    return {
        "img2img": ["generate", "a red circle", "--image", image, "--strength", 0.5],
        "inpaint": ["generate", "a red circle", "--image", image, "--mask", mask, "--negative-prompt", "b"],
        "controlnet": ["generate", "a red circle", "--hint", hint],
        "controlnet_img2img": ["generate", "a red circle", "--hint", hint, "--image", image, "--strength", 0.5],
        "depth": ["generate", "a red circle", "--hint", image, "--depth-model", inputs / "depth.onnx"],
        "mix": ["mix", *parts, "--negative-prompt", "blue"],
        "variations": ["variations", image],
    }


def expected(pipe: Pipeline, task: str, inputs: Path) -> Array:
    image, mask, hint = (inputs / name for name in ("fox.png", "mask.png", "hint.png"))
    options = {**OPTIONS, "seed": 5}
    without_prior = {name: value for name, value in options.items() if not name.startswith("prior")}
    calls = {
        "img2img": lambda: pipe.img2img("a red circle", image, strength=0.5, **options),
        "inpaint": lambda: pipe.inpaint("a red circle", image, mask, "b", **options),
        "controlnet": lambda: pipe.controlnet("a red circle", hint, **options),
        "controlnet_img2img": lambda: pipe.controlnet("a red circle", hint, image, strength=0.5, **options),
        "depth": lambda: pipe.controlnet("a red circle", depth.estimate(inputs / "depth.onnx", image), **options),
        "mix": lambda: pipe.mix(["a red circle", image, "-b"], [0.5, 0.75, -0.25], "blue", **options),
        "variations": lambda: pipe.variations(image, **without_prior),
    }
    return np.asarray(calls[task]().images[0])


@pytest.mark.parametrize("task", TASKS)
def test_the_command_paints_what_the_pipeline_paints_and_tells_how(
    task: str, cli: Cli, bundle: Path, pipe: Pipeline, inputs: Path
) -> None:
    quick = [*QUICK[:4], *QUICK[6:]] if task == "variations" else QUICK  # its prior is not run
    command, *arguments = commands(inputs)[task]
    done = cli(command, bundle, *quick, *arguments, "--seed", 4, "--num-images", 2, "-o", inputs / "out")
    assert (done.code, done.err) == (0, "")
    first, second = map(Path, done.out.splitlines())
    assert (second.name.split("-")[0], second.stem.split("-")[-1]) == (first.name.split("-")[0], "5")
    np.testing.assert_array_equal(pixels(second), expected(pipe, task, inputs))
    assert (pixels(first) != pixels(second)).any()

    stored = images.read_parameters(second)
    assert stored["task"] == command
    line = cli("show", second).out.splitlines()[-1].removeprefix("again").strip()
    program, again, _, *rest = shlex.split(line)
    assert (program, again) == ("kandinsky22", command)
    copy = inputs / "copy.png"
    machine = ("--backend", "onnxruntime", "--threads", "2")
    assert cli(command, bundle, *machine, "-o", copy, *rest) == (0, f"{copy}\n", "")
    np.testing.assert_array_equal(pixels(copy), pixels(second))
    assert images.read_parameters(copy) == stored


def test_overlay_is_the_pipeline_s(cli: Cli, bundle: Path, pipe: Pipeline, inputs: Path) -> None:
    image, mask, out = (inputs / name for name in ("fox.png", "mask.png", "out.png"))
    done = cli("generate", bundle, *QUICK, "a", "--image", image, "--mask", mask, "--overlay", "--seed", 5, "-o", out)
    assert (done.code, done.err) == (0, "")
    painted = pipe.inpaint("a", image, mask, overlay=True, **OPTIONS, seed=5).images[0]
    np.testing.assert_array_equal(pixels(out), np.asarray(painted))
    assert images.read_parameters(out)["arguments"]["overlay"] is True
    assert " --overlay " in cli("show", out).out.splitlines()[-1]


def test_a_batch_gives_the_same_pictures(cli: Cli, bundle: Path, inputs: Path) -> None:
    for task in ("inpaint", "mix"):
        command, *arguments = commands(inputs)[task]
        common = (command, bundle, *QUICK, *arguments, "--seed", 1, "--num-images", 3)
        one = cli(*common, "-o", inputs / f"{task}1").out.splitlines()
        two = cli(*common, "-o", inputs / f"{task}2", "--batch-size", 2).out.splitlines()
        for a, b in zip(one, two, strict=True):
            assert np.abs(pixels(a).astype(int) - pixels(b)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "a", "--mask", "mask.png"], "give the picture too, with --image"),
        (["generate", "a", "--image", "fox.png", "--overlay"], "give the mask too, with --mask"),
        (["generate", "a", "--strength", "0.5"], "--strength goes with --image"),
        (["generate", "a", "--image", "fox.png", "--mask", "mask.png", "--strength", "0.5"], "--strength goes with"),
        (["generate", "a", "--image", "fox.png", "--mask", "mask.png", "--hint", "hint.png"], "two different tasks"),
        (["generate", "a", "--depth-model", "depth.onnx"], "give the picture with --hint"),
        (["generate", "a", "--image", "none.png"], "image: there is no file none.png"),
        (["generate", "a", "--hint", "fox.png", "--depth-model", "none.onnx"], "There is no file none.onnx"),
        (["generate", "a", "--hint", "fox.png", "--depth-model", "fox.png"], "fox.png cannot be loaded"),
        (["mix"], "There is nothing to mix; give prompts with --text"),
        (["mix", "--text", "a", "--weights", "1", "2"], "weights has 2 numbers; expected a list of 1"),
        (["variations", "none.png"], "there is no file none.png"),
        (["generate", "a", "--image", "fox.png", "--memory-limit", "0.01"], "the limit is 0.0 GiB"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: list[str], message: str, cli: Cli, bundle: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs)
    command, *rest = arguments
    done = cli(command, bundle, *rest, "--backend", "onnxruntime", "-o", "out/")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize("option", [["--strength", "1.5"], ["--strength", "x"], ["--memory-limit", "-1"]])
def test_impossible_options_are_refused(option: list[str], cli: Cli, bundle: Path) -> None:
    done = cli("generate", bundle, "a", "--image", "fox.png", *option)
    assert done.code == 2
    assert done.err.startswith(f"error: argument {option[0]}: '{option[1]}' is n")


def test_json_names_the_picture_that_was_varied(cli: Cli, bundle: Path, inputs: Path) -> None:
    done = cli(
        "variations", bundle, inputs / "fox.png", "--size", "64x64", "--steps", 2, "--json", "-o", inputs / "out",
        "--backend", "onnxruntime", "--memory-limit", "none",
    )  # fmt: skip
    (told,) = json.loads(done.out)["pictures"]
    assert told["prompt"] == "fox"
    assert {"image_encoder", "decoder_step", "movq_decoder"} <= told["timings"].keys()
