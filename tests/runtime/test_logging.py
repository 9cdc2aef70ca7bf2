"""What the program tells of its work: with -v on the command line, and nothing as a library."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from kandinsky22 import Pipeline
from kandinsky22.bundle.bundle import Bundle

from .conftest import QUICK, Cli
from .test_cli_process import ENVIRONMENT


@pytest.mark.parametrize("place", ["before", "behind"])
def test_verbose_tells_backend_memory_and_loads(place: str, cli: Cli, handmade_bundle: Bundle, tmp_path: Path) -> None:
    told, command = ["-v"], ["generate", handmade_bundle.path, "a", *QUICK, "-o", tmp_path / "a.png"]
    done = cli(*(told + command if place == "before" else command + told))
    assert (done.code, done.out) == (0, f"{tmp_path / 'a.png'}\n")
    for told_of in (
        "backend onnxruntime ",
        " in fp32: runs on every CPU",
        "memory: about 0.5 GiB of ",
        "text2img: 1 picture(s) by text_encoder, prior_step, decoder_step, movq_decoder",
        "decoder_step loaded by ONNX Runtime on the CPU in ",
    ):
        assert told_of in done.err
    assert "freed" not in done.err
    assert not logging.getLogger("kandinsky22").handlers[1:], "the handler of the command line was left"


def test_very_verbose_tells_what_is_freed(cli: Cli, handmade_bundle: Bundle, tmp_path: Path) -> None:
    done = cli("generate", handmade_bundle.path, "a", *QUICK, "-o", tmp_path / "a.png", "-vv", "--low-memory")
    assert done.code == 0
    assert "freed prior_step" in done.err


def test_compilations_are_told_with_seconds_and_shapes(cli: Cli, handmade_bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    quick = [*QUICK[:6], "--backend", "openvino", "--threads", "1"]
    done = cli("-v", "generate", handmade_bundle.path, "a", *quick, "-o", tmp_path / "a.png")
    assert done.code == 0
    (line,) = (each for each in done.err.splitlines() if "decoder_step compiled" in each)
    assert " s for " in line
    assert "latents 1x4x8x8" in line


def test_nothing_is_told_unasked(cli: Cli, handmade_bundle: Bundle, tmp_path: Path) -> None:
    assert cli("generate", handmade_bundle.path, "a", *QUICK, "-o", tmp_path / "a.png").err == ""


def test_as_a_library_it_is_silent_and_can_be_heard(handmade_bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    call = 'pipe("a", height=64, width=64, num_inference_steps=2, prior_num_inference_steps=2)'
    code = (
        f"from kandinsky22 import Pipeline\npipe = Pipeline.load({str(handmade_bundle.path)!r}, 'onnxruntime')\n{call}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert (done.stdout, done.stderr) == ("", "")
    with caplog.at_level(logging.INFO, "kandinsky22"), Pipeline.load(handmade_bundle.path, "onnxruntime") as pipe:
        pipe.embed("a", prior_num_inference_steps=2)
    assert any(record.message.startswith("prior_step loaded by ONNX Runtime") for record in caplog.records)
