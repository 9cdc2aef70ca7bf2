"""Files of pictures that are damaged, and what they tell of how they were made, as anybody may have written it."""

from __future__ import annotations

import functools
import json
import shlex
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from hypothesis import strategies as st
from PIL.PngImagePlugin import PngInfo

from kandinsky22.cli import main, show
from kandinsky22.cli.printable import printable
from kandinsky22.errors import InputError
from kandinsky22.images import reading, writing
from kandinsky22.request.parameters import PARAMETERS, TASKS

from ..fuzzing import TEXTS, deep_json, dumped, family, json_values, mutated_bytes, mutated_json, refused, run
from .test_damaged_pictures import READINGS, SOUND, small_pictures, sound
from .test_printable import WHOLE, acts

__all__ = ["small_pictures"]


@family(60)
@pytest.mark.usefixtures("small_pictures")
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_a_picture_or_refused(count: int, tmp_path: Path) -> None:
    """Of every format, and under the name of another."""
    files = {suffix: sound(suffix) for suffix in SOUND if suffix != "avif" or "AVIF" in reading._formats()}
    path = tmp_path / "a.png"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        for read in READINGS:
            refused(functools.partial(read, "image", path), InputError)
        refused(lambda: writing.read_parameters(path), InputError)
        assert list(tmp_path.iterdir()) == [path]

    run(count, check, data=st.sampled_from(sorted(files)).flatmap(lambda suffix: mutated_bytes(files[suffix])))


told = st.one_of(
    st.sampled_from(sorted(WHOLE)).flatmap(
        lambda task: mutated_json(
            {"kandinsky22": "0.2.0", "task": task, "arguments": WHOLE[task], "bundle": {"name": "a"}}
        )
    ),
    st.builds(
        lambda task, given: {"kandinsky22": "0.2.0", "task": task, "arguments": given},
        st.sampled_from([*TASKS, *TEXTS]),
        st.dictionaries(st.sampled_from([*PARAMETERS, *TEXTS]), json_values, max_size=6),
    ),
    json_values.map(lambda value: {"kandinsky22": value, "arguments": {"prompt": "a"}}),
)


@family(60)
def test_what_a_picture_tells_is_shown_without_acting_and_smuggles_nothing(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"

    def check(value: Any) -> None:
        info = PngInfo()
        info.add_text("kandinsky22", dumped(value).decode())
        PIL.Image.new("RGB", (8, 8)).save(path, pnginfo=info)
        for flags in ((), ("--json",)):
            code = main.main(["show", str(path), *flags])
            out, err = capsys.readouterr()
            assert not acts(out + err)
            assert err.count("\n") == code <= 1
            if code or flags:
                continue
            line = out.splitlines()[-1]
            assert line.startswith("again ")
            said = line.removeprefix("again").strip()
            if not said.startswith("There is no command for it: "):
                check_command(said)

    def check_command(line: str) -> None:
        program, name, bundle, *rest = shlex.split(line)
        assert (program, bundle) == ("kandinsky22", "BUNDLE")
        assert name in show.again.SUBJECTS
        parser = main.Parser()
        main._command(name).add_arguments(parser)
        read = vars(parser.parse_intermixed_args([bundle, *rest]))
        assert (read["output"], read["force"], read["bundle"]) == (".", False, "BUNDLE")

    run(count, check, value=told)


@family(60)
def test_text_that_is_no_json_of_ours_is_refused(count: int, tmp_path: Path) -> None:
    whole = json.dumps({"kandinsky22": "0.2.0", "arguments": {"prompt": "a"}})
    before = b'{"kandinsky22": '

    def check(data: bytes) -> None:
        info = PngInfo()
        info.add_text("kandinsky22", data.decode("latin-1"))
        PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
        refused(lambda: writing.read_parameters(tmp_path / "a.png"), InputError)

    run(count, check, data=mutated_bytes(whole.encode()) | st.binary() | deep_json.map(lambda deep: before + deep))


@family(150)
def test_what_is_printable_has_one_line_that_does_nothing(count: int) -> None:
    def check(text: str) -> None:
        shown = printable(text)
        assert not acts(shown)
        assert "\n" not in shown
        assert printable(shown) == shown

    run(count, check, text=st.text() | st.sampled_from(TEXTS))
