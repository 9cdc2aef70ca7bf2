"""NaN and infinity are no picture: one sentence that names where they came from."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kandinsky22 import BackendError, BundleError, InputError, Pipeline
from kandinsky22.arrays import Array
from kandinsky22.backends.onnxruntime.cpu import OnnxRuntimeComponent
from kandinsky22.bundle.reading import CONSTANTS

from .conftest import QUICK, Cli
from .handmade import GRAPHS, MORE_GRAPHS, write_bundle

OPTIONS: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, "prior_num_inference_steps": 2}
PICTURE = np.full((64, 64, 3), 90, np.uint8)
OUTPUTS = {
    "text_encoder": "text_hidden",
    "prior_step": "latents_next",
    "image_encoder": "image_embeds",
    "hint_encoder": "hint_latents",
    "movq_encoder": "latents",
    "decoder_step_controlnet": "latents_next",
    "movq_decoder": "image",
}


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[Pipeline]:
    folder = write_bundle(tmp_path / "tasks", GRAPHS | MORE_GRAPHS)
    with Pipeline.load(folder, "onnxruntime", threads=1) as loaded:
        yield loaded


@pytest.fixture
def spoilt(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A component, one number of whose output is none."""
    name, number = request.param
    run = OnnxRuntimeComponent.run

    def spoil(self: OnnxRuntimeComponent, feeds: Mapping[str, Array]) -> dict[str, Array]:
        outputs = run(self, feeds)
        if self._name == name:
            outputs[OUTPUTS[name]].flat[-1] = number
        return outputs

    monkeypatch.setattr(OnnxRuntimeComponent, "run", spoil)
    return str(name)


@pytest.mark.parametrize("spoilt", [(name, number) for name in OUTPUTS for number in (np.nan, -np.inf)], indirect=True)
def test_what_a_component_gave_is_named(pipe: Pipeline, spoilt: str) -> None:
    with pytest.raises(BackendError, match=rf"^{spoilt} gave numbers that are not finite"):
        pipe.controlnet("a", PICTURE, PICTURE, prior_image=PICTURE, strength=0.9, prior_strength=0.9, **OPTIONS)


@pytest.mark.parametrize("spoilt", [("movq_decoder", np.nan)], indirect=True)
def test_the_command_writes_nothing(pipe: Pipeline, spoilt: str, cli: Cli, tmp_path: Path) -> None:
    done = cli("generate", pipe.bundle.path, "a", *QUICK, "-o", tmp_path / "out/")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"error: {spoilt} gave numbers that are not finite")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_a_callback_returns_is_refused(pipe: Pipeline, number: float) -> None:
    with pytest.raises(InputError, match="The callback returned latents that are not finite"):
        pipe("a", callback_on_step_end=lambda *_: {"latents": np.full((1, 4, 8, 8), number)}, **OPTIONS)


@pytest.mark.parametrize("name", ["zero_image_embeds", "clip_mean", "clip_std"])
def test_constants_are_numbers(pipe: Pipeline, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pipe.bundle.constants()
    constants[name][0, 0] = np.nan
    stream = io.BytesIO()
    np.savez(stream, **constants)
    read = type(pipe.bundle)._read
    monkeypatch.setattr(
        type(pipe.bundle), "_read", lambda self, file: stream.getvalue() if file == CONSTANTS else read(self, file)
    )
    with pytest.raises(BundleError, match=rf"constants\.npz has numbers that are not finite in {name}"):
        pipe("a", **OPTIONS)
