"""The GPU, and a bundle with plans for it. Without a GPU every test here is skipped, and says so.

The bundle is the one that KANDINSKY22_BUNDLE names, or engines/shapes, which `make engines` writes; nothing here needs
torch. Plans are built into a copy of it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from kandinsky22 import BackendError, Pipeline
from kandinsky22.backends.cuda.runtime import Cuda
from kandinsky22.backends.tensorrt import build as plans
from kandinsky22.backends.tensorrt import library
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.bundle.bundle import Bundle

SHAPES = Path(__file__).parents[2] / "engines" / "shapes"


@pytest.fixture(scope="session")
def cuda() -> Cuda:
    try:
        found = Cuda.load()
        found.check_device()
    except BackendError as error:
        pytest.skip(f"NOT TESTED, no GPU: {error}")
    return found


@pytest.fixture(scope="session")
def exported(cuda: Cuda) -> Bundle:
    path = Path(os.environ.get("KANDINSKY22_BUNDLE", SHAPES))
    if not path.exists():
        pytest.skip(f"NOT TESTED, no bundle in {path}: make engines, or set KANDINSKY22_BUNDLE")
    return Bundle(path)


@pytest.fixture(scope="session")
def planned(exported: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle with plans, built here."""
    flavours = library.flavours()
    if not flavours:
        pytest.skip("NOT TESTED, no TensorRT: pip install kandinsky22[tensorrt] or kandinsky22[tensorrt-rtx]")
    folder = tmp_path_factory.mktemp("engines") / exported.path.name
    shutil.copytree(exported.path, folder)
    bundle = Bundle(folder)
    largest = min(512, bundle.manifest.limits.max_size)
    plans.build(bundle, flavours[0], Profile(64, min(128, largest), largest, 4), progress=False)
    return bundle


@pytest.fixture(scope="session", params=["tensorrt", "onnxruntime"])
def gpu_backend(request: pytest.FixtureRequest, exported: Bundle) -> tuple[str, Bundle]:
    """A backend that runs on the GPU, and the bundle that it runs."""
    from kandinsky22 import backends

    name: str = request.param
    bundle: Bundle = request.getfixturevalue("planned") if name == "tensorrt" else exported
    found = next(each for each in backends.survey(bundle) if each.name == name)
    if not (found.usable and found.gpu):
        pytest.skip(f"NOT TESTED, {name} does not run on the GPU: {found.reason}")
    return name, bundle


@pytest.fixture(scope="session")
def cpu_pipe(exported: Bundle) -> Iterator[Pipeline]:
    """The same bundle by ONNX Runtime on the CPU."""
    from kandinsky22.backends import Settings, onnxruntime
    from kandinsky22.components import Components

    with Pipeline(Components(exported, onnxruntime.CPU, Settings())) as pipe:
        yield pipe


@pytest.fixture
def gpu_pipe(gpu_backend: tuple[str, Bundle]) -> Iterator[Pipeline]:
    name, bundle = gpu_backend
    with Pipeline.load(bundle.path, name) as pipe:
        yield pipe
