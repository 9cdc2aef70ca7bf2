"""The page in a browser: Debian's Chromium, driven by Playwright. `make test-server`."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from kandinsky22.request.presets import PRESETS
from kandinsky22_serve.page.snippets import TOKEN as TOKEN_VARIABLE

from .conftest import TOKEN, Server

pytestmark = pytest.mark.server

SECONDS = 300_000
"""Milliseconds that anything may take on a busy machine: longer is a hang."""
OPENED = 3.0
"""Seconds that opening the page takes on a quiet machine, or more."""


def chromium() -> str:
    """Where Chromium is. Without it such tests skip; in CI they fail."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is not installed, which CI needs")
        pytest.skip("Chromium is not installed")
    return found


@pytest.fixture(scope="module")
def paged(shapes_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the page and a token."""
    if os.environ.get("CI"):
        import gradio  # noqa: F401 - CI needs it
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("a page")
    (folder / "token").write_text(f"{TOKEN}\n")
    flags = ("--ui", "--token-file", str(folder / "token"), "--backend", "onnxruntime")
    with Server(shapes_bundle, folder / "data", *flags) as server:
        server.wait_for("/readyz")
        _wait_for_page(server)
        yield server


def _wait_for_page(server: Server) -> None:
    """Wait until Gradio is loaded, which comes after the API."""
    deadline = time.monotonic() + SECONDS / 1000
    with server.api() as client:
        while client.get("/", headers={"Accept": "text/html"}).status_code != 200:
            assert time.monotonic() < deadline, server.log()[-2000:]
            time.sleep(0.2)


class Browser:
    """One window on the page, which notes what went wrong in it and where it asked elsewhere."""

    def __init__(self, page: Any, base: str) -> None:
        self.page, self.base = page, base
        self.wrong: list[str] = []
        self._slow = 1.0
        page.set_default_timeout(SECONDS)
        page.on("console", lambda message: message.type == "error" and self.wrong.append(message.text))
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("request", lambda request: self._look_at(request.url))

    def _look_at(self, url: str) -> None:
        if not url.startswith((f"{self.base}/", "data:", "blob:")):
            self.wrong.append(f"asked {url}")

    def open(self) -> None:
        began = time.monotonic()
        self.page.goto(self.base)
        self.page.wait_for_selector("#paint")
        self.page.wait_for_selector("#recent p, #recent button")
        self._slow = max(1.0, (time.monotonic() - began) / OPENED)

    def pause(self, milliseconds: float) -> None:
        """Wait for what the page shows no sign of: so long on a quiet machine, longer on one where it opened late."""
        self.page.wait_for_timeout(milliseconds * self._slow)

    def choose(self, task: str) -> None:
        self.page.click(f"#task >> text={task}")

    def slide(self, name: str, value: int) -> None:
        field = self.page.locator(f"#k-{name} input[type=number]")
        field.fill(str(value))
        field.blur()

    def preset(self, name: str) -> None:
        self.page.click(f"#preset label >> text=/^{name}/")

    def shown(self, name: str) -> str:
        """What a slider or a list of choices has."""
        return str(self.page.locator(f"#k-{name} input:not([type=range])").first.input_value())

    def use_again(self) -> None:
        """Take the newest picture's parameters into the form."""
        self.page.locator("#recent button").first.click()
        self.page.wait_for_selector("#made dl")
        self.page.click("#again")

    def upload(self, field: str, picture: Path) -> None:
        self.page.set_input_files(f"#{field} input[type=file]", str(picture))
        self.page.wait_for_selector(f"#{field} img, #{field} canvas")

    def paint(self) -> str:
        """Paint, and wait for the picture; its address."""
        before = self.page.locator("#result figure img").first
        old = before.get_attribute("src") if before.count() else ""
        self.page.click("#paint")
        self.page.wait_for_function(
            "old => { const made = document.querySelector('#result figure img'); "
            "return made && made.getAttribute('src') !== old && made.naturalWidth > 0; }",
            arg=old,
        )
        return self.base + str(self.page.locator("#result figure img").first.get_attribute("src"))


@pytest.fixture(scope="module")
def browser(paged: Server) -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        credentials = {"username": "me", "password": TOKEN}
        context = chrome.new_context(http_credentials=credentials, viewport={"width": 1280, "height": 900})
        window = Browser(context.new_page(), paged.base)
        window.open()
        window.page.click("text=More settings")
        for name, value in {
            "num_inference_steps": 4,
            "num_inference_steps_prior": 2,
            "width": 64,
            "height": 64,
        }.items():
            window.slide(name, value)
        yield window
        chrome.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.linear_gradient("L").resize((128, 128)).convert("RGB").save(tmp_path / "a picture.png")
    return tmp_path / "a picture.png"


@pytest.fixture(autouse=True)
def nothing_went_wrong(browser: Browser) -> Iterator[None]:
    browser.wrong.clear()
    yield
    assert browser.wrong == []


def newest(server: Server) -> dict[str, Any]:
    """The page's newest job, from the store's file."""
    store = sqlite3.connect(f"file:{server.data / 'queue.sqlite3'}?mode=ro", uri=True)
    store.row_factory = sqlite3.Row
    found = dict(store.execute("SELECT * FROM jobs ORDER BY seq DESC LIMIT 1").fetchone())
    store.close()
    return found


def test_a_picture_is_painted_and_its_parameters_are_used_again(browser: Browser, paged: Server) -> None:
    page = browser.page
    page.fill("#prompt textarea", "a {{red}} ${circle} <b>bold</b>")
    first = browser.paint()
    page.locator("#recent button").first.click()
    page.wait_for_selector("#made dl")
    assert "a {{red}} ${circle} <b>bold</b>" in page.inner_text("#made")
    page.fill("#prompt textarea", "something else")
    page.click("#again")
    page.wait_for_function("document.querySelector('#prompt textarea').value.includes('bold')")
    second = browser.paint()
    bodies = [httpx.get(each, timeout=SECONDS / 1000).content for each in (first, second)]
    assert bodies[0] == bodies[1]  # the same seed, the same picture
    page.locator("#seed input, #seed textarea").first.fill("")
    assert newest(paged)["contract"] == "page"


def asked(server: Server) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the newest job's client sent, and the request that it became."""
    job = newest(server)
    assert job["status"] == "succeeded"
    return json.loads(job["input"]), json.loads(job["request"])


DECIDED = {"num_inference_steps", "num_inference_steps_prior", "scheduler", "scheduler_prior", "guidance_interval"}
"""The API's inputs that presets decide."""


def test_a_preset_is_sent_by_its_name_with_what_was_changed_beside_it(browser: Browser, paged: Server) -> None:
    browser.preset("fastest")
    browser.paint()
    sent, request = asked(paged)
    assert {name: sent[name] for name in sent.keys() & {"preset", *DECIDED}} == {"preset": "fastest"}
    stored = {name: list(value) if isinstance(value, tuple) else value for name, value in PRESETS["fastest"].items()}
    assert stored.items() <= request.items()
    names = ("num_inference_steps", "num_inference_steps_prior", "scheduler", "scheduler_prior", "begins", "ends")
    assert [browser.shown(name) for name in names] == ["10", "4", "dpm++-karras", "ddim", "0", "0.5"]
    browser.slide("num_inference_steps", 6)
    browser.paint()
    sent, request = asked(paged)
    expected = {"preset": "fastest", "num_inference_steps": 6}
    assert {name: sent[name] for name in sent.keys() & {"preset", *DECIDED}} == expected
    assert {**stored, "num_inference_steps": 6}.items() <= request.items()


def test_a_preset_s_picture_is_painted_again_as_it_was(browser: Browser, paged: Server) -> None:
    browser.slide("num_inference_steps", 12)
    browser.page.locator("#k-skip input").fill("forecast:3")
    browser.page.locator("#k-skip input").press("Enter")
    first = browser.paint()
    sent, request = asked(paged)
    assert (request["skip"], request["guidance_interval"]) == ("forecast:3", [0, 0.5])
    browser.preset("none")
    browser.page.wait_for_function("document.querySelector('#k-num_inference_steps input').value === '75'")
    assert (browser.shown("scheduler_prior"), browser.shown("ends")) == ("the checkpoint's own", "1")
    browser.page.locator("#k-skip input").fill("none")
    browser.page.locator("#k-skip input").press("Enter")
    browser.use_again()
    browser.page.wait_for_function("document.querySelector('#k-num_inference_steps input').value === '12'")
    second = browser.paint()
    sent_again, request_again = asked(paged)
    assert sent_again == {**sent, "seed": request["seed"]}
    assert request_again == request
    bodies = [httpx.get(each, timeout=SECONDS / 1000).content for each in (first, second)]
    assert bodies[0] == bodies[1]
    browser.page.locator("#seed input, #seed textarea").first.fill("")


def test_a_skip_that_cannot_be_is_told_in_a_sentence(browser: Browser) -> None:
    page = browser.page
    for skip, said in (("forecast:9999", "expected none, forecast or shallow"), ("often", "skip: String should match")):
        page.locator("#k-skip input").fill(skip)
        page.locator("#k-skip input").press("Enter")
        page.click("#paint")
        page.wait_for_selector(f"text={said}")
    page.locator("#k-skip input").fill("none")
    page.locator("#k-skip input").press("Enter")
    browser.preset("none")
    browser.slide("num_inference_steps", 4)
    browser.slide("num_inference_steps_prior", 2)


def test_a_job_is_canceled_while_it_is_painted(browser: Browser, paged: Server) -> None:
    page = browser.page
    browser.slide("num_inference_steps", 500)
    page.click("#paint")
    page.wait_for_selector("#result progress")
    page.wait_for_selector("#result img.k-preview")
    page.click("#cancel")
    page.wait_for_selector("#result >> text=Canceled.")
    assert newest(paged)["status"] == "canceled"
    browser.slide("num_inference_steps", 4)


def test_a_mask_is_painted_and_the_part_repainted(browser: Browser, paged: Server, picture: Path) -> None:
    page = browser.page
    browser.choose("Repaint a part")
    page.wait_for_selector("#canvas canvas")
    browser.pause(1000)  # the editor is ready a moment after it is there
    browser.upload("canvas", picture)
    browser.pause(1500)  # the editor fits the picture into its window
    page.locator("#canvas").get_by_label("Brush", exact=False).first.click()
    box = page.locator("#canvas canvas").first.bounding_box()
    middle, half = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(middle - 20, half)
    page.mouse.down()
    page.mouse.move(middle + 20, half, steps=8)
    page.mouse.up()
    browser.pause(1500)  # the editor hands its layers over after a moment
    browser.paint()
    job = newest(paged)
    assert (job["status"], '"task": "inpaint"' in job["request"]) == ("succeeded", True)
    mask = Image.open(json.loads(job["request"])["mask_image"])
    assert mask.size == (128, 128)
    painted = sum(mask.histogram()[128:])
    assert 0 < painted < 128 * 128 // 2
    left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
    assert left < 64 < right
    assert top < 64 < bottom


def test_prompts_and_pictures_are_mixed(browser: Browser, paged: Server, picture: Path) -> None:
    page = browser.page
    browser.choose("Mix")
    page.get_by_label("Prompt 1").fill("a red circle")
    browser.upload("mix_image_0", picture)
    browser.paint()
    request = newest(paged)["request"]
    assert '"task": "mix"' in request
    assert "a red circle" in request


@pytest.mark.parametrize(
    ("task", "field"), [("From a picture", "image"), ("Follow a depth map", "hint"), ("Vary a picture", "image")]
)
def test_tasks_with_a_picture_are_painted(browser: Browser, picture: Path, task: str, field: str) -> None:
    browser.choose(task)
    if not browser.page.locator(f"#{field} img").count():
        browser.upload(field, picture)
    browser.paint()


def test_what_is_missing_is_told_in_a_sentence(browser: Browser) -> None:
    browser.choose("Mix")
    browser.page.get_by_label("Prompt 1").fill("")
    browser.page.locator("#mix_image_0").get_by_label("Clear").or_(
        browser.page.locator("#mix_image_0").get_by_label("Remove Image")
    ).first.click()
    browser.page.click("#paint")
    browser.page.wait_for_selector("text=There is nothing to mix")


def test_the_curl_call_runs_as_shown(browser: Browser) -> None:
    page = browser.page
    browser.choose("From a picture")
    page.click("#api >> text=As API call")
    page.click("#show-call")
    page.get_by_role("tab", name="cURL").click()
    page.wait_for_selector("#call-curl .cm-line >> text=curl -sS")
    call = "\n".join(page.locator("#call-curl .cm-line").all_inner_texts())
    environment = {**os.environ, TOKEN_VARIABLE: TOKEN}
    done = subprocess.run(
        ["bash", "-c", call], capture_output=True, text=True, timeout=SECONDS / 1000, check=True, env=environment
    )
    assert '"status":"succeeded"' in done.stdout.replace(" ", "")


def test_the_page_opened_again_has_its_pictures(browser: Browser) -> None:
    before = browser.page.locator("#recent button").count()
    browser.open()
    browser.page.wait_for_selector("#recent button img")
    assert browser.page.locator("#recent button").count() >= before >= 5


def test_a_picture_of_the_api_is_painted_again_as_it_was(browser: Browser, paged: Server) -> None:
    odd = {"guidance_scale": 4.3, "guidance_interval": [0.13, 0.77], "scheduler_prior": "ddim", "skip": "forecast:7"}
    sizes = {"width": 100, "height": 72, "num_inference_steps": 19, "output_format": "png"}
    inputs = {"prompt": "by the API", "preset": "fast", **sizes, **odd}
    with paged.api() as client:
        body = {"version": "ai-forever/kandinsky-2.2", "input": inputs}
        answer = client.post("/v1/predictions", json=body, headers={"Prefer": "wait"}, timeout=SECONDS / 1000)
        assert answer.json()["status"] == "succeeded"
        first = client.get(answer.json()["output"][0]).content
    _, request = asked(paged)
    browser.open()
    browser.use_again()
    browser.page.wait_for_function("document.querySelector('#prompt textarea').value === 'by the API'")
    second = browser.paint()
    sent, again = asked(paged)
    assert again == request
    assert odd.items() <= sent.items()
    assert sent["preset"] == "fast"
    assert httpx.get(second, timeout=SECONDS / 1000).content == first


def test_the_page_fits_a_phone(browser: Browser) -> None:
    page = browser.page
    page.set_viewport_size({"width": 390, "height": 844})
    for task in ("From a prompt", "From a picture", "Repaint a part", "Follow a depth map", "Mix", "Vary a picture"):
        browser.choose(task)
        browser.pause(400)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, task


def test_the_page_asks_for_the_token(paged: Server, browser: Browser) -> None:
    for path in ("/", "/config", "/gradio_api/queue/data?session_hash=a", "/theme.css"):
        answer = httpx.get(paged.base + path, headers={"Accept": "text/html"})
        assert answer.status_code == 401, path
        assert "Basic" in answer.headers["www-authenticate"]


def test_the_server_s_files_are_not_gradio_s_to_give(paged: Server, browser: Browser) -> None:
    paths = [paged.data / "queue.sqlite3", *(paged.data / "files").iterdir(), Path("/etc/passwd")]
    with paged.api() as client:
        for path in paths:
            assert client.get(f"/gradio_api/file={path}").status_code in (403, 404), path


@pytest.mark.parametrize("kind", ["image", "canvas"])
def test_a_file_that_nobody_uploaded_is_refused(paged: Server, browser: Browser, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    for path in (str(secret), "http://127.0.0.1:9/a.png", str(paged.data / "page" / ".." / "queue.sqlite3")):
        assert "no uploaded picture" in asked_with(paged, kind, path)
    assert not list((paged.data / "page").rglob("secret*"))


def asked_with(server: Server, kind: str, path: str) -> str:
    """What Gradio's queue answers to a form whose picture is a path of the client's choice."""
    file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
    with server.api() as client:
        config = client.get("/config").json()
        fields = {each["id"]: each["props"] for each in config["components"]}
        click = next(each for each in config["dependencies"] if len(each["inputs"]) > 20 and len(each["outputs"]) == 5)
        given = [fields[each].get("value") for each in click["inputs"]]
        place = [fields[each].get("elem_id") for each in click["inputs"]].index(kind)
        given[0] = "img2img" if kind == "image" else "inpaint"
        given[place] = file if kind == "image" else {"background": file, "layers": [], "composite": None}
        asked = {"data": given, "fn_index": click["id"], "session_hash": "forged", "trigger_id": None}
        assert client.post("/gradio_api/queue/join", json=asked).status_code == 200
        with client.stream("GET", "/gradio_api/queue/data?session_hash=forged") as answer:
            return next(line for line in answer.iter_lines() if "process_completed" in line)


def test_prompts_are_not_logged(paged: Server, browser: Browser) -> None:
    assert "a red circle" not in paged.log()
    assert "bold" not in paged.log()
