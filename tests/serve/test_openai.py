"""OpenAI's images API, through the real `openai` client."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import PIL.Image
import pytest

from kandinsky22.request.presets import PRESETS
from kandinsky22_serve.contracts.openai_pictures import fitting
from kandinsky22_serve.store.records import Job, Status

from .quick import Serving, serving

TOKEN = "a-token-of-some-length"


@pytest.fixture(scope="module")
def server(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(shapes_bundle, tmp_path_factory.mktemp("openai") / "data", [TOKEN.encode()], max_queue=3) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.base}/v1", api_key=TOKEN, max_retries=0, timeout=30) as found:
        yield found


@pytest.fixture
def held(server: Serving) -> Iterator[Serving]:
    """The server with an engine that starts nothing until the test ends."""
    server.engine.hold.set()
    yield server
    server.engine.hold.clear()
    for job in server.service.store.jobs.newest(10):
        server.service.cancel(job.id)


def png(width: int = 64, height: int = 64, hole: bool = False) -> bytes:
    """A picture, its upper left quarter fully transparent where there is a hole, its lower right half so."""
    pixels = np.full((height, width, 4), (200, 90, 10, 255), np.uint8)
    if hole:
        pixels[: height // 2, : width // 2, 3] = 0
        pixels[height // 2 :, width // 2 :, 3] = 128
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def newest(server: Serving) -> Job:
    job = server.newest()
    assert job is not None
    return job


def picture(server: Serving, job: Job, name: str) -> PIL.Image.Image:
    """A picture of a job's request, as the engine reads it."""
    return PIL.Image.open(job.request[name])


def test_pictures_come_as_addresses_and_as_bytes(server: Serving, client: openai.OpenAI) -> None:
    answer = client.images.generate(
        model="kandinsky-2.2",
        prompt="a fox",
        n=2,
        size="64x128",
        extra_body={
            "seed": 7,
            "negative_prompt": "dogs",
            "num_inference_steps": 3,
            "guidance_scale": 2.5,
            "scheduler_prior": "ddim",
        },
    )
    assert answer.data is not None
    assert len(answer.data) == 2
    assert answer.size == "64x128"
    assert answer.output_format == "png"
    assert abs(answer.created - time.time()) < 60
    assert answer.usage is not None
    for each in answer.data:
        body = base64.b64decode(each.b64_json or "")
        assert httpx.get(each.url or "").content == body
        assert PIL.Image.open(io.BytesIO(body)).size == (64, 128)
    request = newest(server).request
    assert request["prompt"] == "a fox"
    assert request["num_images_per_prompt"] == 2
    assert (request["width"], request["height"]) == (64, 128)
    assert (request["seed"], request["num_inference_steps"], request["guidance_scale"]) == (7, 3, 2.5)
    assert (request["negative_prompt"], request["prior_scheduler"]) == ("dogs", "ddim")
    assert answer._request_id == newest(server).id


def test_a_preset_is_of_ours(server: Serving, client: openai.OpenAI) -> None:
    asked = {"preset": "fast", "num_inference_steps_prior": 3}
    client.images.generate(prompt="a fox", size="64x64", extra_body=asked)
    request = newest(server).request
    assert request["num_inference_steps"] == PRESETS["fast"]["num_inference_steps"]
    assert request["scheduler"] == PRESETS["fast"]["scheduler"]
    assert (request["prior_num_inference_steps"], "preset" in request) == (3, False)


def test_ten_pictures_are_the_most(server: Serving, client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a fox", n=10, size="64x64", response_format="url")
    assert answer.data is not None
    assert len({each.url for each in answer.data}) == 10
    assert not any(each.b64_json for each in answer.data)
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt="a fox", n=11, size="64x64")


def test_a_format_and_its_quality_are_those_asked_for(server: Serving, client: openai.OpenAI) -> None:
    answer = client.images.generate(
        prompt="a fox", size="64x64", response_format="b64_json", output_format="webp", output_compression=0
    )
    assert answer.data is not None
    assert answer.data[0].url is None
    assert base64.b64decode(answer.data[0].b64_json or "")[8:12] == b"WEBP"
    assert newest(server).options.quality == 1
    client.images.generate(prompt="a fox", size="64x64", output_format="jpeg")
    assert newest(server).options.quality == 100


def test_without_a_size_the_published_one_is_painted(server: Serving, client: openai.OpenAI) -> None:
    assert client.images.generate(prompt="a fox").size == "512x512"
    assert client.images.generate(prompt="a fox", size="auto").size == "512x512"
    assert client.images.generate(prompt="a fox", size="100x65").size == "128x128"


def test_a_depth_map_leads_a_generation(server: Serving, client: openai.OpenAI) -> None:
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    client.images.generate(prompt="a fox", size="64x64", extra_body={"hint": uri})
    assert newest(server).request["task"] == "controlnet"
    assert uri not in str(newest(server).input)


def test_transparent_pixels_of_a_mask_are_painted_anew(server: Serving, client: openai.OpenAI) -> None:
    answer = client.images.edit(
        image=("in.png", png()), mask=("mask.png", png(hole=True)), prompt="a hat", extra_body={"overlay": True}
    )
    assert answer.size == "64x64"
    job = newest(server)
    assert job.request["task"] == "inpaint"
    assert job.request["overlay"] is True
    white = np.asarray(picture(server, job, "mask_image").convert("L")) > 127
    assert white[:32, :32].all()
    assert not white[32:].any()
    assert not white[:, 32:].any()


def test_a_transparent_picture_is_its_own_mask(server: Serving, client: openai.OpenAI) -> None:
    client.images.edit(image=png(hole=True), prompt="a hat")
    job = newest(server)
    assert job.request["task"] == "inpaint"
    assert np.asarray(picture(server, job, "mask_image").convert("L"))[0, 0] == 255


def test_a_picture_without_a_mask_is_begun_from(server: Serving, client: openai.OpenAI) -> None:
    client.images.edit(image=[png(300, 200)], prompt="a hat", extra_body={"strength": 0.5})
    job = newest(server)
    assert job.request["task"] == "img2img"
    assert job.request["strength"] == 0.5
    assert (job.request["width"], job.request["height"]) == (320, 192)
    assert httpx.get(job.input["image"]).content == png(300, 200)


def test_several_pictures_are_mixed_with_the_prompt(server: Serving, client: openai.OpenAI) -> None:
    client.images.edit(
        image=[png(), png(128, 64)], prompt="a hat", size="64x64", extra_body={"mix_weights": [0.5, 0.25, 0.25]}
    )
    job = newest(server)
    assert job.request["task"] == "mix"
    assert job.request["images_and_prompts"][0] == {"text": "a hat"}
    assert [PIL.Image.open(each["image"]).size for each in job.request["images_and_prompts"][1:]] == [
        (64, 64),
        (128, 64),
    ]
    assert job.request["weights"] == [0.5, 0.25, 0.25]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # OpenAI's own models of variations are gone
def test_variations_are_of_the_picture_alone(server: Serving, client: openai.OpenAI) -> None:
    answer = client.images.create_variation(image=png(), n=2, size="256x256", response_format="b64_json")
    assert answer.data is not None
    assert len(answer.data) == 2
    job = newest(server)
    assert job.request["task"] == "variations"
    assert "prompt" not in job.request


@pytest.mark.parametrize(
    ("given", "painted"), [((4000, 3000), (1024, 768)), ((10, 10), (64, 64)), ((33, 96), (64, 128))]
)
def test_an_automatic_size_is_like_the_picture(given: tuple[int, int], painted: tuple[int, int]) -> None:
    assert fitting(*given) == painted


def test_a_stream_gives_partial_pictures_and_then_the_pictures(server: Serving, client: openai.OpenAI) -> None:
    server.engine.steps, server.engine.step_seconds = 6, 0.03
    try:
        stream = client.images.generate(
            prompt="a fox", n=2, size="64x64", stream=True, partial_images=2, output_format="jpeg"
        )
        events = list(stream)
    finally:
        server.engine.steps = 0
    names = [each.type for each in events]
    partial = [each for each in events if each.type == "image_generation.partial_image"]
    whole = [each for each in events if each.type == "image_generation.completed"]
    assert names == ["image_generation.partial_image"] * 2 + ["image_generation.completed"] * 2
    assert [each.partial_image_index for each in partial] == [0, 1]
    for each in events:
        assert PIL.Image.open(io.BytesIO(base64.b64decode(each.b64_json))).format == "JPEG"
        assert (each.size, each.output_format, each.background, each.quality) == ("64x64", "jpeg", "opaque", "auto")
        assert abs(each.created_at - time.time()) < 60
    assert [each.usage.total_tokens for each in whole] == [0, 0]


def test_an_edit_streams_events_of_its_own_name(server: Serving, client: openai.OpenAI) -> None:
    events = list(client.images.edit(image=png(), prompt="a hat", size="64x64", stream=True))
    assert [each.type for each in events] == ["image_edit.completed"]
    assert newest(server).options.previews is False


def test_a_failure_is_an_error_that_is_not_tried_again(server: Serving) -> None:
    server.engine.fails = "There is not enough memory."
    before = newest(server)
    try:
        with openai.OpenAI(base_url=f"{server.base}/v1", api_key=TOKEN, max_retries=2) as client:
            with pytest.raises(openai.InternalServerError, match="not enough memory"):
                client.images.generate(prompt="a fox", size="64x64")
            assert newest(server).seq == before.seq + 1
            with pytest.raises(openai.APIError, match="not enough memory"):
                list(client.images.generate(prompt="a fox", size="64x64", stream=True))
    finally:
        server.engine.fails = None


def test_a_job_that_someone_cancels_is_an_error(held: Serving, client: openai.OpenAI) -> None:
    events = client.images.generate(prompt="a fox", size="64x64", stream=True)
    held.service.cancel(held.wait_until(Status.STARTING).id)
    with pytest.raises(openai.APIError, match="canceled"):
        list(events)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_has_its_job_canceled(held: Serving, stream: bool) -> None:
    body = {"prompt": "a fox", "size": "64x64", "stream": stream, "partial_images": 1}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    before = held.newest()
    url = f"{held.base}/v1/images/generations"
    with (
        pytest.raises(httpx.ReadTimeout),
        httpx.stream("POST", url, json=body, headers=headers, timeout=0.5) as answer,
    ):
        answer.read()
    job = held.wait_until(Status.CANCELED)
    assert before is None or job.seq == before.seq + 1
    held.wait_until_told(job)


def _edit(**more: Any) -> Callable[[openai.OpenAI], Any]:
    return lambda client: client.images.edit(**{"image": png(), "prompt": "SECRET", **more})


def _generate(**more: Any) -> Callable[[openai.OpenAI], Any]:
    return lambda client: client.images.generate(**{"prompt": "SECRET", **more})


REFUSED: dict[str, tuple[Callable[[openai.OpenAI], Any], str]] = {
    "transparent": (_generate(background="transparent"), "background"),
    "unknown key": (_generate(extra_body={"SECRET": "SECRET"}), "unknown input"),
    "unknown key of a form": (_edit(extra_body={"SECRET": "SECRET"}), "unknown input"),
    "no size": (_generate(size="SECRET"), "size"),
    "a small size": (_generate(size="8x512"), "64 to"),
    "a large size": (_generate(size="512x99999"), "64 to"),
    "compressed png": (_generate(output_compression=50), "output_compression"),
    "gif": (_generate(output_format="gif"), "output_format"),
    "four partial pictures": (_generate(stream=True, partial_images=4), "partial_images"),
    "no picture": (_edit(image=b"SECRET"), "image"),
    "an opaque mask": (_edit(mask=png()), "transparent"),
    "a mask of another size": (_edit(mask=png(128, 128, hole=True)), "mask"),
    "a mask of several": (_edit(image=[png(), png()], mask=png(hole=True)), "mask"),
    "weights of one": (_edit(extra_body={"mix_weights": [1.0]}), "mix_weights"),
    "too few weights": (_edit(image=[png(), png()], extra_body={"mix_weights": [1.0]}), "weights"),
    "strength of a mask": (_edit(mask=png(hole=True), extra_body={"strength": 0.5}), "strength"),
    "no image": (_edit(image=[]), "image"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_one_sentence_and_leaves_nothing(
    server: Serving, client: openai.OpenAI, case: str
) -> None:
    ask, told = REFUSED[case]
    before, kept = server.newest(), len(list(server.service.store.files.folder.iterdir()))
    with pytest.raises(openai.BadRequestError) as found:
        ask(client)
    assert told in found.value.message
    assert found.value.type == "invalid_request_error"
    assert "SECRET" not in found.value.response.text
    assert server.newest() == before
    assert len(list(server.service.store.files.folder.iterdir())) == kept


def test_another_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"ai-forever/kandinsky-2\.2"):
        client.images.generate(model="gpt-image-2", prompt="a fox")
    assert client.images.generate(model="ai-forever/kandinsky-2.2", prompt="a fox", size="64x64").data


def test_models_are_listed_for_both_kinds_of_clients(server: Serving, client: openai.OpenAI) -> None:
    (listed,) = client.models.list()
    assert (listed.id, listed.object, listed.owned_by) == ("ai-forever/kandinsky-2.2", "model", "ai-forever")
    assert client.models.retrieve("kandinsky-2.2").id == listed.id
    assert client.models.retrieve(listed.id).object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-2")
    answer = httpx.get(f"{server.base}/v1/models", headers={"Authorization": f"Bearer {TOKEN}"}).json()
    assert answer["results"][0]["name"] == "kandinsky-2.2"
    assert answer["next"] is answer["previous"] is None


def test_without_the_token_there_is_nothing(server: Serving) -> None:
    with (
        openai.OpenAI(base_url=f"{server.base}/v1", api_key="another", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as found,
    ):
        client.images.generate(prompt="a fox")
    assert found.value.code == "invalid_api_key"


def test_paths_that_are_none_answer_in_openais_shape(server: Serving) -> None:
    for method, path, status in (("GET", "generations", 405), ("POST", "none", 404)):
        answer = httpx.request(method, f"{server.base}/v1/images/{path}", headers={"Authorization": f"Bearer {TOKEN}"})
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_full_queue_is_a_limit_of_rate(held: Serving, client: openai.OpenAI) -> None:
    streams = [client.images.generate(prompt="a fox", size="64x64", stream=True) for _ in range(3)]
    with pytest.raises(openai.RateLimitError):
        client.images.generate(prompt="a fox", size="64x64")
    for each in streams:
        each.close()
    held.wait_until(Status.CANCELED)


def test_nothing_is_waited_for_where_the_engine_cannot_start(server: Serving, client: openai.OpenAI) -> None:
    server.engine.state = "broken"
    try:
        with pytest.raises(openai.InternalServerError) as found:
            client.images.generate(prompt="a fox")
    finally:
        server.engine.state = "ready"
    assert found.value.status_code == 503
