"""The page without a browser: its fields and the API's inputs, its jobs, its calls, and when it is there."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from PIL import Image
from starlette.testclient import TestClient

from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import SKIPPING_ROLES, Role
from kandinsky22.errors import InputError
from kandinsky22.images.masks import Mask
from kandinsky22.request import request as requests
from kandinsky22.request.presets import PRESETS, SET
from kandinsky22.request.request import Request
from kandinsky22_serve import inputs
from kandinsky22_serve.app import create_app
from kandinsky22_serve.inputs import input_model
from kandinsky22_serve.page import form, jobs, shown, snippets
from kandinsky22_serve.service import Service
from kandinsky22_serve.settings import Settings
from kandinsky22_serve.store.records import Job, Status

from .conftest import TOKEN, App, Server
from .running import small

MODEL = Settings(bundle=Path()).model
BASE = "http://127.0.0.1:8022"
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def fields(task: str, **more: Any) -> dict[str, Any]:
    """Fields of the page for a small picture; those that are not named are as the page has them at first."""
    empty = dict.fromkeys(form.FIELDS) | {name: 1.0 for name in form.MIXED if "weight" in name}
    size = {"width": 64, "height": 64, "num_outputs": 1, "num_inference_steps": 4, "num_inference_steps_prior": 2}
    rest = {"guidance_scale": 4, "guidance_scale_prior": 4, "scheduler": "", "seed": "", "output_quality": 95}
    return {**empty, **size, **rest, "output_format": "png", "overlay": False, "strength": 0.3, "task": task, **more}


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (64, 64), "navy").save(tmp_path / "picture.png")
    return str(tmp_path / "picture.png")


def test_a_bundle_without_a_task_s_components_does_not_offer_it(shapes_bundle: Path) -> None:
    manifest = Bundle(shapes_bundle).manifest
    assert form.tasks_of(manifest) == list(form.LABELS)

    def without(*roles: Role) -> list[str]:
        left = {name: each for name, each in manifest.components.items() if each.role not in roles}
        return form.tasks_of(dataclasses.replace(manifest, components=left))

    assert without(Role.INPAINT_DECODER, Role.IMAGE_ENCODER) == ["text2img", "img2img", "controlnet", "mix"]
    assert without(Role.MOVQ_ENCODER) == ["text2img", "controlnet", "mix", "variations"]
    assert without(Role.MOVQ_DECODER) == []


def test_fields_of_every_task_become_a_job_that_gives_them_back(app: App, picture: str) -> None:
    canvas = {"background": Image.new("RGBA", (64, 64), "navy"), "layers": [Image.new("RGBA", (64, 64), "#ff5a2880")]}
    given = {
        "text2img": {"prompt": "a", "negative_prompt": "b", "scheduler": "ddim", "seed": "7"},
        "img2img": {"prompt": "a", "image": picture, "strength": 0.5},
        "inpaint": {"prompt": "a", "canvas": canvas, "overlay": True},
        "controlnet": {"prompt": "a", "hint": picture},
        "mix": {"mix_prompt_0": "a", "mix_prompt_weight_0": 0.25, "mix_image_2": picture, "mix_image_weight_2": 0.75},
        "variations": {"image": picture},
    }
    assert given.keys() == form.LABELS.keys()
    for task, named in given.items():
        job = asyncio.run(jobs.paint(app.service, fields(task, **named), BASE))
        assert (job.contract, job.request["task"], job.options.previews, job.options.form) == (
            "page",
            task,
            True,
            "png",
        )
        again = form.fields_of(job.request, job.seeds[0])
        assert (again["task"], again["width"], again["num_inference_steps"]) == (task, 64, 4)
        for name, value in named.items():
            if name == "canvas":
                background, mask = (Image.open(path) for path in again["canvas"])
                assert background.getpixel((9, 9)) == (0, 0, 128)
                assert mask.getextrema() == (255, 255)
            elif name.startswith("mix_image_") and "weight" not in name:
                assert again["mix_image_0"] is not None
                assert again["mix_image_weight_0"] == 0.75
            elif name in ("image", "hint"):
                assert Path(again[name]).parent == app.service.store.files.folder
            elif name != "seed" and not name.startswith("mix_image"):
                assert again[name] == value
    assert jobs.unfinished(app.service) == job


def sent(app: App, **named: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of the settings that presets decide arrives for the fields, and what is stored of them."""
    job = asyncio.run(jobs.paint(app.service, fields("text2img", prompt="a", **named), BASE))
    names = {parameter: name for name, parameter in NAMES.items()}
    inputs = {name: job.input[name] for name in ("preset", *names.values()) if name in job.input}
    return inputs, {names[name]: job.request.get(name) for name in SET}


NAMES = {
    "num_inference_steps": "num_inference_steps",
    "num_inference_steps_prior": "prior_num_inference_steps",
    "scheduler": "scheduler",
    "scheduler_prior": "prior_scheduler",
    "guidance_interval": "guidance_interval",
}
"""What presets set, by the API's names."""


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_decides_what_nobody_changed(app: App, preset: str) -> None:
    assert set(NAMES.values()) == SET
    filled = form.filled_by(preset)
    stored = {
        name: list(value) if isinstance(value := PRESETS[preset][parameter], tuple) else value
        for name, parameter in NAMES.items()
    }
    assert sent(app, preset=preset, **filled) == ({"preset": preset}, stored)
    for changed in (
        {"num_inference_steps": 11},
        {"num_inference_steps_prior": 9},
        {"scheduler": "ddpm"},
        {"scheduler_prior": "unclip"},
    ):
        assert sent(app, preset=preset, **filled | changed) == ({"preset": preset, **changed}, stored | changed)
    interval = {"guidance_interval": [0.25, filled["guidance_ends"]]}
    given = filled | {"guidance_begins": 0.25}
    assert sent(app, preset=preset, **given) == ({"preset": preset, **interval}, stored | interval)


def test_the_checkpoint_s_own_scheduler_can_be_chosen_beside_a_preset(app: App) -> None:
    filled = form.filled_by("fastest")
    inputs, stored = sent(app, preset="fastest", **filled | {"scheduler": ""})
    assert (inputs.get("preset"), stored["scheduler"]) == (None, None)
    del stored["scheduler"]
    assert stored == {
        "num_inference_steps": 10,
        "num_inference_steps_prior": 4,
        "scheduler_prior": "ddim",
        "guidance_interval": [0.0, 0.5],
    }


def test_without_a_preset_steps_alone_are_sent_that_nobody_changed(app: App) -> None:
    first = {"preset": "", "scheduler_prior": "", "guidance_begins": 0, "guidance_ends": 1, "skip": "none"}
    job = asyncio.run(jobs.paint(app.service, fields("text2img", prompt="a", **first), BASE))
    assert not job.input.keys() & {"preset", "scheduler", "scheduler_prior", "guidance_interval", "skip"}
    assert (job.input["num_inference_steps"], job.input["num_inference_steps_prior"]) == (4, 2)


ODD = {
    "guidance_scale": 4.3,
    "guidance_scale_prior": 1.7,
    "guidance_interval": [0.13, 0.77],
    "scheduler": "ddim",
    "scheduler_prior": "dpm++",
    "skip": "forecast:7",
    "num_inference_steps": 41,
    "num_inference_steps_prior": 7,
}
"""Settings that are no steps of a slider."""


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"preset": "fastest"},
        {"preset": "fast", "num_inference_steps": 40, "skip": "forecast"},
        {"preset": "same", "guidance_interval": [0.5, 1]},
        ODD,
    ],
)
@pytest.mark.parametrize("task", ["text2img", "img2img", "inpaint", "mix"])
def test_any_contract_s_picture_is_asked_for_again_as_it_was(
    app: App, picture: str, task: str, asked: dict[str, Any]
) -> None:
    address, mask = _data_uri(Image.open(picture)), _data_uri(Image.new("L", (64, 64), 255))
    own: dict[str, Any] = {
        "text2img": {"prompt": "a", "negative_prompt": "b"},
        "img2img": {"prompt": "a", "image": address},
        "inpaint": {"prompt": "a", "image": address, "mask": mask},
        "mix": {"mix_prompts": ["a", "b"], "mix_images": [address]},
    }[task]
    made = app.client.post("/v1/predictions", json={"version": MODEL, "input": {**own, **asked, "seed": 7}}).json()
    first = app.service.job(made["id"])
    assert first is not None
    again = form.fields_of(first.request, first.seeds[0], jobs.preset_of(first))
    assert again["preset"] == asked.get("preset", "")
    if task == "inpaint":  # as the page opens them
        background, painted = (Image.open(path) for path in again["canvas"])
        again["canvas"] = {"background": background, "layers": [form.layer_of(painted)]}
    before = fields("text2img", overlay=True, strength=0.9, skip="forecast:2", scheduler="ddpm", guidance_ends=0.2)
    second = asyncio.run(jobs.paint(app.service, {**before, **again}, BASE))
    pictures = ("image", "mask_image", "images_and_prompts")

    def resolved(job: Job) -> dict[str, Any]:
        parameters: dict[str, Any] = {**Request.from_json(job.request).data()}
        parameters["weights"] = parameters.get("weights") or [1 / 3] * 3  # equal ones are the default
        return {name: value for name, value in parameters.items() if name not in pictures}

    assert resolved(second) == resolved(first)
    assert second.input.get("preset") == asked.get("preset")
    assert second.seeds == first.seeds


def test_a_mask_in_grey_is_repainted_where_the_runtime_repaints_it() -> None:
    grey = Image.linear_gradient("L").resize((64, 64))
    canvas = {"background": Image.new("RGB", (64, 64)), "layers": [form.layer_of(grey)]}
    again = Image.open(io.BytesIO(form.pictures_of(fields("inpaint", canvas=canvas))["mask"]))
    kept = [Mask(mask, from_array=False).kept(64, 64) for mask in (grey, again)]
    assert 0 < kept[0].sum() < kept[0].size
    assert (kept[0] == kept[1]).all()


def _data_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_what_the_page_cannot_repeat_is_said() -> None:
    mixed = {"task": "mix", "images_and_prompts": [{"text": "a"}] * 3, "negative_prompt": ""}  # as a mix is by default
    for request in (mixed, {"task": "text2img", "prompt": "a"}, {"task": "text2img", "negative_prompt": "b"}):
        assert form.lost_of(request) == []
    (more,) = form.lost_of({**mixed, "images_and_prompts": [{"text": "a"}] * 4})
    assert "More was mixed" in more
    (empty,) = form.lost_of({"task": "text2img", "prompt": "a", "negative_prompt": ""})
    assert "an empty text" in empty


def test_a_preset_that_has_changed_since_is_repeated_as_it_was(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    job = asyncio.run(jobs.paint(app.service, fields("text2img", prompt="a", **FAST, preset="fast"), BASE))
    changed = {**PRESETS, "fast": {**PRESETS["fast"], "num_inference_steps": 99, "guidance_interval": (0.5, 1.0)}}
    for module in (form, inputs, requests):
        monkeypatch.setattr(module, "PRESETS", changed)
    again = form.fields_of(job.request, job.seeds[0], jobs.preset_of(job))
    second = asyncio.run(jobs.paint(app.service, fields("text2img") | again, BASE))
    assert second.input["preset"] == "fast"
    assert second.request == job.request


FAST = form.filled_by("fast")


def test_a_bundle_offers_the_skips_that_it_has_components_for(shapes_bundle: Path) -> None:
    manifest = Bundle(shapes_bundle).manifest

    def having(*roles: Role) -> list[str]:
        left = {name: each for name, each in manifest.components.items() if each.role not in SKIPPING_ROLES}
        some = next(iter(left.values()))
        left |= {str(role): dataclasses.replace(some, role=role) for role in roles}
        return form.skips_of(dataclasses.replace(manifest, components=left))

    assert having() == ["none"]
    assert having(Role.INPAINT_FORECAST) == ["none", "forecast:2", "forecast:3"]
    assert having(Role.DECODER_SHALLOW) == ["none", "shallow:2", "shallow:3", "shallow:5"]
    for asked in having(Role.DECODER_FORECAST, Role.DECODER_SHALLOW):
        assert Request.of("text2img", prompt="a", skip=asked).given["skip"] == asked
        input_model(manifest).model_validate({"skip": asked})


@pytest.mark.parametrize(
    ("skip", "said"), [("forecast:9999", "forecast or shallow"), ("often", "skip"), ("forecast:2", "more steps")]
)
def test_a_skip_that_cannot_be_is_told(app: App, skip: str, said: str) -> None:
    with pytest.raises((InputError, RequestValidationError)) as caught:
        asyncio.run(jobs.paint(app.service, fields("text2img", prompt="a", skip=skip), BASE))
    assert said in jobs.sentence(caught.value)


def test_the_mask_is_white_where_it_was_painted() -> None:
    layer = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    layer.paste((255, 90, 40, 3), (0, 0, 16, 32))  # however thinly
    canvas = {"background": Image.new("RGB", (64, 64)), "layers": [layer]}
    files = form.pictures_of(fields("inpaint", canvas=canvas))
    mask = Image.open(io.BytesIO(files["mask"]))
    assert mask.size == (64, 64)
    assert mask.crop((0, 0, 32, 64)).getextrema() == (255, 255)
    assert mask.crop((32, 0, 64, 64)).getextrema() == (0, 0)


@pytest.mark.parametrize(
    ("task", "named", "said"),
    [
        ("img2img", {}, "There is no picture yet"),
        ("controlnet", {}, "depth map"),
        ("inpaint", {}, "There is no picture yet"),
        ("inpaint", {"canvas": {"background": Image.new("RGB", (8, 8)), "layers": []}}, "Nothing is marked"),
        ("mix", {}, "nothing to mix"),
        ("mix", {"mix_prompt_0": "a", "mix_prompt_weight_0": None}, "A weight is missing"),
        ("text2img", {"prompt": "a", "seed": "seven"}, "The seed is no whole number"),
    ],
)
def test_what_is_missing_is_said(app: App, task: str, named: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        asyncio.run(jobs.paint(app.service, fields(task, **named), BASE))
    assert list(app.service.store.files.folder.iterdir()) == []


def test_a_refused_job_s_pictures_are_not_kept(app: App, picture: str) -> None:
    with pytest.raises(RequestValidationError) as caught:
        asyncio.run(jobs.paint(app.service, fields("img2img", prompt="a", image=picture, width=8), BASE))
    assert "width" in jobs.sentence(caught.value)
    Path(picture).write_bytes(b"no picture")
    with pytest.raises(InputError):
        asyncio.run(jobs.paint(app.service, fields("img2img", prompt="a", image=picture), BASE))
    assert list(app.service.store.files.folder.iterdir()) == []


def finished(app: App, **named: Any) -> Job:
    job = asyncio.run(jobs.paint(app.service, fields("text2img", **named), BASE))
    app.start(job.id)
    app.finish(job.id)
    found = app.service.job(job.id)
    assert found is not None
    return found


def test_recent_pictures_are_found_again_each_with_its_seed(app: App) -> None:
    first = finished(app, prompt="one", seed="5")
    second = finished(app, prompt="<two> {{x}}", seed="11", num_outputs=2)
    recent = jobs.recent(app.service)
    assert [each.job.id for each in recent] == [second.id, second.id, first.id]
    assert [jobs.seed_of(each) for each in recent] == [11, 12, 5]
    again = jobs.fields_again(recent[1])
    assert (again["prompt"], again["seed"], again["num_outputs"]) == ("<two> {{x}}", 12, 1)
    html = shown.recent(app.service, recent) + shown.parameters(app.service, recent[0])
    assert "&lt;two&gt;" in html
    assert "<two>" not in html
    app.service.store.files.remove(recent[0].file)
    assert len(jobs.recent(app.service)) == 2
    assert jobs.picture(app.service, recent[0].file.id) is None


def test_a_job_is_shown_as_it_goes(app: App) -> None:
    first = asyncio.run(jobs.paint(app.service, fields("text2img", prompt="a"), BASE))
    job = asyncio.run(jobs.paint(app.service, fields("text2img", prompt="b"), BASE))

    def html() -> str:
        async def now() -> str:
            async for state in jobs.follow(app.service, job.id):
                return shown.state(app.service, state)
            raise AssertionError

        return asyncio.run(now())

    assert "1 job is before this one" in html()
    app.service.cancel(first.id)
    assert "It is next" in html()
    app.service.supervisor.state = "starting"
    assert "The model is being loaded" in html()
    app.start(job.id)
    app.step(job.id, 3, 6)
    app.service.previewed(job.id, "AAAA")
    assert 'max="6" value="3"' in html()
    assert "data:image/png;base64,AAAA" in html()
    app.finish(job.id)
    (file,) = app.service.store.files.of_job(job.id, "output")
    assert f"/files/{file.id}.png" in html()
    lost = asyncio.run(jobs.paint(app.service, fields("text2img", prompt="c"), BASE))
    app.service.failed(lost.id, "it <broke>")
    job = lost
    assert "it &lt;broke&gt;" in html()


PROMPT = 'it\'s a "red" $HOME `id` \\ circle\nJSON\n{{x}} ${y} Кандинский'


@pytest.fixture
def call(server: Server) -> snippets.Snippets:
    uploaded = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(uploaded, "PNG")
    with server.api() as client:
        answer = client.post("/v1/files", files={"content": ("picture.png", uploaded.getvalue(), "image/png")})
    link = answer.json()["urls"]["get"]
    named = fields("img2img", prompt=PROMPT, seed="3", image="given")
    return snippets.snippets(form.inputs_of(named, {"image": link}), server.base, MODEL, has_token=True)


def run(command: list[str], given: str, folder: Path | None = None) -> str:
    environment = {**os.environ, snippets.TOKEN: TOKEN}
    done = subprocess.run(
        command, input=given, capture_output=True, text=True, timeout=120, check=False, env=environment, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def made(server: Server, link: str) -> dict[str, Any]:
    """The inputs of the prediction that made a picture, asked of the server."""
    assert link.startswith(f"{server.base}/files/")
    with server.api() as client:
        assert client.get(link).content[:8] == b"\x89PNG\r\n\x1a\n"
        for each in client.get("/v1/predictions").json()["results"]:
            if each["output"] == [link]:
                return dict(each["input"])
    raise AssertionError


def test_the_call_in_python_runs_as_shown(server: Server, call: snippets.Snippets) -> None:
    (link,) = run([sys.executable, "-"], call.python).split()
    assert made(server, link)["prompt"] == PROMPT


def test_the_call_in_curl_runs_as_shown(server: Server, call: snippets.Snippets) -> None:
    prediction = json.loads(run(["bash", "-s"], call.curl))
    assert prediction["status"] == "succeeded"
    assert made(server, prediction["output"][0])["prompt"] == PROMPT


def test_the_call_in_node_runs_as_shown(server: Server, call: snippets.Snippets, node_clients: Path) -> None:
    (link,) = run(["node", "--input-type=module"], call.node, node_clients).split()
    assert made(server, link)["prompt"] == PROMPT


def test_calls_of_a_server_without_a_token_name_none() -> None:
    call = snippets.snippets(small("a"), BASE, "a/b", has_token=False)
    assert snippets.TOKEN not in call.python + call.node + call.curl
    assert "Authorization" not in call.curl
    compile(call.python, "call.py", "exec")


def test_pictures_of_a_call_are_uploads_of_this_server(app: App, picture: str) -> None:
    inputs = asyncio.run(jobs.call_of(app.service, fields("variations", image=picture), BASE))
    input_model(app.service.manifest).model_validate(inputs)
    file = app.service.store.files.get(inputs["image"].rpartition("/")[2].partition(".")[0])
    assert file is not None
    assert (file.kind, file.expires is not None) == ("upload", True)
    assert app.service.store.jobs.count(Status.STARTING) == 0


@pytest.fixture
def local(shapes_bundle: Path, tmp_path: Path) -> Iterator[Callable[[bool], TestClient]]:
    services = []

    def make(ui: bool) -> TestClient:
        services.append(Service(Settings(bundle=shapes_bundle, data=tmp_path / f"data-{ui}", ui=ui)))
        return TestClient(create_app(services[-1]), base_url=BASE)  # without its lifespan: nothing is loaded

    yield make
    for service in services:
        service.store.close()


def test_the_page_waits_for_gradio_and_the_api_does_not(
    local: Callable[[bool], TestClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: sys if name == "gradio" else find(name, *rest))
    client = local(True)
    loading = client.get("/", headers=BROWSER)
    assert (loading.status_code, loading.headers["retry-after"]) == (503, "2")
    assert "being loaded" in loading.text
    assert client.get("/").json()["cog_version"]
    assert client.get("/healthz").status_code == 200
    for path in ("/nothing", "/v1/nothing", "/gradio_api/proxy=http://127.0.0.1/", "/monitoring", "/gradio_api/docs"):
        answer = client.get(path, headers=BROWSER)
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json"), path
    assert client.get("/v1/predictions/none/cancel").status_code == 405


@pytest.mark.parametrize("asked", [False, True])
def test_without_the_page_its_address_is_the_index(
    local: Callable[[bool], TestClient], monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gradio" else find(name, *rest)
    )
    assert local(asked).get("/", headers=BROWSER).json()["cog_version"]
