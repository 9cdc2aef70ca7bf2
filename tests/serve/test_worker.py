"""The engine's worker, in this process: what fails for one job fails for it alone, cancels stop within a step."""

import io
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from kandinsky22 import BackendError, Pipeline
from kandinsky22.request.request import Request
from kandinsky22_serve.engine.messages import MOST_BYTES, Descriptor, Sender, messages
from kandinsky22_serve.engine.worker import Worker
from kandinsky22_serve.store.records import new_id

QUICK = {"height": 64, "width": 64, "num_inference_steps": 3, "prior_num_inference_steps": 2}


class Told(io.RawIOBase):
    """What a worker tells, as it tells it."""

    def __init__(self):
        self.all = []
        self.heard = queue.Queue()
        self.on = {}

    def writable(self):
        return True

    def write(self, data):
        message = json.loads(bytes(data))
        self.all.append(message)
        self.on.get(message["kind"], lambda _: None)(message)
        self.heard.put(message)
        return len(data)

    def of(self, kind):
        return [message for message in self.all if message["kind"] == kind]

    def wait(self, kind, count):
        deadline = time.monotonic() + 60
        while len(self.of(kind)) < count:
            self.heard.get(timeout=deadline - time.monotonic())
        return self.of(kind)


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def worker(shapes_pipe, told):
    return Worker(shapes_pipe, Sender(told))


def job(folder: Path, prompt="a red circle", form="png", seed=0, **more):
    request = Request.of("text2img", **{"prompt": prompt, "seed": seed, **QUICK, **more})
    name = new_id()
    suffix = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}[form]
    count = request.parameters["num_images_per_prompt"]
    outputs = [str(folder / f"{name}-{place}{suffix}") for place in range(count)]
    told = {"outputs": outputs, "form": form, "quality": 90, "previews": False}
    return {"id": name, "request": request.to_json(), **told}


def pixels(path):
    return np.asarray(PIL.Image.open(path).convert("RGB"), np.int16)


def test_pictures_of_a_batch_are_those_of_the_pipeline(worker, told, shapes_pipe: Pipeline, tmp_path):
    jobs = [job(tmp_path, prompt, seed=seed) for seed, prompt in enumerate(("a red circle", "a blue square"))]
    jobs.append(job(tmp_path, "a green star", seed=7, num_images_per_prompt=2))
    worker.run(1, jobs)
    told.wait("saved", 3)
    for each in jobs:
        request = Request.from_json(each["request"])
        alone = shapes_pipe.run(request).images
        for path, picture in zip(each["outputs"], alone, strict=True):
            assert np.abs(pixels(path) - np.asarray(picture, np.int16)).max() <= 1


@pytest.mark.parametrize(("form", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_files_are_of_the_format_that_was_asked_for(worker, told, tmp_path, form, kind):
    asked = job(tmp_path, form=form)
    worker.run(1, [asked])
    (saved,) = told.wait("saved", 1)
    assert PIL.Image.open(asked["outputs"][0]).format == kind
    assert saved["files"][0]["bytes"] == Path(asked["outputs"][0]).stat().st_size


def test_a_request_that_cannot_be_fails_alone(worker, told, tmp_path):
    good, bad = job(tmp_path), job(tmp_path)
    bad["request"]["height"] = -5
    worker.run(1, [bad, good])
    assert [each["job"] for each in told.wait("saved", 1)] == [good["id"]]
    assert [each["job"] for each in told.of("failed")] == [bad["id"]]
    assert "height" in told.of("failed")[0]["error"]


def test_where_a_batch_fails_each_job_is_tried_alone(worker, told, shapes_pipe, tmp_path, monkeypatch):
    pictures = shapes_pipe.pictures
    seen = []

    def failing(self, job, callbacks):
        seen.append(len(job.seeds))
        if len(job.seeds) > 1 or job.seeds == (1,):
            raise BackendError("It is too much.")
        return pictures(job, callbacks)

    monkeypatch.setattr(Pipeline, "pictures", failing)
    jobs = [job(tmp_path, seed=seed) for seed in range(3)]
    worker.run(1, jobs)
    assert {each["job"] for each in told.wait("saved", 2)} == {jobs[0]["id"], jobs[2]["id"]}
    assert [(each["job"], each["error"]) for each in told.of("failed")] == [(jobs[1]["id"], "It is too much.")]
    assert seen == [3, 1, 1, 1]


def test_a_picture_that_cannot_be_written_fails_its_job_alone(worker, told, tmp_path):
    good, bad = job(tmp_path), job(tmp_path / "missing")
    worker.run(1, [bad, good])
    told.wait("saved", 1)
    told.wait("failed", 1)
    assert told.of("failed")[0]["job"] == bad["id"]
    assert "could not be written (No such file or directory)" in told.of("failed")[0]["error"]


def test_a_canceled_job_stops_at_the_next_step(worker, told, tmp_path):
    asked = job(tmp_path, num_inference_steps=50)
    told.on["step"] = lambda message: message["step"] == 4 and worker.cancel([asked["id"]])
    worker.run(1, [asked])
    assert told.of("step")[-1]["step"] in (4, 5)
    assert told.of("stopped")
    assert not told.of("saved")


def test_of_a_batch_the_others_go_on_as_they_would_have_been(worker, told, shapes_pipe, tmp_path):
    jobs = [job(tmp_path, seed=seed, num_inference_steps=6) for seed in range(4)]
    told.on["step"] = lambda message: message["step"] == 4 and worker.cancel([jobs[1]["id"], jobs[2]["id"]])
    worker.run(1, jobs)
    assert {each["job"] for each in told.wait("saved", 2)} == {jobs[0]["id"], jobs[3]["id"]}
    for each in (jobs[0], jobs[3]):
        alone = shapes_pipe.run(Request.from_json(each["request"])).images[0]
        assert np.abs(pixels(each["outputs"][0]) - np.asarray(alone, np.int16)).max() <= 1
    assert not Path(jobs[1]["outputs"][0]).exists()


@pytest.mark.parametrize(("compile_seconds", "dropped"), [(0.0, True), (1000.0, False)])
def test_canceled_pictures_are_left_out_where_that_pays(worker, told, tmp_path, compile_seconds, dropped):
    worker._compile_seconds = compile_seconds
    jobs = [job(tmp_path, seed=seed, num_inference_steps=10) for seed in range(2)]
    told.on["step"] = lambda message: message["step"] == 5 and worker.cancel([jobs[0]["id"]])
    worker.run(1, jobs)
    assert [each["job"] for each in told.wait("saved", 1)] == [jobs[1]["id"]]
    assert bool(told.of("stopped")) is dropped


def test_what_is_canceled_before_it_runs_does_not_run(worker, told, tmp_path):
    asked = job(tmp_path)
    worker.cancel([asked["id"]])
    worker.run(1, [asked])
    assert [message["kind"] for message in told.all] == ["ready"]


def test_previews_are_pictures_of_the_jobs_that_asked(worker, told, tmp_path, monkeypatch):
    monkeypatch.setattr("kandinsky22_serve.engine.worker.PREVIEW_SECONDS", 0.0)
    plain, asked = job(tmp_path, seed=1), {**job(tmp_path, seed=2), "previews": True}
    worker.run(1, [plain, asked])
    found = told.of("preview")
    assert {each["job"] for each in found} == {asked["id"]}
    assert len(found) == QUICK["num_inference_steps"]


def test_pictures_say_how_they_were_made_and_not_where_we_keep_things(worker, told, tmp_path):
    from kandinsky22.images.writing import read_parameters

    asked = job(tmp_path, "a red circle", seed=5)
    worker.run(1, [asked])
    told.wait("saved", 1)
    parameters = read_parameters(asked["outputs"][0])
    assert (parameters["prompt"], parameters["seed"]) == ("a red circle", 5)
    assert str(tmp_path) not in json.dumps(parameters)


def test_a_line_that_was_not_finished_is_no_message():
    assert list(messages(io.BytesIO(b'{"kind":"a"}\n{"kind":"b"'))) == [{"kind": "a"}]


def test_messages_are_read_as_they_come():
    reading, writing = os.pipe()
    long = json.dumps({"kind": "b", "text": "x" * 300_000}).encode()

    def write():
        for part in (b'{"kind":"a"}\n{"ki', b'nd":"a"}\n', long + b"\n", b'{"kind":"c"'):
            os.write(writing, part) if len(part) < 100 else os.fdopen(os.dup(writing), "wb").write(part)
            time.sleep(0.02)
        os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert [each["kind"] for each in messages(Descriptor(reading))] == ["a", "a", "b"]
    finally:
        thread.join()
        os.close(reading)


def test_a_line_is_no_longer_than_is_asked_for():
    reading, writing = os.pipe()
    os.write(writing, b"abcdef\ngh")
    os.close(writing)
    lines = Descriptor(reading)
    assert [lines.readline(4), lines.readline(4), lines.readline(MOST_BYTES), lines.readline(4)] == [
        b"abcd",
        b"ef\n",
        b"gh",
        b"",
    ]
    os.close(reading)


def test_an_engine_that_cannot_load_its_bundle_ends_in_peace(shapes_bundle: Path, tmp_path: Path):
    """While its thread waits for what the server says."""
    broken = shutil.copytree(shapes_bundle, tmp_path / "bundle")
    (broken / "manifest.json").write_text("{")
    settings = {"bundle": str(broken), "backend": "onnxruntime", "precision": "auto", "threads": 1}
    settings |= {"kind": "settings", "low_memory": False, "memory_limit": None}
    with subprocess.Popen(
        [sys.executable, "-m", "kandinsky22_serve.engine.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as engine:
        Sender(engine.stdin).send(**settings)
        assert next(messages(engine.stdout))["kind"] == "broken"
        assert engine.wait(60) == 1  # its standard input is still open
        assert b"Fatal Python error" not in engine.stderr.read()
