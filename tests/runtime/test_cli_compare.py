"""`kandinsky22 compare`: the folder that it writes, what it tells, and what it refuses in one sentence."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from kandinsky22 import Pipeline, files
from kandinsky22.arrays import Array
from kandinsky22.cli import compare, comparison
from kandinsky22.cli.printable import printable
from kandinsky22.images import writing
from kandinsky22.measure import likeness, sheet
from kandinsky22.measure.compare import Case, Pair
from kandinsky22.request.parameters import PARAMETERS

from .conftest import QUICK, Cli
from .handmade import GRAPHS, MORE_GRAPHS, write_bundle
from .test_printable import NASTY, acts

SMALL: dict[str, Any] = {"height": 64, "width": 64, "prior_num_inference_steps": 2}
FASTER = "--steps 1 --scheduler dpm++ --guidance 2"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("engines") / "seeing", GRAPHS | MORE_GRAPHS)


@pytest.fixture(scope="module")
def pipe(bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(bundle, "onnxruntime", threads=1) as loaded:
        yield loaded


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffa red circle\n\n  \nкруг # 2\r\nblue star", encoding="utf-8")
    return path


def pixels(path: Path) -> Array:
    with PIL.Image.open(path) as picture:
        return np.asarray(picture)


def strict(text: str) -> Any:
    """JSON as the standard has it: without NaN and infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def test_two_settings_of_one_bundle(cli: Cli, bundle: Path, pipe: Pipeline, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "er"
    done = cli("compare", bundle, "--prompts", prompts, "--second", FASTER, *QUICK, "--seed", 5, "-o", out)
    assert (done.code, done.err) == (0, "")
    *_, sheets, report = done.out.splitlines()
    assert (sheets, report) == (f"{out}/sheet-1.png", f"{out}/comparison.json")
    names = [f"{number}-{side}.png" for number in (1, 2, 3) for side in ("first", "second")]
    assert sorted(os.listdir(out)) == sorted([*names, "comparison.json", "sheet-1.png"])
    assert os.listdir(tmp_path / "new") == ["er"]

    told = strict((out / "comparison.json").read_text())
    assert [each["prompt"] for each in told["pictures"]] == ["a red circle", "круг # 2", "blue star"]
    assert [each["seed"] for each in told["pictures"]] == [5, 6, 7]
    faster = {"num_inference_steps": 1, "scheduler": "dpm++", "guidance_scale": 2.0}
    settings = {"first": {**SMALL, "num_inference_steps": 2}, "second": {**SMALL, **faster}}
    for each in told["pictures"]:
        made = {}
        for name, its in settings.items():
            made[name] = np.asarray(pipe(each["prompt"], seed=each["seed"], **its).images[0])
            np.testing.assert_array_equal(pixels(out / each["files"][name]), made[name])
            stored = writing.read_parameters(out / each["files"][name])
            assert {key: stored["arguments"][key] for key in its} == its
            assert (stored["arguments"]["prompt"], stored["arguments"]["seed"]) == (each["prompt"], each["seed"])
        assert each["psnr"] == likeness.psnr(made["first"], made["second"])
        assert each["ssim"] == likeness.ssim(made["first"], made["second"])
        assert each["identical"] is False
        assert min(each["seconds"].values()) > 0
        assert f"{each['psnr']:.2f}" in done.out
        assert f"{each['ssim']:.4f}  {each['cosine']:.4f}" in done.out
    for name, its in settings.items():
        assert {key: told[name]["arguments"][key] for key in its} == its
        assert not {"prompt", "seed"} & told[name]["arguments"].keys()
        assert told[name]["backend"]["name"] == "onnxruntime"
        assert told[name]["machine"] == {"threads": 1, "low_memory": False}
        assert told[name]["load_seconds"] >= 0


def test_the_summary_is_of_all_pictures(cli: Cli, bundle: Path, prompts: Path, tmp_path: Path) -> None:
    call = ("compare", bundle, "--prompts", prompts, f"--second={FASTER}", *QUICK, "-o", tmp_path / "out", "--json")
    done = cli(*call)
    assert (done.code, done.err) == (0, "")
    told = strict(done.out)
    assert told == strict((tmp_path / "out" / "comparison.json").read_text())
    summary = told["summary"]
    for measure in ("psnr", "ssim", "cosine"):
        values = [each[measure] for each in told["pictures"]]
        expected = {"mean": float(np.mean(values)), "median": float(np.median(values)), "worst": min(values)}
        assert summary[measure] == pytest.approx(expected)
    for side in ("first", "second"):
        values = [each["seconds"][side] for each in told["pictures"]]
        expected = {"mean": float(np.mean(values)), "median": float(np.median(values)), "worst": max(values)}
        assert summary["seconds"][side] == pytest.approx(expected)
    assert summary["identical"] == 0
    assert told["without_cosine"] is None


def test_two_bundles_that_are_equal_are_identical(cli: Cli, bundle: Path, prompts: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", GRAPHS | MORE_GRAPHS)
    call = ("compare", bundle, other, "--prompts", prompts, *QUICK, "--seed", 1, "-o", tmp_path / "out")
    done = cli(*call)
    assert (done.code, done.err) == (0, "")
    assert "3 of 3 are identical" in done.out
    told = strict((tmp_path / "out" / "comparison.json").read_text())
    for each in told["pictures"]:
        assert (each["psnr"], each["ssim"], each["identical"]) == (None, 1.0, True)
        assert each["cosine"] == pytest.approx(1)
    assert (told["summary"]["psnr"], told["summary"]["identical"]) == (None, 3)
    assert [told[side]["path"] for side in ("first", "second")] == [str(bundle), str(other)]


def test_both_sides_may_have_settings_of_their_own(cli: Cli, bundle: Path, pipe: Pipeline, tmp_path: Path) -> None:
    sides = ("--first", "--negative-prompt 'a red star' --low-memory", "--second=--guidance-interval 0 0.5 --threads 2")
    done = cli("compare", bundle, "--prompt", "a", "--prompt", "b", *sides, *QUICK, "--seed", 1, "-o", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    told = strict((tmp_path / "out" / "comparison.json").read_text())
    assert told["first"]["machine"] == {"threads": 1, "low_memory": True}
    assert told["second"]["machine"] == {"threads": 2, "low_memory": False}
    settings = ({"negative_prompt": "a red star"}, {"guidance_interval": (0, 0.5)})
    for name, its in zip(("first", "second"), settings, strict=True):
        expected = pipe("b", seed=2, num_inference_steps=2, **SMALL, **its).images[0]
        np.testing.assert_array_equal(pixels(tmp_path / "out" / f"2-{name}.png"), expected)


def test_every_flag_of_generate_is_one_of_a_side(bundle: Path) -> None:
    """But for how many pictures there are, and their seeds."""
    from kandinsky22.cli import flags, main

    parser = main.Parser()
    compare.add_arguments(parser)
    known = flags.declared("generate")
    assert {"num_inference_steps", "scheduler", "image", "hint"} <= known.keys()
    for name, (_, parameter) in known.items():
        words = " ".join([str(parameter.flag), *["1"] * {0: 0, 2: 2}.get(parameter.kind.words, 1)])  # type: ignore[arg-type]
        words = words.replace(" 1", f" {parameter.kind.choices[0]}") if parameter.kind.choices else words
        words = words.replace(" 1", " forecast") if name == "skip" else words
        words = words.replace(" 1", " 2") if name == "prior_num_inference_steps" else words
        options = parser.parse_args([str(bundle), f"--second={words}"])
        if name in ("num_images_per_prompt", "batch_size", "seed"):
            with pytest.raises(compare.InputError, match="unrecognized"):
                compare._settings(options, "second")
        else:
            assert hasattr(compare._settings(options, "second"), name)
            assert not hasattr(compare._settings(options, "first"), name)
    assert len(known) < len(PARAMETERS)


def test_pictures_of_other_tasks_are_compared(cli: Cli, bundle: Path, pipe: Pipeline, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    PIL.Image.fromarray(draw.integers(0, 256, (48, 80, 3), dtype=np.uint8)).save(tmp_path / "fox.png")
    call = (
        "--prompt",
        "a",
        "--image",
        tmp_path / "fox.png",
        "--strength",
        0.6,
        "--second",
        "--strength 0.9",
        *QUICK,
        "--seed",
        1,
    )
    done = cli("compare", bundle, *call, "-o", tmp_path / "out")
    assert (done.code, done.err) == (0, "")
    options = {"num_inference_steps": 2, "seed": 1, **SMALL}
    expected = pipe.img2img("a", tmp_path / "fox.png", strength=0.9, **options).images[0]
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "1-second.png"), expected)


def test_a_sheet_holds_the_pictures_and_their_difference(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "many.txt"
    prompts.write_text("".join(f"a circle of {number}\n" for number in range(sheet.ROWS + 2)))
    done = cli("compare", bundle, "--prompts", prompts, "--second", FASTER, *QUICK, "--seed", 1, "-o", tmp_path / "out")
    assert done.code == 0
    out, seen = tmp_path / "out", 0
    assert [Path(line).name for line in done.out.splitlines()[-3:]] == ["sheet-1.png", "sheet-2.png", "comparison.json"]
    for number, rows in ((1, sheet.ROWS), (2, 2)):
        whole = pixels(out / f"sheet-{number}.png")
        top = 0
        for _ in range(rows):
            seen += 1
            first, second = (pixels(out / f"{seen:02}-{side}.png") for side in ("first", "second"))
            distance = np.abs(first.astype(int) - second)
            triple = (first, second, np.minimum(sheet.TIMES * distance, 255).astype(np.uint8))
            top = next(row for row in range(top, len(whole)) if holds(whole, triple[0], row, 0))
            assert holds(whole, triple[1], top, 1)
            assert holds(whole, triple[2], top, 2)
            assert distance.any()
            below = whole[top + 64 : top + 64 + 2 * sheet.LINE]
            assert (below < 128).any()  # text
            top += 64
    assert seen == sheet.ROWS + 2


def holds(whole: Array, picture: Array, top: int, column: int) -> bool:
    left = sheet.MARGIN + column * (picture.shape[1] + sheet.MARGIN)
    return np.array_equal(whole[top : top + picture.shape[0], left : left + picture.shape[1]], picture)


def test_the_text_of_a_sheet_is_what_was_measured_and_cannot_act() -> None:
    case = Case(f"a{NASTY}b", 7)
    differing, equal = Pair(case, 31.256, 0.9, 0.98765, (1.5, 0.25)), Pair(case, math.inf, 1.0, None, (1.5, 0.25))
    measured = "  seed 7  PSNR 31.26 dB  SSIM 0.9000  CLIP 0.9877  1.50 s, 0.25 s"
    assert comparison.caption(2, differing) == [f"3{measured}", printable(case.prompt)]
    assert comparison.caption(0, equal)[0] == "1  seed 7  identical  SSIM 1.0000  1.50 s, 0.25 s"


def test_large_pictures_and_long_texts_stay_within_a_sheet() -> None:
    draw = np.random.default_rng(0)
    pictures = [PIL.Image.fromarray(draw.integers(0, 256, (900, 2048, 3), dtype=np.uint8)) for _ in range(2)]
    row = sheet.Row(pictures[0], pictures[1], ["x" * 100_000, "круг 円 " * 1000])
    (drawn,) = sheet.sheets([row], ["y" * 100_000])
    assert drawn.width == 3 * sheet.CELL + 4 * sheet.MARGIN
    assert drawn.height == 3 * sheet.LINE + round(900 * sheet.CELL / 2048) + 3 * sheet.MARGIN
    edge = np.asarray(drawn)[:, -sheet.MARGIN :]
    assert (edge == 255).all()
    assert len(list(sheet.sheets([row] * (2 * sheet.ROWS + 1), []))) == 3
    assert not list(sheet.sheets([], []))


def test_a_sheet_without_a_font_of_the_system_has_the_letters_of_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "FONTS", ("no such font.ttf",))
    sheet._font.cache_clear()
    picture = PIL.Image.new("RGB", (64, 64))
    drawn = [next(sheet.sheets([sheet.Row(picture, picture, [text])], [])) for text in ("круг", "????", "")]
    sheet._font.cache_clear()
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_bundle_without_an_image_encoder_is_compared_without_it(cli: Cli, prompts: Path, tmp_path: Path) -> None:
    blind = write_bundle(tmp_path / "blind")
    call = ("compare", blind, "--prompts", prompts, "--second", FASTER, *QUICK, "-o", tmp_path / "out")
    done = cli(*call)
    assert done.code == 0
    assert done.err.startswith("warning: There is no cosine of CLIP's embeddings: ")
    assert "image_encoder" in done.err
    assert done.err.count("\n") == 1
    told = strict((tmp_path / "out" / "comparison.json").read_text())
    assert [each["cosine"] for each in told["pictures"]] == [None] * 3
    assert told["summary"]["cosine"] is None
    assert "image_encoder" in told["without_cosine"]


def test_prompts_come_from_standard_input_too(
    cli: Cli, bundle: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompts.read_bytes())))
    call = ("compare", bundle, "--prompts", "-", "--second", FASTER, *QUICK, "-o", tmp_path / "out", "--json")
    assert [each["prompt"] for each in strict(cli(*call).out)["pictures"]] == ["a red circle", "круг # 2", "blue star"]


def test_prompts_that_would_act_are_shown_and_kept(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    nasty = NASTY.replace("\n", "").replace("\udc9b", "")
    lines = [f"a{nasty}b", "x" * 30_000, "`rm` $(rm) 'a\" \u202e"]
    (tmp_path / "p.txt").write_bytes("\n".join(lines).encode())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = cli(
            "compare", bundle, "--prompts", tmp_path / "p.txt", "--second", FASTER, *QUICK, "-o", tmp_path / "out"
        )
    assert done.code == 0
    assert not acts(done.out + done.err)
    assert max(map(len, done.out.splitlines())) < 700
    told = strict((tmp_path / "out" / "comparison.json").read_text())
    assert [each["prompt"] for each in told["pictures"]] == [line.strip() for line in lines]
    assert writing.read_parameters(tmp_path / "out" / "1-first.png")["arguments"]["prompt"] == lines[0].strip()


def listing(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def refused(cli: Cli, folder: Path, *arguments: object) -> str:
    """The one sentence that `compare` refuses `arguments` with, having written nothing below `folder`."""
    before = listing(folder)
    done = cli("compare", *arguments)
    assert done.code in (1, 2), done
    assert done.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", done.err), done.err
    assert not acts(done.err)
    assert listing(folder) == before
    return done.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "There is no prompt; give a file of them with --prompts, or one with --prompt."),
        (("--prompt", "a"), "There is nothing to compare: name a second bundle, or give other settings with --first"),
        (("--prompt", "a", "--second", ""), "There is nothing to compare"),
        (("--prompt", "a", "--second", "--stps 4"), "--second is '--stps 4', which is no flags of a picture: unrec"),
        (("--prompt", "a", "--first", "--steps 0"), "--first is '--steps 0', which is no flags of a picture: argument"),
        (("--prompt", "a", "--second", "--scheduler euler"), "invalid choice: 'euler'"),
        (("--prompt", "a", "--second", "--steps"), "expected one argument"),
        (("--prompt", "a", "--second", "--size '64x64"), "No closing quotation"),
        (("--prompt", "a", "--second", "--seed 4"), "unrecognized arguments: --seed 4"),
        (("--prompt", "a", "--second", "--output x"), "unrecognized arguments: --output x"),
        (("--prompt", "a", "--second", "--low-memory"), "--second: expected one argument"),
        (("--prompt", "a", "--second", "a b"), "unrecognized arguments: a b"),
        (("--prompt", "a", "--second=--help"), "unrecognized arguments: --help"),
        (("--prompt", "a", "--second", "\x1b]0; --x\n"), r"--second is '\x1b]0; --x\n', which is no flags"),
        (("--prompt", "a", "--second", "--size 64x128"), "of 64x64 and the second of 64x128, which cannot be compared"),
        (("--prompt", "a", "--second", "--width 64"), "leave --width and --height out"),
        (("--prompt", "a", "--second", "--mask m.png --hint h.png"), "--mask and --hint are of two different tasks"),
        (("--prompt", "a", "--second", "--strength 0.5"), "--strength was given without --image"),
        (("--prompt", "a", "--second", "--image none.png"), "none.png"),
        (("--prompt", "a", "--second", "--backend torch"), "no backend 'torch'; choose one of auto"),
        (("--prompt", "a", "--second", "--precision bf16"), "have no bf16"),
        (("--prompt", "a", "--second", "--eta 0.5"), "--eta"),
        (("--prompt", "a", "--steps", "0", "--second", "--steps 2"), "--steps: '0' is no whole number"),
        (("--prompt", "a", "--prompt", "b", "--seed", 2**63 - 1, "--second", FASTER), "seed of the last picture"),
        (("--prompt", "a\udcff", "--second", FASTER), "not valid Unicode"),
        (("missing", "--prompt", "a"), "missing is not a folder"),
        ((".", "--prompt", "a"), "has no manifest.json"),
        (("--prompt", "a" * 1_100_000, "--second", FASTER), "too long to be stored"),
        (("--prompts", "none.txt", "--second", FASTER), "none.txt: No such file"),
        (("--prompts", ".", "--second", FASTER), ".: Is a directory"),
        (("--prompts", "blank.txt", "--second", FASTER), "There is no prompt"),
        (("--prompts", "latin.txt", "--second", FASTER), "latin.txt is not text in UTF-8"),
        (("--prompts", "many.txt", "--second", FASTER), "1001 prompts; one run compares 1000 at most"),
        (("--prompts", "large.txt", "--second", FASTER), "large.txt: Is larger than 16 MiB"),
        (("--prompts", "pipe", "--second", FASTER), "pipe: Is a FIFO"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    arguments: tuple[object, ...], reason: str, cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(Pipeline, "pictures")
    (tmp_path / "blank.txt").write_text(" \n\r\n\n")
    (tmp_path / "latin.txt").write_bytes("Schöne Grüße".encode("latin-1"))
    (tmp_path / "many.txt").write_text("a\n" * 1001)
    if "pipe" in arguments:
        os.mkfifo(tmp_path / "pipe")
    if "large.txt" in arguments:
        with (tmp_path / "large.txt").open("wb") as file:
            file.truncate((1 << 24) + 1)
    assert reason in refused(cli, tmp_path, bundle, *arguments, *QUICK)


def test_a_bundle_of_another_size_is_refused(
    cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no size is asked for, each bundle has its own."""
    monkeypatch.delattr(Pipeline, "pictures")
    other = write_bundle(tmp_path / "other", GRAPHS | MORE_GRAPHS)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["geometry"]["default_size"] = 256
    (other / "manifest.json").write_text(json.dumps(manifest))
    said = refused(cli, tmp_path, bundle, other, "--prompt", "a", *QUICK[2:], "-o", tmp_path / "out")
    assert "The first makes pictures of 128x128 and the second of 256x256" in said


def test_a_place_that_is_taken_is_refused(
    cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, inside in (("mine", "notes.txt"), ("like ours", "1-first.png"), ("theirs", "comparison.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / inside).write_text("mine")
    (tmp_path / "theirs" / "sheet-1.png").mkdir()
    call = ("--prompt", "a", "--second", FASTER, *QUICK, "-o")
    with monkeypatch.context() as patch:
        patch.delattr(Pipeline, "pictures")
        for place in ("file", "link", "mine", "like ours", "theirs", "..", ".", "/"):
            assert "exists; choose another --output" in refused(cli, tmp_path, bundle, *call, place)
            said = refused(cli, tmp_path, bundle, *call, place, "--force")
            assert "is not the folder of a comparison, and nothing else is replaced" in said
        for place in ("file/out", "a" * 300):
            assert "cannot be written (" in refused(cli, tmp_path, bundle, *call, place)


def test_an_earlier_comparison_is_replaced_by_force_alone(
    cli: Cli, bundle: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is free
    call = ("compare", bundle, "--second", FASTER, *QUICK, "--seed", 1, "-o", out)
    assert cli(*call, "--prompts", prompts).code == 0
    before = listing(out)
    assert "out exists; choose another --output, or replace it with --force" in refused(
        cli, tmp_path, *call[1:], "--prompt", "a"
    )
    assert listing(out) == before
    assert cli(*call, "--prompt", "a", "--force").code == 0
    assert sorted(os.listdir(out)) == ["1-first.png", "1-second.png", "comparison.json", "sheet-1.png"]
    assert set(os.listdir(tmp_path)) == {"out", "prompts.txt"}


@pytest.mark.parametrize("at", [1, 3, 4, 6, 7, 8])
def test_what_is_interrupted_leaves_nothing(
    at: int, cli: Cli, bundle: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each file that is written, of either side, and at the sheet and the report; what was there before stays."""
    call = ("compare", bundle, "--prompts", prompts, "--second", FASTER, *QUICK, "--seed", 1)
    assert cli(*call, "-o", tmp_path / "old").code == 0
    before, write, written = listing(tmp_path), files.write_file, []

    def interrupted(path: Path, *arguments: Any, **options: Any) -> None:
        write(path, *arguments, **options)
        written.append(path)
        if len(written) == at:
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_file", interrupted)
    for place in (tmp_path / "new" / "er", tmp_path / "old"):
        written.clear()
        done = cli(*call, "-o", place, "--force")
        assert (done.code, done.out, done.err) == (128 + signal.SIGINT, "", "Stopped.\n")
        assert len(written) == at
        assert listing(tmp_path) == before


def test_a_disk_that_fills_up_leaves_nothing(
    cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files.write_file

    def full(path: Path, *arguments: Any, **options: Any) -> None:
        if "second" in path.name:
            raise OSError(28, "No space left on device", str(path))
        before(path, *arguments, **options)

    monkeypatch.setattr(files, "write_file", full)
    said = refused(cli, tmp_path, bundle, "--prompt", "a", "--second", FASTER, *QUICK, "-o", tmp_path / "out")
    assert said.endswith("1-second.png: No space left on device.\n")


def test_a_folder_that_comes_in_between_is_not_replaced(
    cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    before = files.write_file

    def write(path: Path, *arguments: Any, **options: Any) -> None:
        before(path, *arguments, **options)
        out.mkdir(exist_ok=True)
        (out / "mine.txt").write_text("mine")

    monkeypatch.setattr(files, "write_file", write)
    done = cli("compare", bundle, "--prompt", "a", "--second", FASTER, *QUICK, "-o", out, "--force")
    assert (done.code, done.out) == (1, "")
    assert "out is not the folder of a comparison" in done.err
    assert os.listdir(tmp_path) == ["out"]
    assert (out / "mine.txt").read_text() == "mine"


def test_names_are_printed_without_acting(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "a\x1b[2J\nb"
    done = cli("compare", bundle, "--prompt", "a", "--second", FASTER, *QUICK, "-o", out)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == printable(f"{out}/comparison.json")
    assert not acts(done.out)
    assert math.isfinite(strict((out / "comparison.json").read_text())["pictures"][0]["psnr"])
