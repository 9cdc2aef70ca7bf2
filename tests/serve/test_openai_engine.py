"""OpenAI's images API with the real server, engine and clients: Python's and Node's."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import openai
import PIL.Image
import pytest
from numpy.typing import NDArray

from kandinsky22 import Pipeline

from .conftest import TOKEN, Server
from .test_openai import png

STEPS = {"num_inference_steps": 10, "num_inference_steps_prior": 2}


CLIENT = """
import OpenAI, { toFile } from "openai";
const client = new OpenAI({ apiKey: process.env.OPENAI_API_KEY, baseURL: process.env.BASE, maxRetries: 0 });
const steps = { num_inference_steps: 10, num_inference_steps_prior: 2, seed: 7 };
const picture = (base64, name) => toFile(Buffer.from(base64, "base64"), name, { type: "image/png" });
const show = (value) => console.log(JSON.stringify(value));
"""


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.base}/v1", api_key=TOKEN, max_retries=0, timeout=120) as found:
        yield found


@pytest.fixture
def script(server: Server, node: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a piece of JavaScript that has `client`, `steps`, `picture`, and `show` for its results."""

    def run(code: str, **more: str) -> Any:
        return node(CLIENT + code, OPENAI_API_KEY=TOKEN, BASE=f"{server.base}/v1", **more)

    return run


def pixels(b64_json: str | None) -> NDArray[np.uint8]:
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


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_a_picture_is_begun_from_mixed_and_varied(client: openai.OpenAI) -> None:
    begun = client.images.edit(image=png(), prompt="a blue circle", extra_body={"seed": 1, **STEPS})
    mixed = client.images.edit(
        image=[png(), png(hole=False)], prompt="a blue circle", size="64x64", extra_body={"seed": 1, **STEPS}
    )
    varied = client.images.create_variation(image=png(), size="256x256", extra_body={"seed": 1, **STEPS})
    for answer, side in ((begun, 64), (mixed, 64), (varied, 256)):
        assert answer.data is not None
        assert pixels(answer.data[0].b64_json).shape == (side, side, 3)


def test_javascript_has_the_same_picture_whole_and_streamed(script: Callable[..., Any], client: openai.OpenAI) -> None:
    code = """
    const asked = { prompt: "a red circle", size: "64x64", ...steps };
    const whole = await client.images.generate(asked);
    const events = [];
    for await (const event of await client.images.generate({ ...asked, stream: true, partial_images: 2 })) {
      events.push(event);
    }
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    show({ whole, events, models });
    """
    found = script(code)
    ours = client.images.generate(prompt="a red circle", size="64x64", extra_body={"seed": 7, **STEPS})
    assert ours.data is not None
    assert found["whole"]["data"][0]["b64_json"] == ours.data[0].b64_json
    assert found["events"][0]["type"] == "image_generation.partial_image"
    assert found["events"][-1]["type"] == "image_generation.completed"
    assert found["events"][-1]["b64_json"] == ours.data[0].b64_json
    assert found["models"] == ["ai-forever/kandinsky-2.2"]


def test_javascript_edits_pictures_and_reads_errors(script: Callable[..., Any]) -> None:
    code = """
    const image = await picture(process.env.WHOLE, "image.png");
    const mask = await picture(process.env.HOLE, "mask.png");
    const edited = await client.images.edit({ image, mask, prompt: "a hat", overlay: true, ...steps });
    const mixed = await client.images.edit({ image: [image, image], prompt: "a hat", size: "64x64", ...steps });
    const names = [];
    for await (const event of await client.images.edit({ image, prompt: "a hat", stream: true, ...steps })) {
      names.push(event.type);
    }
    let refused;
    try {
      await client.images.generate({ prompt: "a hat", size: "1x1" });
    } catch (error) {
      refused = { status: error.status, type: error.type, message: error.message, name: error.constructor.name };
    }
    show({ edited, mixed, names, refused });
    """
    whole, hole = (base64.b64encode(png(hole=each)).decode() for each in (False, True))
    found = script(code, WHOLE=whole, HOLE=hole)
    painted = pixels(found["edited"]["data"][0]["b64_json"])
    assert (painted[32:] == (200, 90, 10)).all()
    assert (painted[:32, :32] != (200, 90, 10)).any()
    assert pixels(found["mixed"]["data"][0]["b64_json"]).shape == (64, 64, 3)
    assert found["names"] == ["image_edit.completed"]
    assert (found["refused"]["status"], found["refused"]["name"]) == (400, "BadRequestError")
    assert "size" in found["refused"]["message"]
