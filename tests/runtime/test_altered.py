"""Files that are altered, cut short or replaced around a pipeline that uses them: refused, or the right picture."""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BackendError, BundleError, InputError, Pipeline
from kandinsky22.bundle import checksums
from kandinsky22.bundle.bundle import Bundle

from .conftest import QUICK, Cli

SMALL: dict[str, Any] = {
    "seed": 1,
    "width": 64,
    "height": 64,
    "num_inference_steps": 2,
    "prior_num_inference_steps": 2,
    "output_type": "np",
}
BACKENDS = pytest.mark.parametrize("backend", ["onnxruntime", pytest.param("openvino", marks=pytest.mark.slow)])


@pytest.fixture
def own(linkable_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose files may be written into, as far as pictures of a text need them."""
    used = ("text_encoder", "prior_step", "decoder_step.", "movq_decoder", ".json", ".npz")

    def copy(source: str, destination: str) -> object:
        return (shutil.copy2 if any(each in source for each in used) else os.link)(source, destination)

    return Path(shutil.copytree(linkable_bundle, tmp_path / "a bundle", copy_function=copy))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read to be verified, in order."""
    found: list[str] = []
    digest = checksums._digest
    monkeypatch.setattr(checksums, "_digest", lambda file: found.append(str(file.name)) or digest(file))
    return found


def load(bundle: Path, backend: str, **options: Any) -> Pipeline:
    return Pipeline.load(bundle, backend, precision="fp32", threads=1, memory_limit=None, **options)


def painted(pipe: Pipeline, **options: Any) -> bytes:
    return np.asarray(pipe("a red circle", **SMALL, **options).images).tobytes()


def data(bundle: Path, component: str = "*") -> list[Path]:
    return [path for path in sorted(bundle.glob(f"onnx/{component}.onnx.data")) if path.stat().st_nlink == 1]


def overwrite(path: Path, text: bytes | None = None) -> bytes:
    """Write into a file, without making another of it; what it held."""
    before = path.read_bytes()
    with path.open("r+b") as file:
        file.write(bytes(each ^ 1 for each in before[:4096]) + before[4096:] if text is None else text)
    return before


@BACKENDS
def test_weights_altered_under_an_open_pipeline_are_refused_until_they_are_mended(backend: str, own: Path) -> None:
    with load(own, backend) as pipe:
        first = painted(pipe)
        before = {path: overwrite(path) for path in data(own)}
        assert len(before) == 4
        with pytest.raises(BundleError, match=r"text_encoder\.onnx\.data is not the file that was exported"):
            painted(pipe)
        for path, text in before.items():
            overwrite(path, text)
        assert painted(pipe) == first


@pytest.mark.parametrize(
    ("how", "name"),
    [("closed", "onnx/movq_decoder.onnx.data"), ("low memory", "onnx/decoder_step.onnx"), ("open", "constants.npz")],
)
def test_what_is_loaded_again_is_verified_again(how: str, name: str, own: Path) -> None:
    with load(own, "onnxruntime", low_memory=how == "low memory") as pipe:
        painted(pipe)
        if how == "closed":
            pipe.close()
        overwrite(own / name)
        with pytest.raises(BundleError, match=r"is not the file that was exported \(SHA-256 differs\)"):
            painted(pipe)


@BACKENDS
def test_weights_altered_while_they_compute_make_no_picture(backend: str, own: Path) -> None:
    (weights,) = data(own, "decoder_step")
    before = weights.read_bytes()

    def alter(*_: object) -> None:
        overwrite(weights)

    with load(own, backend) as pipe:
        with pytest.raises(BundleError, match=r"decoder_step\.onnx\.data was written to while decoder_step ran"):
            painted(pipe, callback_on_step_end=alter)
        overwrite(weights, before)
        again = painted(pipe)
    with load(own, backend) as pipe:
        assert painted(pipe) == again


PAINT = """
import hashlib, os, sys
from tests.runtime.test_altered import data, load, overwrite, painted
from pathlib import Path
own, backend, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
if how == "loading":
    from kandinsky22.bundle.bundle import Bundle
    graph = Bundle.graph
    def cut(self, name, variant=""):
        path = graph(self, name, variant)
        for each in data(own, name):
            os.truncate(each, 0)
        return path
    Bundle.graph = cut
with load(own, backend) as pipe:
    if how == "between":
        painted(pipe)
        for path in data(own):
            os.truncate(path, 0)
    def cut_all(*_):
        for path in data(own):
            os.truncate(path, 4096)
    steps = {"callback_on_step_end": cut_all} if how == "running" else {}
    print(hashlib.sha256(painted(pipe, **steps)).hexdigest())
"""


@BACKENDS
@pytest.mark.parametrize(
    "how", ["between", *(pytest.param(how, marks=pytest.mark.slow) for how in ("loading", "running"))]
)
def test_weights_cut_short_end_in_a_sentence_or_at_worst_the_process(backend: str, how: str, own: Path) -> None:
    """Memory that a file no longer has ends a process: nothing but another process can say so. See docs/security.md."""
    command = [sys.executable, "-c", PAINT, str(own), backend, how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert done.stdout == ""  # no picture
    if done.returncode == -signal.SIGBUS:
        assert how != "between"
        return
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(("kandinsky22.errors.BundleError: ", "kandinsky22.errors.BackendError: ")), last


def test_a_file_that_is_touched_linked_or_replaced_by_its_like_goes_on(own: Path, read: list[str]) -> None:
    (weights,) = data(own, "decoder_step")
    with load(own, "onnxruntime") as pipe:
        first, component = painted(pipe), next(iter(pipe._components._loaded.values())).component
        read.clear()
        os.link(weights, own.parent / "link")
        assert painted(pipe) == first
        assert len(set(read)) <= 1  # by its bytes: no more than the link moved
        os.replace(shutil.copy(weights, own.parent / "copy"), weights)
        assert painted(pipe) == first
        assert next(iter(pipe._components._loaded.values())).component is component
        os.utime(weights)
        assert painted(pipe) == first


def test_what_is_written_to_while_a_library_reads_is_refused(own: Path) -> None:
    bundle, (weights,) = Bundle(own), data(own, "prior_step")
    before = weights.read_bytes()
    with pytest.raises(BundleError, match="was written to while it was loaded"), bundle.reading("prior_step"):
        overwrite(weights)
    overwrite(weights, before)
    with pytest.raises(BundleError, match="was written to while it was loaded"), bundle.reading("prior_step"):
        os.replace(shutil.copy(weights, own.parent / "copy"), weights)
    with pytest.raises(BundleError, match="was written to while it was loaded"):
        _refuse(bundle, weights)


def _refuse(bundle: Bundle, weights: Path) -> None:
    """As a library does that finds a file cut short: what it says of that is not the reason."""
    with bundle.reading("prior_step"):
        os.truncate(weights, 0)
        raise BackendError("The library cannot load it.")


def test_always_finds_what_is_written_through_a_map_that_was_open_before(own: Path) -> None:
    """The times of a file move with the first write to a page of a map, and not with the next."""
    (weights,) = data(own, "prior_step")
    with weights.open("r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        pages[0] = pages[0]
        always = Bundle(own, verify="always")
        always.graph("prior_step")
        pages[0] ^= 1
        with pytest.raises(BundleError, match=r"prior_step\.onnx\.data is not the file that was exported"):
            always.graph("prior_step")


@pytest.mark.parametrize(("verify", "reads"), [("auto", 2), ("always", 4)])
def test_always_reads_at_each_load(
    verify: Any, reads: int, own: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", -1.0)
    bundle = Bundle(own, verify)
    for _ in range(2):
        with bundle.reading("prior_step"):
            pass
    assert len(read) == reads


def test_verify_is_auto_or_always(own: Path) -> None:
    with pytest.raises(InputError, match="verify is 'never'; expected one of auto, always"):
        load(own, "onnxruntime", verify="never")


@pytest.mark.parametrize("command", ["generate", "mix", "variations", "bench", "verify", "build"])
def test_every_command_that_runs_a_bundle_can_verify_always(command: str, cli: Cli) -> None:
    assert "--verify {auto,always}" in cli(command, "--help").out


def test_the_command_verifies_always(
    own: Path, read: list[str], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "SETTLED_SECONDS", -1.0)
    counts: list[int] = []
    for _ in range(2):
        done = cli("generate", own, "a red circle", *QUICK, "--verify", "always", "-o", tmp_path / "out/")
        assert done.code == 0, done.err
        counts.append(len(read))
    assert counts[0]
    assert counts[1] == 2 * counts[0]


def test_the_manifest_that_is_told_is_the_one_that_was_read(own: Path) -> None:
    bundle = Bundle(own)
    before = checksums.sha256(own / "manifest.json")
    (own / "manifest.json").write_text("{}")
    assert bundle.manifest_sha256 == before
