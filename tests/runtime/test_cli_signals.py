"""Ctrl-C, SIGTERM and SIGHUP at any moment of a command's life: one sentence, death by that signal, nothing left."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import PIL.Image
import pytest

from kandinsky22 import files
from kandinsky22.cli import main, signals
from kandinsky22.images import writing

from .test_cli_process import ENVIRONMENT

PROGRAM = """
import sys
from kandinsky22.cli.program import run
sys.stderr.write("begun\\n")
sys.exit(run())
"""
SIZE = ("--size", "64x64", "--prior-steps", "2", "--steps", "2", "--threads", "1")


@pytest.fixture
def stop() -> Iterator[signals.Stop]:
    stop = signals.Stop()
    try:
        stop.listen()
        yield stop
    finally:
        stop.close()


def wait() -> None:
    """For the signal that comes later."""
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        time.sleep(0.001)


def begun(*arguments: object) -> subprocess.Popen[str]:
    """The program, as soon as it handles signals."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "begun\n"
    return process


def command(name: str, bundle: Path, folder: Path) -> list[object]:
    match name:
        case "show":
            writing.save(PIL.Image.new("RGB", (8, 8)), folder / "a.png", {"arguments": {"prompt": "a"}})
            return [name, folder / "a.png"]
        case "doctor":
            return [name, bundle]
        case "build":
            return [name, bundle, "--component", "movq_decoder", "--max", 512, "--opt", 512]
        case "bench":
            return [name, bundle, *SIZE, "--pictures", 1, "--repeat", 1, "--report", folder / "report.json"]
        case "compare":
            return [name, bundle, "--prompt=a", "--prompt=b", *SIZE, "--second=--guidance 1", "-o", folder / "new"]
        case _:
            return [name, bundle, "a", *SIZE, "-o", folder / "new", "--num-images", 4]


def stopped_at(moment: float, number: signal.Signals, name: str, bundle: Path, folder: Path, times: int = 1) -> bool:
    """Whether the command was still at work at a moment, in seconds after it has begun, when a signal stopped it."""
    process = begun(*command(name, bundle, folder))
    time.sleep(moment)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.01)
    out, err = process.communicate(timeout=300)
    about = (name, moment, process.returncode, out, err)
    assert not [*folder.rglob("*.part"), *bundle.rglob("*.part")], about
    assert all(writing.read_parameters(path) for path in folder.rglob("*.png")), about
    if err == "":
        assert process.returncode in (0, -number), about  # everything was done and said
        assert out or name == "generate", about
        return False
    assert process.returncode == -number, about
    assert re.fullmatch(r"Stopped(; \d+ pictures? (was|were) written)?\.\n", err), about
    assert not (folder / "new").exists() or (name == "generate" and os.listdir(folder / "new")), about
    return True


@pytest.mark.parametrize(
    ("moment", "number", "name", "times"),
    [
        (0.0, signal.SIGINT, "show", 1),
        (0.02, signal.SIGTERM, "show", 1),
        (0.3, signal.SIGINT, "generate", 1),
        (0.6, signal.SIGTERM, "generate", 2),
        (0.4, signal.SIGINT, "doctor", 2),
        (0.8, signal.SIGTERM, "compare", 2),
    ],
)
def test_a_signal_is_one_sentence(
    moment: float, number: signal.Signals, name: str, times: int, shapes_bundle: Path, tmp_path: Path
) -> None:
    stopped_at(moment, number, name, shapes_bundle, tmp_path, times)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", ["generate", "compare", "show", "doctor", "build", "bench"])
def test_a_signal_at_every_moment_is_one_sentence(
    name: str, number: signal.Signals, times: int, bundle_copy: Path, tmp_path: Path
) -> None:
    if name == "build":
        pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    found = []
    for step in range(30):
        folder = tmp_path / f"{step}"
        folder.mkdir()
        found.append(stopped_at(step / 20, number, name, bundle_copy, folder, times))
    assert found[0]


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As Ctrl-C by what a script runs in the background, and SIGHUP under nohup."""
    code = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    asks = "import os, signal; from kandinsky22.cli import program; os.kill(os.getpid(), signal.SIGHUP); print('here')"
    done = subprocess.run(
        [sys.executable, "-c", code, sys.executable, "-c", asks], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "here\n", "")


def test_within_an_import_a_signal_waits(stop: signals.Stop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C code would make an ImportError of it, which says that a backend cannot run here."""
    code = "import signal, time\nsignal.raise_signal(signal.SIGTERM)\ntime.sleep(0.05)\nwhole = True\n"
    (tmp_path / "slow_to_import.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    found = []

    def work() -> None:
        found.append(importlib.import_module("slow_to_import"))
        wait()

    with pytest.raises(KeyboardInterrupt):
        work()
    assert found[0].whole
    assert stop.number == signal.SIGTERM


def test_while_a_file_is_made_a_signal_waits(
    stop: signals.Stop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the moment when it is on the disk and the one when somebody knows that it has to be removed."""
    before = os.open

    def opened(path: str | Path, flags: int, mode: int = 0o777) -> int:
        descriptor = before(path, flags, mode)
        if files.is_temporary(Path(path).name):
            signal.raise_signal(signal.SIGINT)
        return descriptor

    monkeypatch.setattr(os, "open", opened)
    with pytest.raises(KeyboardInterrupt), files.new_file(tmp_path, "a"):
        wait()
    assert not os.listdir(tmp_path)
    assert stop.number == signal.SIGINT


def test_a_function_can_be_marked_as_whole(stop: signals.Stop) -> None:
    done = []

    @signals.whole
    def work() -> None:
        inner()
        done.append(1)

    def inner() -> None:
        signal.raise_signal(signal.SIGINT)

    def all_of_it() -> None:
        work()
        wait()

    with pytest.raises(KeyboardInterrupt):
        all_of_it()
    assert done


def test_in_a_destructor_where_python_drops_it_it_is_raised_once_more(
    stop: signals.Stop, capsys: pytest.CaptureFixture[str]
) -> None:
    class Owner:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    owner = Owner()
    del owner
    with pytest.raises(KeyboardInterrupt):
        wait()
    assert capsys.readouterr().err == ""
    assert stop.number == signal.SIGINT


def test_a_second_signal_does_not_disturb_what_cleans_up(stop: signals.Stop) -> None:
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGINT)
            try:
                int("x")
            except ValueError:
                signal.raise_signal(signal.SIGTERM)
            cleaned.append(1)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert cleaned
    assert stop.number == signal.SIGTERM


def test_one_that_somebody_swallowed_does_not_make_the_program_deaf(stop: signals.Stop) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def hears(number: signal.Signals) -> Callable[[object], int]:
    def run(_: object) -> int:
        signal.raise_signal(number)
        return 0

    return run


def swallows(_: object) -> int:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as error:
        raise ImportError("numpy failed to import") from error
    return 0


@pytest.mark.parametrize(("run", "code"), [(hears(signal.SIGINT), 130), (hears(signal.SIGTERM), 143), (swallows, 130)])
def test_whatever_came_of_a_signal_is_told_as_a_stop(
    run: Callable[[object], int], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("kandinsky22.cli.show.run", run)
    assert main.main(["show", "a.png"]) == code
    assert capsys.readouterr() == ("", "Stopped.\n")
    assert signal.getsignal(signal.SIGTERM) == before
