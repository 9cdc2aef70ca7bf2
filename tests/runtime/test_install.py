"""`pip install .[cpu]` into an empty environment: how much comes, and that it makes the same pictures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import kandinsky22
from kandinsky22 import Pipeline
from kandinsky22.images import writing

from . import importing
from .conftest import QUICK

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "runtime", "export")
LARGEST = 250e6
HEAVY = ("torch", "transformers", "diffusers", "accelerate", "onnx", "onnxscript", "openvino")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An environment with nothing in it but `.[cpu]` (pip installs from outside, and is not counted)."""
    folder = tmp_path_factory.mktemp("install")
    for name in SOURCES:  # a copy: building leaves files in the tree
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, f"{folder}[cpu]"], check=True)
    yield folder / "venv"
    shutil.rmtree(folder)


def run(environment: Path, program: str, *arguments: object) -> str:
    command = [environment / "bin" / program, *map(str, arguments)]
    variables = without_pythons_settings()
    return subprocess.run(command, check=True, capture_output=True, text=True, env=variables, cwd=environment).stdout


def without_pythons_settings() -> dict[str, str]:
    """The variables of this process that do not change what Python finds, or whether it keeps bytecode."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def packages(environment: Path) -> dict[str, int]:
    """Bytes of everything in site-packages, by the name of its folder or file."""
    (site,) = (environment / "lib").glob("python*/site-packages")
    return {
        each.name: sum(path.stat().st_size for path in [each, *each.rglob("*")] if path.is_file())
        for each in site.iterdir()
    }


def test_it_is_small_and_has_no_torch(environment: Path) -> None:
    sizes = packages(environment)
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    print(f"{sum(sizes.values()) / 1e6:.1f} MB:", ", ".join(f"{name} {size / 1e6:.1f}" for name, size in largest))
    assert sum(sizes.values()) < LARGEST
    assert not {name.split("-")[0].lower() for name in sizes} & set(HEAVY)


def test_it_has_nothing_of_the_server_and_says_what_is_missing(environment: Path) -> None:
    extras = {"fastapi", "starlette", "pydantic", "uvicorn", "httpx", "prometheus_client", "gradio"}
    assert not {name.split("-")[0].lower() for name in packages(environment)} & extras
    command = [environment / "bin" / "kandinsky22", "serve", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, env=without_pythons_settings(), check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: serve needs ")
    assert done.stderr.endswith(" which is not installed: pip install 'kandinsky22[serve]'.\n")


def test_it_imports_nothing_of_the_server(environment: Path) -> None:
    program = (
        "import sys, kandinsky22.pipeline; print([name for name in sys.modules if name.startswith('kandinsky22_')])"
    )
    assert run(environment, "python", "-c", program) == "[]\n"


def test_it_imports_quickly(environment: Path) -> None:
    assert importing.pipelines_beside_numpys(environment / "bin" / "python", without_pythons_settings()) < 3


def test_it_makes_the_same_picture(
    environment: Path, shapes_bundle: Path, shapes_pipe: Pipeline, tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    told = run(environment, "kandinsky22", "generate", shapes_bundle, "a red circle", *QUICK, "--seed=4", "-o", path)
    assert told == f"{path}\n"
    call: dict[str, Any] = writing.read_parameters(path)["arguments"]
    (here,) = shapes_pipe(**call).images
    with PIL.Image.open(path) as there:
        np.testing.assert_array_equal(there, here)
    report = json.loads(run(environment, "kandinsky22", "doctor", shapes_bundle, "--json"))
    assert report["auto"] == "onnxruntime"
    code = "import importlib.metadata as installed; print(installed.version('kandinsky22'))"
    assert run(environment, "python", "-c", code).strip() == report["kandinsky22"] == kandinsky22.__version__
    assert report["bundle"]["problems"] == []
