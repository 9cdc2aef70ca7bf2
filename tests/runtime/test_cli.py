"""`kandinsky22 generate` and `show`: names, formats, what is told, and the same picture again from what it tells."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import kandinsky22
from kandinsky22 import Pipeline
from kandinsky22.cli.main import COMMANDS
from kandinsky22.images import writing

from .conftest import QUICK, Cli

PROMPT = "a large red circle in the middle of a blue background"


def pixels(path: Path | str) -> np.ndarray[Any, Any]:
    with PIL.Image.open(path) as picture:
        return np.asarray(picture)


def test_every_prompt_makes_pictures_named_by_prompt_and_seed(cli: Cli, shapes_bundle: Path, tmp_path: Path) -> None:
    done = cli(
        "generate", shapes_bundle, "A red, red circle!", *QUICK, "круг 🐱", "-o", tmp_path / "new/er", "--num-images=2",
        "--seed", 7,
    )  # fmt: skip
    names = ["a-red-red-circle-7.png", "a-red-red-circle-8.png", "круг-9.png", "круг-10.png"]
    paths = [tmp_path / "new/er" / name for name in names]
    assert done == (0, "".join(f"{path}\n" for path in paths), "")
    assert set(paths) == set((tmp_path / "new/er").iterdir())
    stored = [writing.read_parameters(path)["arguments"] for path in paths]
    assert [each["seed"] for each in stored] == [7, 8, 9, 10]
    assert [each["prompt"] for each in stored] == ["A red, red circle!"] * 2 + ["круг 🐱"] * 2
    assert len({pixels(path).tobytes() for path in paths}) == 4


def test_a_picture_can_be_made_again_from_what_it_tells(
    cli: Cli, shapes_bundle: Path, shapes_pipe: Pipeline, tmp_path: Path
) -> None:
    options = (
        "--scheduler", "DDIM", "--eta", 0.5, "--guidance", 2.5, "--negative-prompt=-b", "--seed", 5,
        "--prior-scheduler", "DPM++",
    )  # fmt: skip
    assert cli("generate", shapes_bundle, *QUICK, *options, "-o", tmp_path, "--num-images", 2, "--", "-a 'b'").code == 0
    first, second = (tmp_path / f"a-b-{seed}.png" for seed in (5, 6))
    told = json.loads(cli("show", second, "--json").out)
    assert told == writing.read_parameters(second)
    (again,) = shapes_pipe(**told["arguments"]).images
    np.testing.assert_array_equal(again, pixels(second))

    line = cli("show", second).out.splitlines()[-1].removeprefix("again").strip()
    program, command, _, *rest = shlex.split(line)
    assert (program, command) == ("kandinsky22", "generate")
    copy = tmp_path / "copy.png"
    assert cli("generate", shapes_bundle, "-o", copy, *QUICK[-4:], *rest).code == 0
    np.testing.assert_array_equal(pixels(copy), pixels(second))
    assert writing.read_parameters(copy) == told
    assert (pixels(first) != pixels(second)).any()


def test_what_is_stored_names_the_bundle_and_what_ran_it(cli: Cli, shapes_bundle: Path, tmp_path: Path) -> None:
    assert cli("generate", shapes_bundle, PROMPT, *QUICK, "-o", tmp_path / "a.png").code == 0
    told = writing.read_parameters(tmp_path / "a.png")
    assert told["kandinsky22"] == kandinsky22.__version__
    assert told["backend"]["name"] == "onnxruntime"
    assert told["backend"]["precision"] == "fp32"
    manifest = json.loads((shapes_bundle / "manifest.json").read_text())
    assert told["bundle"]["name"] == manifest["name"]
    assert told["bundle"]["source"] == manifest["source"]
    assert len(told["bundle"]["manifest_sha256"]) == 64
    shown = cli("show", tmp_path / "a.png")
    assert (shown.code, shown.err) == (0, "")
    for text in (PROMPT, str(told["arguments"]["seed"]), told["bundle"]["manifest_sha256"], "the checkpoint's own"):
        assert text in shown.out


@pytest.mark.parametrize(("suffix", "form"), [("png", "png"), ("jpg", "jpeg"), ("webp", "webp")])
def test_show_reads_every_format(suffix: str, form: str, cli: Cli, shapes_pipe: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{suffix}"
    writing.save(PIL.Image.new("RGB", (8, 8)), path, {"arguments": {"prompt": '"quoted" круг 🐱'}})
    shown = cli("show", path)
    assert (shown.code, shown.err) == (0, "")
    assert '"quoted" круг 🐱' in shown.out
    assert json.loads(cli("show", path, "--json").out)["arguments"]["prompt"] == '"quoted" круг 🐱'


def test_show_of_a_picture_that_does_not_tell_is_one_sentence(cli: Cli, tmp_path: Path) -> None:
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    for name, reason in (("a.png", "does not say"), ("b.png", "cannot be read"), ("c.png", "No such file")):
        done = cli("show", tmp_path / name)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith("error: ")
        assert reason in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ({"task": "mix"}, "its arguments, which were edited since, lack images_and_prompts and weights"),
        ({"task": "mix", "arguments": {"images_and_prompts": [], "weights": 1}}, "lack weights;"),
        ({"task": "variations", "arguments": {"prompt": "a"}}, "lack image;"),
        ({"arguments": [1, 2]}, "lack prompt;"),
        (
            {"task": "knit", "arguments": {"prompt": "a"}},
            "'knit' made it; expected one of text2img, img2img, inpaint, controlnet, mix, variations",
        ),
        ({"task": ["mix"]}, "expected one of text2img"),
    ],
)
def test_show_of_what_was_edited_is_one_sentence(stored: dict[str, Any], reason: str, cli: Cli, tmp_path: Path) -> None:
    writing.save(PIL.Image.new("RGB", (8, 8)), tmp_path / "a.png", stored)
    done = cli("show", tmp_path / "a.png")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert reason in done.err
    assert done.err.count("\n") == 1
    assert json.loads(cli("show", tmp_path / "a.png", "--json").out) == {
        "kandinsky22": kandinsky22.__version__,
        **stored,
    }


def test_show_tells_of_several_pictures_and_of_those_that_do_not_tell(cli: Cli, tmp_path: Path) -> None:
    stored = {"task": "text2img", "arguments": {"prompt": "a red fox", "seed": 3}}
    for name in ("a.png", "b.webp"):
        writing.save(PIL.Image.new("RGB", (8, 8)), tmp_path / name, stored)
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "silent.png")
    paths = [tmp_path / name for name in ("a.png", "silent.png", "none.png", "b.webp")]
    done = cli("show", *paths)
    assert done.code == 1
    told = done.out.split("\n\n")
    assert [each.splitlines()[0] for each in told] == [str(tmp_path / "a.png"), str(tmp_path / "b.webp")]
    assert all("a red fox" in each for each in told)
    assert [line.split(": ")[0] for line in done.err.splitlines()] == ["error", "error"]
    assert "silent.png does not say how it was made" in done.err
    assert "none.png: No such file or directory." in done.err
    found = json.loads(cli("show", "--json", paths[0], paths[3]).out)
    assert [each["path"] for each in found] == [str(tmp_path / "a.png"), str(tmp_path / "b.webp")]
    assert [each["arguments"] for each in found] == [stored["arguments"]] * 2


def test_show_reads_pictures_of_the_first_version(cli: Cli, tmp_path: Path) -> None:
    """They name the command that made them, where a picture names its task today."""
    stored = {"task": "generate", "arguments": {"prompt": "a fox", "mask_image": "m.png", "image": "a.png", "seed": 3}}
    writing.save(PIL.Image.new("RGB", (8, 8)), tmp_path / "a.png", stored)
    done = cli("show", tmp_path / "a.png")
    assert (done.code, done.err) == (0, "")
    again = "again       kandinsky22 generate BUNDLE --image=a.png --mask=m.png --seed=3 -- 'a fox'"
    assert done.out.splitlines()[-1] == again


def test_prompts_come_from_a_file_or_from_standard_input(
    cli: Cli, shapes_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "\ufeffa red circle\r\n\n   \n  зелёный\u2028круг # 2 \n"
    prompts = ["first", "a red circle", "зелёный\u2028круг # 2"]
    (tmp_path / "prompts.txt").write_bytes(lines.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    for name in (tmp_path / "prompts.txt", "-"):
        done = cli("generate", shapes_bundle, "first", "--prompts-file", name, *QUICK, "-o", tmp_path / "out", "--json")
        assert done.code == 0
        assert [each["prompt"] for each in json.loads(done.out)["pictures"]] == prompts


def test_json_tells_what_a_program_needs(cli: Cli, shapes_bundle: Path, tmp_path: Path) -> None:
    done = cli("generate", shapes_bundle, "a", "b", *QUICK, "--seed=1", "-o", tmp_path, "--json", "--batch-size", 2)
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    first, second = told["pictures"]
    assert Path(first["path"]).name == "a-1.png"
    assert (second["prompt"], second["seed"], second["width"], second["height"]) == ("b", 2, 64, 64)
    assert 0 < told["timings"]["decoder_step"] < told["timings"]["total"]
    assert writing.read_parameters(second["path"])["arguments"]["seed"] == 2


def test_a_picture_does_not_depend_on_its_batch(cli: Cli, shapes_bundle: Path, tmp_path: Path) -> None:
    """Up to rounding: another batch is another order of summation."""
    for batch in (1, 3):
        options = (*QUICK, "--seed=1", "--batch-size", batch, "-o", tmp_path / str(batch), "--negative-prompt", "c")
        assert cli("generate", shapes_bundle, "a", "b", *options, "--num-images", 2).code == 0
    for path in (tmp_path / "1").iterdir():
        np.testing.assert_allclose(pixels(path).astype(int), pixels(tmp_path / "3" / path.name).astype(int), atol=1)


def test_a_taken_name_is_stepped_over_or_replaced(cli: Cli, shapes_bundle: Path, tmp_path: Path) -> None:
    """In a folder; the file that the user names is refused instead, see test_cli_refusals."""
    call = ("generate", shapes_bundle, "a", *QUICK, "--seed=1", "-o", tmp_path)
    assert [Path(cli(*call).out.strip()).name for _ in range(3)] == ["a-1.png", "a-1-2.png", "a-1-3.png"]
    (tmp_path / "a-1.png").write_text("mine")
    assert Path(cli(*call, "--force").out.strip()).name == "a-1.png"
    assert writing.read_parameters(tmp_path / "a-1.png")["arguments"]["seed"] == 1
    assert len(os.listdir(tmp_path)) == 3


def test_places_in_the_name_tell_pictures_apart(cli: Cli, shapes_bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "{prompt}" / "{index}-of-{seed}.webp"
    done = cli("generate", shapes_bundle, "a b", "c", *QUICK, "--seed", 9, "-o", place)
    assert done.code == 0
    names = ["a-b/1-of-9.webp", "c/2-of-10.webp"]
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*.*"))] == names
    assert {PIL.Image.open(tmp_path / name).format for name in names} == {"WEBP"}


def test_without_a_size_it_is_the_bundle_s_and_the_size_that_came_out_is_stored(
    cli: Cli, shapes_bundle: Path, tmp_path: Path
) -> None:
    for options in ((), ("--width", "100")):
        done = cli("generate", shapes_bundle, "a", *QUICK[2:], *options, "-o", tmp_path, "--json")
        (told,) = json.loads(done.out)["pictures"]
        usual = json.loads((shapes_bundle / "manifest.json").read_text())["geometry"]["default_size"]
        size = (128 if options else usual, usual)
        stored = writing.read_parameters(told["path"])["arguments"]
        assert pixels(told["path"]).shape == (size[1], size[0], 3)
        assert (stored["width"], stored["height"]) == (told["width"], told["height"]) == size


def test_format_and_quality_are_of_the_files_in_a_folder(cli: Cli, shapes_bundle: Path, tmp_path: Path) -> None:
    for quality in ("20", "100"):
        options = ("--format", "jpeg", "--quality", quality, "-o", f"{tmp_path}/v1.{quality}/")
        assert cli("generate", shapes_bundle, PROMPT, *QUICK, "--seed=1", *options).code == 0
    small, large = (next((tmp_path / f"v1.{quality}").glob("*.jpg")).stat().st_size for quality in ("20", "100"))
    assert small < large


def test_without_a_place_pictures_go_to_this_folder(
    cli: Cli, shapes_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("generate", shapes_bundle, "...", *QUICK, "--seed=3").out == "picture-3.png\n"
    assert os.listdir() == ["picture-3.png"]


def test_long_prompts_make_names_that_file_systems_take(cli: Cli, shapes_bundle: Path, tmp_path: Path) -> None:
    done = cli("generate", shapes_bundle, "𝕏" * 70, *QUICK, "--seed", 2**63 - 1, "-o", tmp_path)
    assert done.code == 0
    assert len(Path(done.out.strip()).name.encode()) < 240


def test_a_prompt_that_is_cut_is_one_line_on_stderr(cli: Cli, shapes_bundle: Path, tmp_path: Path) -> None:
    done = cli("generate", shapes_bundle, "red circle " * 60, *QUICK, "--num-images", 2, "-o", tmp_path)
    assert done.code == 0
    assert done.out.count("\n") == 2
    assert done.err.startswith("warning: The prompt has ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--help",), *((name, "--help") for name in COMMANDS), ("--version",)])
def test_help_and_version_are_results(arguments: tuple[str, ...], cli: Cli) -> None:
    done = cli(*arguments)
    assert (done.code, done.err) == (0, "")
    assert kandinsky22.__version__ in done.out if arguments == ("--version",) else done.out.startswith("usage: ")


def test_a_bug_keeps_its_traceback(cli: Cli, shapes_bundle: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(writing, "save", fail)
    with pytest.raises(ZeroDivisionError):
        cli("generate", shapes_bundle, "a", *QUICK, "-o", tmp_path)
    assert not os.listdir(tmp_path)
