"""The tasks on the command line: what they paint is what `Pipeline` paints, and what is stored makes it again."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import PIL.Image
import pytest
import tqdm

from kandinsky22 import InputError, Pipeline
from kandinsky22.arrays import Array
from kandinsky22.bundle.bundle import MANIFEST
from kandinsky22.components import Run
from kandinsky22.images import depth, writing
from kandinsky22.request.parameters import TASKS as TASKS_OF_REQUESTS
from kandinsky22.schedulers import configs

from .conftest import QUICK, Cli
from .handmade import SCHEDULERS, SKIPPING_GRAPHS, write_bundle

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
    return write_bundle(tmp_path_factory.mktemp("engines") / "tasks", SKIPPING_GRAPHS)


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


TASKS = [
    "interval", "skip", "img2img", "inpaint", "controlnet", "controlnet_img2img", "depth", "mix", "variations",
    "variations_away", "emb2emb", "emb2emb_img2img", "emb2emb_inpaint", "emb2emb_controlnet",
]  # fmt: skip


def commands(inputs: Path) -> dict[str, list[Any]]:
    image, mask, hint = (inputs / name for name in ("fox.png", "mask.png", "hint.png"))
    changed = ["generate", "a red circle", "--prior-image", hint, "--prior-strength", 0.5]
    parts = ["--text=a red circle", "--image", image, "--text=-b", "--weights", "0.5", "0.75", "-0.25"]
    return {
        "interval": ["generate", "a red circle", "--guidance-interval", 0.5, 1],
        "skip": ["generate", "a red circle", "--skip", "Forecast:3", "--steps", 8],
        "img2img": ["generate", "a red circle", "--image", image, "--strength", 0.5],
        "inpaint": ["generate", "a red circle", "--image", image, "--mask", mask, "--negative-prompt", "b"],
        "controlnet": ["generate", "a red circle", "--hint", hint],
        "controlnet_img2img": ["generate", "a red circle", "--hint", hint, "--image", image, "--strength", 0.5],
        "depth": ["generate", "a red circle", "--hint", image, "--depth-model", inputs / "depth.onnx"],
        "mix": ["mix", *parts, "--negative-prompt", "blue"],
        "variations": ["variations", image],
        "variations_away": ["variations", image, "--negative-prompt", "b", "--guidance-interval", 0, 0.5],
        "emb2emb": [*changed, "--negative-prompt", "b"],
        "emb2emb_img2img": [*changed, "--image", image, "--strength", 0.5],
        "emb2emb_inpaint": [*changed, "--image", image, "--mask", mask],
        "emb2emb_controlnet": [*changed, "--hint", hint, "--image", image, "--strength", 0.5],
    }


def expected(pipe: Pipeline, task: str, inputs: Path) -> Array:
    image, mask, hint = (inputs / name for name in ("fox.png", "mask.png", "hint.png"))
    options = {**OPTIONS, "seed": 5}
    without_prior = {name: value for name, value in options.items() if not name.startswith("prior")}

    changed = {"prompt": "a red circle", "prior_image": hint, "prior_strength": 0.5, **options}
    calls = {
        "interval": lambda: pipe("a red circle", guidance_interval=(0.5, 1), **options),
        "skip": lambda: pipe("a red circle", skip="forecast:3", **{**options, "num_inference_steps": 8}),
        "img2img": lambda: pipe.img2img("a red circle", image, strength=0.5, **options),
        "inpaint": lambda: pipe.inpaint("a red circle", image, mask, "b", **options),
        "controlnet": lambda: pipe.controlnet("a red circle", hint, **options),
        "controlnet_img2img": lambda: pipe.controlnet("a red circle", hint, image, strength=0.5, **options),
        "depth": lambda: pipe.controlnet("a red circle", depth.estimate(inputs / "depth.onnx", image), **options),
        "mix": lambda: pipe.mix(["a red circle", image, "-b"], [0.5, 0.75, -0.25], "blue", **options),
        "variations": lambda: pipe.variations(image, **without_prior),
        "variations_away": lambda: pipe.mix([image], [1.0], "b", guidance_interval=(0, 0.5), **options),
        "emb2emb": lambda: pipe(negative_prompt="b", **changed),
        "emb2emb_img2img": lambda: pipe.img2img(image=image, strength=0.5, **changed),
        "emb2emb_inpaint": lambda: pipe.inpaint(image=image, mask_image=mask, **changed),
        "emb2emb_controlnet": lambda: pipe.controlnet(hint=hint, image=image, strength=0.5, **changed),
    }
    return np.asarray(calls[task]().images[0])


@pytest.mark.parametrize("task", TASKS)
def test_the_command_paints_what_the_pipeline_paints_and_tells_how(
    task: str, cli: Cli, bundle: Path, pipe: Pipeline, inputs: Path
) -> None:
    quick = [*QUICK[:4], *QUICK[6:]] if task == "variations" else QUICK  # there, the defaults
    command, *arguments = commands(inputs)[task]
    done = cli(command, bundle, *quick, *arguments, "--seed", 4, "--num-images", 2, "-o", inputs / "out")
    assert (done.code, done.err) == (0, "")
    first, second = map(Path, done.out.splitlines())
    assert (second.name.split("-")[0], second.stem.split("-")[-1]) == (first.name.split("-")[0], "5")
    np.testing.assert_array_equal(pixels(second), expected(pipe, task, inputs))
    assert (pixels(first) != pixels(second)).any()

    stored = writing.read_parameters(second)
    assert TASKS_OF_REQUESTS[stored["task"]].command == command
    line = cli("show", second).out.splitlines()[-1].removeprefix("again").strip()
    program, again, _, *rest = shlex.split(line)
    assert (program, again) == ("kandinsky22", command)
    copy = inputs / "copy.png"
    machine = ("--backend", "onnxruntime", "--threads", "2")
    assert cli(command, bundle, *machine, "-o", copy, *rest) == (0, f"{copy}\n", "")
    np.testing.assert_array_equal(pixels(copy), pixels(second))
    assert writing.read_parameters(copy) == stored


@pytest.mark.parametrize("task", TASKS)
def test_the_progress_bar_counts_the_steps_that_are_run(
    task: str, cli: Cli, bundle: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Bar] = []

    class Bar(tqdm.tqdm):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, total: int, **options: Any) -> None:
            super().__init__(*arguments, total=total, **options)
            self.planned, self.seen = total, 0
            bars.append(self)

        def update(self, n: float | None = 1) -> bool | None:
            self.seen += 1
            return super().update(n)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    command, *arguments = commands(inputs)[task]
    assert cli(command, bundle, *QUICK, *arguments, "--num-images", 2, "-o", inputs / "out").code == 0
    (bar,) = bars
    assert bar.seen == bar.planned


def test_guidance_may_end_early(cli: Cli, bundle: Path, inputs: Path) -> None:
    """On every command, and as far as it is asked for: none, half, all."""
    pictures = {}
    for interval in (("0", "0"), ("0", "0.5"), ("0", "1")):
        out = inputs / f"{interval[1]}.png"
        arguments = (*QUICK, "--seed", 5, "--guidance-interval", *interval, "--scheduler", "ddim", "-o", out)
        assert cli("mix", bundle, "--text", "a", *arguments).code == 0
        assert writing.read_parameters(out)["arguments"]["guidance_interval"] == list(map(float, interval))
        pictures[interval[1]] = pixels(out)
    assert (pictures["0"] != pictures["0.5"]).any()
    assert (pictures["0.5"] != pictures["1"]).any()


def test_a_mixed_prompt_may_be_empty(cli: Cli, bundle: Path, pipe: Pipeline, inputs: Path) -> None:
    done = cli("mix", bundle, *QUICK, "--text", "", "--image", inputs / "fox.png", "--seed", 5, "-o", inputs / "out")
    assert done == (0, f"{inputs / 'out' / 'fox-5.png'}\n", "")
    mixed = pipe.mix(["", inputs / "fox.png"], [0.5, 0.5], **OPTIONS, seed=5).images[0]
    np.testing.assert_array_equal(pixels(inputs / "out" / "fox-5.png"), np.asarray(mixed))


@pytest.mark.parametrize(
    ("task", "encoders"),
    [
        ("emb2emb", ["image_encoder"]),
        ("variations", ["image_encoder"]),
        ("mix", ["image_encoder"]),
        ("img2img", ["movq_encoder"]),
        ("controlnet_img2img", ["movq_encoder", "hint_encoder"]),
        ("emb2emb_inpaint", ["movq_encoder", "image_encoder"]),
    ],
)
def test_pictures_are_encoded_once_and_written_as_they_are_finished(
    task: str, encoders: list[str], cli: Cli, bundle: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use = Run.use
    used: list[str] = []
    saved: list[int] = []

    def noted(self: Run, name: str) -> Any:
        used.append(name)
        saved.append(len(list((inputs / "out").glob("*.png"))))
        return use(self, name)

    monkeypatch.setattr(Run, "use", noted)
    command, *arguments = commands(inputs)[task]
    done = cli(command, bundle, *QUICK, *arguments, "--num-images", 3, "--json", "-o", inputs / "out")
    told = json.loads(done.out)
    assert len(told["pictures"]) == 3
    assert told["timings"]["image_encoder" if "image_encoder" in encoders else "movq_encoder"] > 0
    assert sorted(name for name in used if name in ("image_encoder", "movq_encoder", "hint_encoder")) == sorted(
        encoders
    )
    assert [count for name, count in zip(used, saved, strict=True) if name == "movq_decoder"] == [0, 1, 2]


def test_without_a_strength_the_picture_of_the_prior_has_the_pipeline_s(cli: Cli, bundle: Path, inputs: Path) -> None:
    out = inputs / "out.png"
    arguments = ("a", "--prior-image", inputs / "fox.png", "--size", "64x64", "--steps", 2, "--seed", 5, "-o", out)
    assert cli("generate", bundle, *arguments, "--backend", "onnxruntime").code == 0
    assert writing.read_parameters(out)["arguments"]["prior_strength"] == 0.3
    assert " --prior-strength=0.3 " in cli("show", out).out


@pytest.mark.parametrize(
    ("task", "scheduler"),
    [
        ("interval", "DDPMScheduler"),
        ("img2img", "DDPMScheduler"),
        ("inpaint", "DDIMScheduler"),
        ("controlnet", "DPMSolverMultistepScheduler"),
        ("controlnet_img2img", "DPMSolverMultistepScheduler"),
        ("mix", "DDPMScheduler"),
        ("variations", "DDPMScheduler"),
        ("emb2emb_img2img", "DDPMScheduler"),
        ("emb2emb_inpaint", "DDIMScheduler"),
        ("emb2emb_controlnet", "DPMSolverMultistepScheduler"),
    ],
)
def test_the_scheduler_that_is_told_is_that_of_the_decoder_that_ran(
    task: str, scheduler: str, cli: Cli, inputs: Path
) -> None:
    """A bundle may come from several checkpoints, each with a scheduler of its own."""
    folder = write_bundle(inputs / "bundle", SKIPPING_GRAPHS)
    manifest = json.loads((folder / MANIFEST).read_text())
    for role, name in (("inpaint", "DDIM"), ("controlnet", "DPM++")):
        manifest["schedulers"][role] = dict(configs.switch(SCHEDULERS["decoder"], name))
    (folder / MANIFEST).write_text(json.dumps(manifest))
    command, *arguments = commands(inputs)[task]
    out, named = inputs / "out.png", inputs / "named.png"
    assert cli(command, folder, *QUICK, *arguments, "--seed", 5, "-o", out).code == 0
    assert writing.read_parameters(out)["bundle"]["scheduler"] == scheduler
    assert f" {scheduler} (the checkpoint's own)\n" in cli("show", out).out
    name = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim"}.get(scheduler, "dpm++")
    assert cli(command, folder, *QUICK, *arguments, "--seed", 5, "--scheduler", name, "-o", named).code == 0
    np.testing.assert_array_equal(pixels(out), pixels(named))


@pytest.fixture
def latin(inputs: Path) -> Path:
    """The folder of the inputs once more, in a folder and with names that are no UTF-8."""
    folder = inputs / os.fsdecode(b"Gr\xfc\xdfe")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((inputs / "fox.png").read_bytes())
    return folder


def test_names_of_files_need_not_be_utf_8(cli: Cli, bundle: Path, latin: Path) -> None:
    image = latin / os.fsdecode(b"caf\xe9.png")
    call = ("variations", bundle, image, *QUICK, "--seed", 5, "-o", latin)
    done = cli(*call)
    assert done == (0, f"{latin / 'caf-5.png'}\n".encode(errors="backslashreplace").decode(), "")
    assert writing.read_parameters(latin / "caf-5.png")["arguments"]["image"] == str(image)
    (told,) = json.loads(cli(*call, "--force", "--json").out)["pictures"]
    assert (told["path"], told["prompt"]) == (str(latin / "caf-5.png"), image.stem)
    assert json.loads(cli("show", latin / "caf-5.png", "--json").out)["arguments"]["image"] == str(image)

    shown = cli("show", latin / "caf-5.png")
    assert (shown.code, shown.err) == (0, "")
    line = shown.out.splitlines()[-1].removeprefix("again").strip()
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout.split(
        b"\0"
    )
    assert words[-2] == os.fsencode(image)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"noise": 0}, "returned 'noise'; only 'latents' can be replaced"),
        ({"latents": np.zeros((1, 4, 8, 8)), "x0": np.zeros((1, 4, 8, 8))}, "returned 'x0'; only 'latents'"),
        (np.zeros((1, 4, 8, 8)), "returned ndarray; expected None or {'latents': …}"),
        (True, "returned bool; expected None"),
    ],
)
def test_a_callback_that_returns_what_cannot_be_replaced_is_refused(
    pipe: Pipeline, returned: Any, message: str
) -> None:
    for name in ("callback_on_step_end", "prior_callback_on_step_end"):
        with pytest.raises(InputError, match=message):
            pipe("a", seed=0, **OPTIONS, **{name: lambda *_: returned})


def returning(change: Callable[[dict[str, Array]], Mapping[str, Array] | None]) -> Any:
    return lambda pipe, step, timestep, tensors: change(tensors)


def test_a_callback_may_return_all_that_it_was_given(pipe: Pipeline) -> None:
    """As diffusers' callbacks do."""
    options: dict[str, Any] = {**OPTIONS, "seed": 0, "output_type": "latent"}
    same = pipe("a", callback_on_step_end=returning(lambda tensors: tensors), **options).images
    np.testing.assert_array_equal(same, pipe("a", **options).images)
    halved = returning(lambda tensors: {**tensors, "latents": tensors["latents"] * 0})
    assert not np.asarray(pipe("a", callback_on_step_end=halved, **options).images).any()


def test_overlay_is_the_pipeline_s(cli: Cli, bundle: Path, pipe: Pipeline, inputs: Path) -> None:
    image, mask, out = (inputs / name for name in ("fox.png", "mask.png", "out.png"))
    done = cli("generate", bundle, *QUICK, "a", "--image", image, "--mask", mask, "--overlay", "--seed", 5, "-o", out)
    assert (done.code, done.err) == (0, "")
    painted = pipe.inpaint("a", image, mask, overlay=True, **OPTIONS, seed=5).images[0]
    np.testing.assert_array_equal(pixels(out), np.asarray(painted))
    assert writing.read_parameters(out)["arguments"]["overlay"] is True
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
        (["generate", "a", "--mask", "mask.png"], "--image is missing; expected a path"),
        (["generate", "a", "--image", "fox.png", "--overlay"], "--overlay was given without --mask; give both"),
        (["generate", "a", "--strength", "0.5"], "--strength was given without --image; give both"),
        (
            ["generate", "a", "--image", "fox.png", "--mask", "mask.png", "--strength", "0.5"],
            "inpaint does not use --strength; leave it out",
        ),
        (["generate", "a", "--image", "fox.png", "--mask", "mask.png", "--hint", "hint.png"], "two different tasks"),
        (["generate", "a", "--depth-model", "depth.onnx"], "--depth-model was given without --hint"),
        (["generate", "a", "--prior-strength", "0.5"], "--prior-strength was given without --prior-image"),
        (["generate", "a", "--prior-image", "none.png"], "--prior-image: there is no file none.png"),
        (["generate", "a", "--prior-image", "fox.png", "--prior-strength", "0.03"], "leaves none of 25 steps"),
        (["generate", "a", "--guidance-interval", "0.6", "0.4"], "--guidance-interval is [0.6, 0.4]; expected two"),
        (["generate", "a", "--image", "none.png"], "--image: there is no file none.png"),
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


@pytest.mark.parametrize(
    "option",
    [
        ["--strength", "1.5"], ["--strength", "x"], ["--prior-strength", "-1"], ["--memory-limit", "-1"],
        ["--guidance-interval", "2", "0"],
    ],
)  # fmt: skip
def test_impossible_options_are_refused(option: list[str], cli: Cli, bundle: Path) -> None:
    done = cli("generate", bundle, "a", "--image", "fox.png", *option)
    assert done.code == 2
    assert done.err.startswith(f"error: argument {option[0]}: '{option[1]}' is n")


def test_json_names_the_picture_that_was_varied(cli: Cli, bundle: Path, inputs: Path) -> None:
    done = cli(
        "variations", bundle, inputs / "fox.png", "--size", "64x64", "--steps", 2, "--json", "-o", inputs / "out",
        "--backend", "onnxruntime", "--memory-limit", "none",
    )  # fmt: skip
    told = json.loads(done.out)
    assert [each["prompt"] for each in told["pictures"]] == ["fox"]
    assert {"image_encoder", "decoder_step", "movq_decoder"} <= told["timings"].keys()
