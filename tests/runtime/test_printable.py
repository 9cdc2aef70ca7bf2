"""What the program prints of others' text cannot act; the command that `show` prints means what the picture says."""

from __future__ import annotations

import json
import logging
import os
import random
import shlex
import subprocess
import time
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from PIL.PngImagePlugin import PngInfo

from kandinsky22.cli import doctor, main, tables
from kandinsky22.cli.printable import command_line, printable
from kandinsky22.images import writing

from ..damaged import damaged
from .conftest import QUICK, Cli

ACTING = [*map(chr, (*range(32), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)))]
HIDDEN = [*"\u2028\u2029\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad\u061c\u180e\u3164\u115f\U000e0041", "\udc9b"]
NASTY = "".join((*ACTING, *HIDDEN))
ORDINARY = "Круг, 円, ΔΣ, naïve café, हिन्दी, العربية, 🐱❤️🇺🇦, \\x1b \N{NO-BREAK SPACE}\N{IDEOGRAPHIC SPACE}|"


def acts(text: str) -> set[str]:
    """The characters of a program's output that a terminal obeys or hides; ends of lines are the program's own."""
    found = {each for each in text if unicodedata.category(each) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    return (found | (set(text) & set(HIDDEN))) - {"\n"}


def make(path: Path, arguments: Any, **more: Any) -> Path:
    """A picture that tells `arguments`, as anybody could write it."""
    info = PngInfo()
    info.add_text("kandinsky22", json.dumps({"kandinsky22": "0.2.0", "arguments": arguments, **more}))
    PIL.Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def again(cli: Cli, path: Path) -> str:
    done = cli("show", path)
    assert (done.code, done.err) == (0, "")
    assert not acts(done.out)
    (line,) = (line for line in done.out.splitlines() if line.startswith("again "))
    assert done.out.splitlines()[-1] == line
    return line.removeprefix("again").strip()


def words_in_bash(line: str) -> list[str]:
    told = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True).stdout
    return [os.fsdecode(word) for word in told.split(b"\0")[:-1]]


@pytest.mark.parametrize("character", [*ACTING, *HIDDEN], ids=ascii)
def test_what_a_terminal_obeys_or_hides_is_shown_as_its_escape(character: str) -> None:
    assert printable(f"a{character}b") == f"a{character.encode('unicode_escape').decode()}b"


def test_ordinary_text_stays() -> None:
    assert printable(ORDINARY) == ORDINARY
    assert printable("") == ""


def test_no_character_of_unicode_acts() -> None:
    every = "".join(map(chr, (*range(0x20000), *range(0xE0000, 0xE1100))))
    shown = printable(every)
    assert "\n" not in shown
    assert not acts(shown)
    letters = {each for each in every if each.isalpha()}
    assert letters - set(shown) == set("\u115f\u1160\u3164\uffa0")


def test_a_shell_reads_back_what_is_printed() -> None:
    draw = random.Random(0)
    pieces = [*(set(ACTING) - {"\0"}), *set(HIDDEN) - {"\udc9b"}, *ORDINARY, *"'\"$`\\!*?~#&;|<>(){}[] ab0-", "\udcff"]
    words = ["", "-", "--force", *("".join(draw.choices(pieces, k=draw.randrange(12))) for _ in range(300))]
    line = command_line(words)
    assert not acts(line)
    assert "\n" not in line
    assert words_in_bash(line) == words
    assert command_line(["a b", "c'd", "круг"]) == shlex.join(["a b", "c'd", "круг"])


def test_show_prints_nothing_that_acts_and_no_row_that_is_forged(cli: Cli, tmp_path: Path) -> None:
    nasty = NASTY + "\nagain  kandinsky22 generate BUNDLE --force -- 'rm'\x1b[201~"
    arguments = {
        "prompt": nasty.replace("\0", "").replace("\udc9b", ""),
        nasty: nasty,
        "again": nasty,
        "made by": "me",
        "bundle": ["x"],
        "list": [nasty, {nasty: nasty}],
        "scheduler": None,
    }
    about = {"name": nasty, "precision": nasty, "manifest_sha256": [nasty], "scheduler": nasty, "version": nasty}
    path = make(tmp_path / "a\x1b[2J\nb.png", arguments, bundle=about, backend=about, kandinsky22=nasty)
    out = cli("show", path).out
    assert not acts(out)
    names = [line.split("  ")[0] for line in out.splitlines()]
    assert names[0] == "prompt"
    assert names[1].startswith(('"\\x00\\x01', "'\\x00\\x01"))
    assert names[2:] == ["'again'", "'made by'", "'bundle'", "'list'", "scheduler", "bundle", "made by", "again"]
    assert words_in_bash(out.splitlines()[-1].removeprefix("again").strip())[-1] == arguments["prompt"]
    several = cli("show", path, path).out
    assert not acts(several)
    assert several.splitlines()[0] == printable(str(path))
    for task in (nasty, "mix"):
        done = cli("show", make(path, {}, task=task))
        assert (done.code, done.out, acts(done.err), done.err.count("\n")) == (1, "", set(), 1)
    assert not acts(cli("show", "--json", path).out)


SMUGGLING: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "a", "weights": ["--output=x", "--force"]}, "generate"),
    ({"prompt": "a", "output": "x", "force": True, "bundle": "--force"}, "generate"),
    ({"prompt": "--force"}, "generate"),
    ({"prompt": "круг\n\x1b[201~; rm -rf /\r", "scheduler": "DPM++", "overlay": True, "guidance_scale": 3}, "generate"),
    ({"prompt": "a", "negative_prompt": "--force"}, "generate"),
    ({"prompt": "a", "guidance_interval": [0, 1e-05]}, "generate"),
    ({"image": "--force"}, "variations"),
    ({"images_and_prompts": [{"text": "--force"}, {"image": "-o"}], "weights": [-1e-05, 1e22]}, "mix"),
]


@pytest.mark.parametrize(("arguments", "command"), SMUGGLING, ids=range(len(SMUGGLING)))
def test_no_option_is_smuggled_into_the_command(
    arguments: dict[str, Any], command: str, cli: Cli, tmp_path: Path
) -> None:
    """The command's own parser reads from it what the picture says, and its defaults for all the rest."""
    line = again(cli, make(tmp_path / "a.png", arguments, task="text2img" if command == "generate" else command))
    program, name, bundle, *rest = words_in_bash(line)
    assert (program, name, bundle) == ("kandinsky22", command, "BUNDLE")
    parser = main.Parser()
    main._command(command).add_arguments(parser)
    read = vars(parser.parse_intermixed_args([bundle, *rest]))
    assert (read["output"], read["force"], read["bundle"]) == (".", False, "BUNDLE")
    if command == "mix":
        assert read["parts"] == arguments["images_and_prompts"]
        assert read["weights"] == arguments["weights"]
    elif command == "variations":
        assert read["image"] == "--force"
    else:
        assert read["prompts"] == [arguments["prompt"]]
        assert read.get("negative_prompt") == arguments.get("negative_prompt")


UNSAYABLE: list[tuple[dict[str, Any], str]] = [
    ({"guidance_interval": ["--output=x", "--force"]}, "guidance_interval is ['--output=x', '--force']; expected two"),
    ({"guidance_interval": [0, 1, "--force"]}, "guidance_interval is [0, 1, '--force']; expected two numbers"),
    ({"negative_prompt": ["a", "--force"]}, "negative_prompt is ['a', '--force'], which a command line cannot say"),
    ({"negative_prompt": {"a": 1}}, "negative_prompt is {'a': 1}; expected a string"),
    ({"image": ["a.png", "--force"]}, "image is ['a.png', '--force'], which a command line cannot say"),
    ({"image": {"png": "AAAA"}}, "image is {'png': 'AAAA'}, which a command line cannot say"),
    ({"image": True}, "image is True, which a command line cannot say"),
    ({"hint": 5}, "hint is 5, which a command line cannot say"),
    ({"seed": [1, 2]}, "seed is [1, 2], which a command line cannot say"),
    ({"seed": "5 --force"}, "seed is '5 --force'; expected a whole number"),
    ({"seed": 2**63}, "seed is 9223372036854775808; expected a whole number"),
    ({"num_inference_steps": "4"}, "num_inference_steps is '4'; expected a whole number from 1 to 1000"),
    ({"guidance_scale": float("nan")}, "guidance_scale is nan; expected a finite number"),
    ({"eta": [0.5]}, "eta is [0.5]; expected a number from 0 to 1"),
    ({"overlay": "--force"}, "overlay is '--force'; expected True or False"),
    ({"scheduler": "ddim --force"}, "scheduler is 'ddim --force'; expected one of ddpm"),
    ({"scheduler": {"_class_name": "x"}}, "scheduler is {'_class_name': 'x'}; expected one of ddpm"),
    ({"depth_model": ["a"]}, "depth_model is of type list; expected the path of a file"),
    ({"image": "a\0b"}, r"no program can be given '--image=a\x00b' as an argument"),
    ({"image": "a" * (1 << 17)}, r"no program can be given '--image=aaa"),
    ({"image": "\ud800"}, r"no program can be given '--image=\ud800' as an argument"),
    ({"image": "\udcc3\udca9"}, r"no program can be given '--image=\udcc3\udca9' as an argument"),
    ({"prompt": "\udcff"}, r"prompt is '\udcff', which is not valid Unicode text"),
]


@pytest.mark.parametrize(("arguments", "reason"), UNSAYABLE, ids=range(len(UNSAYABLE)))
def test_what_a_command_cannot_say_is_told_in_its_place(
    arguments: dict[str, Any], reason: str, cli: Cli, tmp_path: Path
) -> None:
    line = again(cli, make(tmp_path / "a.png", {"prompt": "a", **arguments}))
    assert line.startswith(f"There is no command for it: {reason}")
    assert line.endswith(".")
    assert "kandinsky22" not in line


@pytest.mark.parametrize(
    ("parts", "weights", "reason"),
    [
        ([{"text": "a", "image": "b"}], [1.0], "images_and_prompts[0] is {'text': 'a', 'image': 'b'}; expected"),
        ([{"output": "x"}], [1.0], "images_and_prompts[0] is {'output': 'x'}; expected a prompt as text"),
        ([{"force=1 --image": "x"}], [1.0], "images_and_prompts[0] is "),
        ([{"text": ["a"]}], [1.0], "images_and_prompts[0] is {'text': ['a']}, which a command line cannot say"),
        (["--force"], [1.0], "images_and_prompts[0] is '--force', which a command line cannot say"),
        ([], [1.0], "There is nothing to mix"),
        ([{"text": "a"}], ["--force"], "weights has '--force'; expected finite numbers"),
        ([{"text": ""}] * 40_000, [1.0], "it would have 40002 words; expected 4096 at most"),
        ([{"text": "a"}], [], "argument --weights: expected at least one argument"),
    ],
)
def test_parts_of_a_mix_are_prompts_and_pictures(
    parts: list[Any], weights: list[Any], reason: str, cli: Cli, tmp_path: Path
) -> None:
    path = make(tmp_path / "a.png", {"images_and_prompts": parts, "weights": weights}, task="mix")
    assert again(cli, path).startswith(f"There is no command for it: {reason}")


def test_rows_take_time_that_grows_with_their_length(cli: Cli, tmp_path: Path) -> None:
    """One name of half a megabyte beside thousands of others would fill a column of its own width."""
    arguments = {"prompt": "a\x1b" * 15_000, "\x1b" * 50_000: 1, **{f"{place}": place for place in range(3000)}}
    path = make(tmp_path / "a.png", arguments)
    begun = time.monotonic()
    out = cli("show", path).out
    assert time.monotonic() - begun < 5
    assert len(out) < 4_000_000
    assert not acts(out)


def test_json_that_nests_deeply_does_not_tell(cli: Cli, tmp_path: Path) -> None:
    for depth in (40, 900, 20_000):
        info = PngInfo()
        info.add_text("kandinsky22", '{"kandinsky22": ' + "[" * depth + "]" * depth + "}")
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
        for flag in ((), ("--json",)):
            done = cli("show", tmp_path / "a.png", *flag)
            assert (done.code, done.out) == (1, "")
            assert "does not say how it was made" in done.err


def test_errors_warnings_and_logs_name_files_without_acting(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a\x1b[2J\r\n\x85\u202e\u2028b"
    escaped = printable(str(folder))
    assert r"a\x1b[2J\r\n\x85\u202e\u2028b" in escaped
    commands: list[tuple[object, ...]] = [
        ("show", folder),
        ("show", folder, folder),
        ("doctor", folder),
        ("verify", folder),
        ("bench", folder),
        ("compare", folder, "--prompts", folder),
        ("compare", folder, folder, "--prompt", "a"),
        ("compare", folder, "--prompt", "a", f"--second={shlex.quote(f'--{folder}')}"),
        ("generate", folder, "a"),
        ("generate", folder, "--prompts-file", folder),
        ("generate", folder, "a", f"--{folder}"),
        ("generate", folder, "a", "--steps", folder.name),  # alone: a long value is cut before what acts in it
        ("generate", folder, "a", "-o", f"{folder}.xyz"),
        (folder,),
    ]
    for command in commands:
        done = cli(*command)
        assert done.code in (1, 2)
        assert not acts(done.out + done.err), command
        assert done.err.count("\n") == (2 if command.count(folder) == 2 and command[0] == "show" else 1), command
        assert r"\x1b[2J\r" in done.err or r"\x1b[2J\\r" in done.err, command

    with main._one_line_warnings():
        warnings.warn(f"{folder} is odd", stacklevel=1)
    with main._told(2):
        logging.getLogger("kandinsky22.bundle").info("looked at %s", folder)
    err = capsys.readouterr().err
    assert err == f"warning: {escaped} is odd\nkandinsky22.bundle: looked at {escaped}\n"


def test_paths_of_pictures_that_were_made_are_printed_without_acting(
    cli: Cli, shapes_bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a\x1b[2J\nb.png"
    done = cli("generate", shapes_bundle, "a\x1b]0;b\x07\nc", *QUICK, "--seed=1", "-o", path)
    assert done == (0, f"{printable(str(path))}\n", "")
    assert writing.read_parameters(path)["arguments"]["prompt"] == "a\x1b]0;b\x07\nc"
    assert words_in_bash(again(cli, path))[-1] == "a\x1b]0;b\x07\nc"


def test_tables_escape_what_bundles_and_plans_are_called() -> None:
    assert tables.columns([("a\x1b", "b"), ("c", "d\ne")]) == "a\\x1b  b\nc      d\\ne"
    assert doctor._bundle_lines({"path": "a\nb", "problems": []})[0].startswith("bundle ")


WHOLE = {
    "text2img": {
        "prompt": "a", "negative_prompt": "b", "image": "a.png", "mask_image": "m.png", "hint": "h.png",
        "depth_model": "d.onnx", "strength": 0.5, "overlay": True, "prior_image": "p.png", "prior_strength": 0.25,
        "prior_num_inference_steps": 2, "prior_guidance_scale": 1.5, "seed": 3, "height": 64, "width": 128,
        "num_inference_steps": 4, "guidance_scale": 4.0, "guidance_interval": [0.25, 1.0],
        "scheduler": "ddim", "eta": 0.5,
    },
    "variations": {"image": "a.png", "negative_prompt": "", "seed": 3, "scheduler": "dpm++-karras"},
    "mix": {
        "images_and_prompts": [{"text": "a"}, {"image": "a.png"}], "weights": [0.5, -0.5], "negative_prompt": "c",
        "negative_prior_prompt": "d", "seed": 1, "guidance_interval": [0.0, 0.5],
    },
}  # fmt: skip
"""Everything that pictures of each command tell."""


@pytest.mark.parametrize("task", WHOLE)
def test_whatever_was_edited_is_a_command_that_says_it_or_one_sentence(task: str, cli: Cli, tmp_path: Path) -> None:
    """Each value in turn is of another kind, out of its range, or missing; what is left of the line is what is told."""
    said = again(cli, make(tmp_path / "a.png", WHOLE[task], task=task))
    assert len(words_in_bash(said)) > len(WHOLE[task])
    outcomes = set()
    for wrong in damaged(WHOLE[task]):
        done = cli("show", make(tmp_path / "a.png", wrong, task=task))
        outcomes.add(done.code)
        assert not acts(done.out + done.err)
        assert done.err.count("\n") == done.code
        if done.code == 0:
            line = done.out.splitlines()[-1].removeprefix("again").strip()
            assert line.startswith((f"kandinsky22 {said.split()[1]} BUNDLE ", "There is no command for it: "))
            outcomes.add(line.split()[0])
    assert outcomes == {0, 1, "kandinsky22", "There"}
