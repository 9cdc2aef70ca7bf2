"""The trained checkpoint and its bundle, exported once a session through the real exporter."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from kandinsky22 import Pipeline
from kandinsky22.backends import LoadedComponent, Settings, onnxruntime
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Manifest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that need the bundle come first: one worker exports it while the other runs what does without."""
    needing = {item.path for item in items if "shapes_bundle" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path not in needing)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """Here and in the programs that tests start: a runner in the background ignores it, and that is inherited."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder for the session, of what is tested and of the programs that tests start."""
    matplotlib = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matplotlib"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", os.environ.get("MPLCONFIGDIR") or str(matplotlib))  # its fonts: slow to list
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def shapes_checkpoint() -> Path:
    return Path(__file__).parents[1] / "checkpoints" / "shapes"


@pytest.fixture(scope="session")
def shapes_bundle(tmp_path_factory: pytest.TempPathFactory, shapes_checkpoint: Path) -> Path:
    """A bundle with every component, made by the first worker that asks for it, or the one in SHAPES_BUNDLE."""
    if "SHAPES_BUNDLE" in os.environ:  # exported before, where one test is run again and again
        return Path(os.environ["SHAPES_BUNDLE"])
    from kandinsky22_export import export  # here, so that tests of the runtime alone need no torch

    workers_share = tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else None
    path = (workers_share or tmp_path_factory.mktemp("engines")) / "shapes"
    decoder, controlnet, inpaint = (
        str(shapes_checkpoint / name) for name in ("decoder", "controlnet-depth", "inpaint")
    )
    with FileLock(f"{path}.lock"):
        if not path.exists():
            export(decoder, path, controlnet=controlnet, inpaint=inpaint, jobs=2)
    return path


@pytest.fixture(scope="session")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory, shapes_bundle: Path) -> Path:
    """The bundle of shapes in int8, made by the first worker that asks for it."""
    return _quantised(tmp_path_factory, shapes_bundle, "int8")


@pytest.fixture(scope="session")
def fp8_bundle(tmp_path_factory: pytest.TempPathFactory, shapes_bundle: Path) -> Path:
    """The bundle of shapes in fp8, made by the first worker that asks for it."""
    return _quantised(tmp_path_factory, shapes_bundle, "fp8")


def _quantised(tmp_path_factory: pytest.TempPathFactory, source: Path, name: str) -> Path:
    """A copy of a bundle, made anew in a format of eight bits; what is not quantised stays as it is."""
    from kandinsky22_export.quantise.calibration import PROMPTS, Calibration
    from kandinsky22_export.refine import refine

    def quantised(folder: Path) -> Manifest:
        calibration = Calibration(PROMPTS[:6], samples=18)
        return refine(folder, Bundle(folder).manifest, name, calibration, lambda *_: None, shallow=False)

    return _refined(tmp_path_factory, source, name, quantised)


def _refined(
    tmp_path_factory: pytest.TempPathFactory, source: Path, name: str, refine: Callable[[Path], Manifest]
) -> Path:
    """A copy of a bundle that `refine` has changed, made once for all workers."""
    from kandinsky22_export.write_bundle import finish

    workers_share = tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else None
    path = (workers_share or tmp_path_factory.mktemp("engines")) / f"shapes-{name}"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            unfinished = path.with_name(f"{path.name}.unfinished")
            shutil.copytree(source, unfinished)
            finish(refine(unfinished), unfinished)
            unfinished.rename(path)
    return path


@pytest.fixture(scope="session")
def shallow_bundle(tmp_path_factory: pytest.TempPathFactory, shapes_bundle: Path) -> Path:
    """The bundle of shapes with shallow steps, made by the first worker that asks for it."""
    from kandinsky22_export.quantise.calibration import PROMPTS, Calibration
    from kandinsky22_export.refine import refine

    def with_shallow_steps(folder: Path) -> Manifest:
        calibration = Calibration(PROMPTS[:1], samples=3)
        return refine(folder, Bundle(folder).manifest, "fp32", calibration, lambda *_: None, shallow=True)

    return _refined(tmp_path_factory, shapes_bundle, "shallow", with_shallow_steps)


@pytest.fixture(scope="session")
def linkable_bundle(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the bundle that no pipeline runs, to link to: a further link moves a file's times, so that a pipeline
    that holds it reads and verifies it again."""
    return Path(shutil.copytree(shapes_bundle, tmp_path_factory.mktemp("linkable") / "shapes"))


@pytest.fixture(scope="session")
def shapes_pipe(shapes_bundle: Path) -> Iterator[Pipeline]:
    with Pipeline.load(shapes_bundle, "onnxruntime") as pipe:
        yield pipe


@pytest.fixture(scope="session")
def handmade_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Four little graphs that stand for the real ones, written in a moment."""
    from .runtime.handmade import write_bundle

    return Bundle(write_bundle(tmp_path_factory.mktemp("engines") / "handmade"))


@pytest.fixture(scope="session")
def plain(handmade_bundle: Bundle) -> LoadedComponent:
    """The handmade decoder's step on the CPU, with the plain loop."""
    return onnxruntime.CPU.load(handmade_bundle, "decoder_step", Settings(threads=1))
