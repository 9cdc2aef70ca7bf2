"""OpenAI's images API with the real server, engine and clients: Python's and Node's."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openai
import PIL.Image
import pytest

from kandinsky22 import Pipeline

from .running import Running
from .test_openai import png

STEPS = {"num_inference_steps": 10, "num_inference_steps_prior": 2}


@pytest.fixture(scope="module")
def client(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    data = tmp_path_factory.mktemp("openai engine") / "data"
    flags = ("--backend", "onnxruntime", "--threads", "1")
    with (
        Running(shapes_bundle, data, *flags) as server,
        openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0, timeout=120) as found,
    ):
        yield found


def pixels(b64_json: str | None) -> np.ndarray:
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(b64_json or ""))))


def test_a_streamed_picture_is_the_one_that_the_pipeline_makes(client: openai.OpenAI, shapes_pipe: Pipeline) -> None:
    more = {"seed": 7, "guidance_scale": 4.0, **STEPS}
    stream = client.images.generate(prompt="a red circle", size="64x64", stream=True, partial_images=3, extra_body=more)
    *partial, whole = list(stream)
    assert whole.type == "image_generation.completed"
    assert partial
    assert all(each.type == "image_generation.partial_image" for each in partial)
    assert pixels(partial[0].b64_json).shape == (64, 64, 3)
    steps = {"num_inference_steps": 10, "prior_num_inference_steps": 2}
    (own,) = shapes_pipe("a red circle", height=64, width=64, seed=7, guidance_scale=4.0, **steps).images
    assert np.abs(pixels(whole.b64_json).astype(int) - np.asarray(own)).max() <= 1


def test_an_edit_keeps_what_its_mask_keeps(client: openai.OpenAI) -> None:
    answer = client.images.edit(
        image=png(), mask=png(hole=True), prompt="a blue circle", extra_body={"overlay": True, "seed": 1, **STEPS}
    )
    assert answer.data is not None
    painted = pixels(answer.data[0].b64_json)
    assert (painted[32:] == (200, 90, 10)).all()
    assert (painted[:32, :32] != (200, 90, 10)).any()


def test_a_picture_is_begun_from_mixed_and_varied(client: openai.OpenAI) -> None:
    begun = client.images.edit(image=png(), prompt="a blue circle", extra_body={"seed": 1, **STEPS})
    mixed = client.images.edit(
        image=[png(), png(hole=False)], prompt="a blue circle", size="64x64", extra_body={"seed": 1, **STEPS}
    )
    varied = client.images.create_variation(image=png(), size="64x64", extra_body={"seed": 1, **STEPS})  # type: ignore[arg-type]
    for answer in (begun, mixed, varied):
        assert answer.data is not None
        assert pixels(answer.data[0].b64_json).shape == (64, 64, 3)
