"""`kandinsky22-export`: results on stdout, one clear line on stderr, and exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from kandinsky22_export import cli, write_bundle
from kandinsky22_export.architectures import components

ROOT = Path(__file__).parents[2]


def command(
    *arguments: str, program: tuple[str, str] = ("-m", "kandinsky22_export"), start_new_session: bool = False
) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT / "runtime"), str(ROOT / "export")])
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        start_new_session=start_new_session,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.usefixtures("no_tracing")
class TestMain:
    """The face, without the tracing."""

    def test_a_table_and_the_path(
        self, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        others = [f"--{name}={tiny_checkpoint / name}" for name in ("controlnet", "inpaint")]
        assert cli.main([str(tiny_checkpoint / "decoder"), *others, "-o", str(tmp_path / "out")]) == 0
        captured = capsys.readouterr()
        lines = captured.out.splitlines()
        assert lines[-1] == str(tmp_path / "out")
        assert [line.split()[0] for line in lines[:-1]] == list(components.NETWORKS)
        assert "manifest: hashing" in captured.err
        assert "Loading weights" not in captured.err
        assert "Warning" not in captured.err

    def test_json(self, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = [str(tiny_checkpoint / "decoder"), "-o", str(tmp_path / "out"), "--json", "--precision", "fp16"]
        assert cli.main(arguments) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["path"] == str(tmp_path / "out")
        assert result["manifest"] == json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert result["manifest"]["precision"] == "fp16"

    def test_options_arrive(self, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        decoder = str(tiny_checkpoint / "decoder")
        arguments = ["--components", "movq_decoder", "decoder_step", "--max-size", "64", "--variant", "none"]
        assert cli.main([decoder, "-o", str(tmp_path / "out"), *arguments]) == 0
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        assert list(manifest["components"]) == ["decoder_step", "movq_decoder"]
        assert manifest["limits"] == {"max_size": 64, "ranks": 3}
        assert "There is no prior in this bundle" in capsys.readouterr().err
        assert cli.main([decoder, "-o", str(tmp_path / "out")]) == 1
        assert cli.main([decoder, "-o", str(tmp_path / "out"), "--force"]) == 0

    def test_a_mistake_is_one_line_and_exit_code_1(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main([str(tmp_path / "nowhere" / "at"), "-o", str(tmp_path / "out")]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.splitlines()[-1].startswith("kandinsky22-export: There is no folder")
        assert "Traceback" not in captured.err
        assert not list(tmp_path.iterdir())

    def test_the_default_place(self, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert cli.main([f"{tiny_checkpoint}/decoder/", "--components", "movq_decoder"]) == 0
        assert (tmp_path / "engines" / "decoder" / "manifest.json").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["here", "--random-weights", "0"],
        ["here", "--architecture", "x"],
        ["here", "--precision", "int4"],
        ["here", "--output=--"],
    ],
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: kandinsky22-export" in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, kandinsky22_export.cli as cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules), 'imported'"
    path = os.pathsep.join([str(ROOT / "runtime"), str(ROOT / "export")])
    subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, check=True, capture_output=True
    )


def wait_until(process: subprocess.Popen[str], begun: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not begun():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def running(process: psutil.Process) -> bool:
    """Whether a process is there, and does more than wait for somebody to ask how it ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("number", "times", "jobs"),
    [
        (signal.SIGINT, 3, 1),
        pytest.param(signal.SIGINT, 3, 2, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 1, 2, marks=pytest.mark.slow),
    ],
)
def test_a_signal_in_the_middle_leaves_nothing(
    tmp_path: Path, tiny_checkpoint: Path, number: signal.Signals, times: int, jobs: int
) -> None:
    """As a terminal sends it: to all processes at once, more than once where somebody is impatient."""
    place = tmp_path / "engines"
    arguments = (str(tiny_checkpoint / "decoder"), "-o", str(place / "out"), "--jobs", str(jobs))
    process = command(*arguments, start_new_session=True)
    family = psutil.Process(process.pid)
    wait_until(process, lambda: list(place.glob(".out.*.tmp/tokenizer.json")))
    wait_until(process, lambda: len(family.children()) >= (jobs if jobs > 1 else 0))
    started = family.children(recursive=True)
    for _ in range(times):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
        time.sleep(0.02)
    out, err = process.communicate(timeout=300)
    assert process.returncode in (128 + number, -number)  # of itself where one more comes after everything is said
    assert out == ""
    assert err.splitlines()[-1].endswith("Stopped; nothing was written.")
    assert "Traceback" not in err
    assert not list(place.iterdir())
    deadline = time.monotonic() + 60
    while any(map(running, started)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("after", [0, 0.2])
def test_ctrl_c_before_anything_begins_is_one_sentence(tmp_path: Path, after: float) -> None:
    code = "import sys\nfrom kandinsky22_export.program import run\nprint(flush=True)\nsys.exit(run())"
    process = command("nowhere/at", "-o", str(tmp_path / "out"), program=("-c", code))
    assert process.stdout is not None
    process.stdout.readline()  # what comes before is Python's own
    time.sleep(after)  # by then it imports torch, which takes seconds
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err.strip()) == (-signal.SIGINT, "Stopped; nothing was written.")


def test_termination_leaves_nothing_either(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(write_bundle, "export_graph", lambda *arguments: signal.raise_signal(signal.SIGTERM))
    assert cli.main([str(tiny_checkpoint / "decoder"), "-o", str(tmp_path / "out")]) == 143
    assert capsys.readouterr().err.endswith("Stopped; nothing was written.\n")
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_terminal_would_obey_is_shown_and_not_done(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31m\n\u202eb\x9b\udcff"
    assert cli.main([name]) == 1
    with pytest.raises(SystemExit):
        cli.main(["here", "--precision", name])
    told = capsys.readouterr().err
    assert told.count(r"a\x1b[31m") == 2
    assert not set(told) & {"\x1b", "\u202e", "\x9b", "\udcff"}
    assert len([line for line in told.splitlines() if line.startswith("kandinsky22-export: ")]) == 2
