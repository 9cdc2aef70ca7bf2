"""The command line as a process of its own: imports, progress, Ctrl-C, and a reader that leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kandinsky22.images import writing

from . import importing
from .conftest import QUICK

HEAVY = ("torch", "transformers", "diffusers", "accelerate", "onnx", "onnxscript", "kandinsky22_export")
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "runtime")}


def python(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT, **options)


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kandinsky22", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, **options)


def imported(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has imported after `code`."""
    told = python("-c", f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)").stderr
    return {name.split(".")[0] for name in json.loads(told.splitlines()[-1])}


def installed(bytecode: Path) -> dict[str, str]:
    """Variables with which an interpreter keeps bytecode, as that of an installation does."""
    return ENVIRONMENT | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(bytecode)}


def call(arguments: Sequence[object]) -> str:
    run = f"try: assert main({[*map(str, arguments)]}) == 0\nexcept SystemExit: pass"
    return f"from kandinsky22.cli.main import main\n{run}"


def test_importing_the_package_imports_no_other() -> None:
    assert not imported("import kandinsky22") & {*HEAVY, "numpy", "PIL", "tokenizers", "onnxruntime", "openvino"}


def test_help_waits_for_nothing() -> None:
    assert not imported(call(["generate", "--help"])) & {*HEAVY, "numpy", "PIL", "tokenizers", "tqdm", "onnxruntime"}


def test_a_whole_run_imports_nothing_of_the_exporter(shapes_bundle: Path, tmp_path: Path) -> None:
    names = imported(call(["generate", shapes_bundle, "a", *QUICK, "-o", tmp_path]))
    assert names >= {"kandinsky22", "numpy", "PIL", "tokenizers", "onnxruntime"}
    assert not names & {*HEAVY, "openvino"}
    assert len(os.listdir(tmp_path)) == 1


def test_importing_takes_less_than_a_third_of_a_second(tmp_path: Path) -> None:
    runs = [importing.seconds(sys.executable, "import kandinsky22", installed(tmp_path)) for _ in range(5)]
    assert min(runs) < 0.3


def test_importing_the_pipeline_takes_little_more_than_importing_numpy(tmp_path: Path) -> None:
    assert importing.pipelines_beside_numpys(sys.executable, installed(tmp_path)) < 3


def test_the_module_runs_as_a_program() -> None:
    assert python("-m", "kandinsky22", "--version").stdout.startswith("kandinsky22 ")


def test_progress_is_shown_on_a_terminal_only_and_not_when_quiet(shapes_bundle: Path, tmp_path: Path) -> None:
    for options, shown in (((), True), (("--quiet",), False)):
        terminal, end = os.openpty()
        termios.tcsetwinsize(end, (25, 80))
        process = start("generate", shapes_bundle, "a", *QUICK, "-o", tmp_path, *options, stderr=end)
        os.close(end)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        assert out.count("\n") == 1
        seen = read_all(terminal)
        assert ("100%" in seen and "4/4" in seen) == shown
        assert shown or not seen


def read_all(terminal: int) -> str:
    seen = b""
    try:
        while block := os.read(terminal, 65536):
            seen += block
    except OSError:  # how Linux says that the other side has closed
        pass
    os.close(terminal)
    return seen.decode()


def test_ctrl_c_keeps_what_is_finished_and_nothing_half_written(shapes_bundle: Path, tmp_path: Path) -> None:
    many = ("--num-images", 1000, "--seed", 0, "-o", tmp_path)
    process = start("generate", shapes_bundle, "a", *QUICK, *many, stderr=subprocess.PIPE)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGINT  # of which a shell says 130
    written = [first.strip(), *out.split()]
    assert err == f"Stopped; {'1 picture was' if len(written) == 1 else f'{len(written)} pictures were'} written.\n"
    assert sorted(map(str, tmp_path.iterdir())) == sorted(written)
    assert [writing.read_parameters(path)["arguments"]["seed"] for path in written] == list(range(len(written)))


def test_ctrl_c_before_the_first_picture_takes_back_the_folder(shapes_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "er"
    slow = ("--steps", 1000, "--size", "512x512", "-o", folder, "--json")
    process = start("generate", shapes_bundle, "a", *QUICK, *slow, stderr=subprocess.PIPE)
    while not folder.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (-signal.SIGINT, "Stopped; 0 pictures were written.\n")
    assert json.loads(out) == {"pictures": [], "timings": {}}
    assert not os.listdir(tmp_path)


def test_a_reader_that_leaves_ends_it_quietly(shapes_bundle: Path, tmp_path: Path) -> None:
    process = start(
        "generate", shapes_bundle, "a", *QUICK, "--num-images", 1000, "-o", tmp_path, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=300) == 141
    assert not [name for name in os.listdir(tmp_path) if not name.endswith(".png")]
