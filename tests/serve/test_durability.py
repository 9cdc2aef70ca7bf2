"""Jobs while engine and server are killed: all end, none twice, with the pictures of an undisturbed run."""

import http.server
import io
import json
import os
import random
import signal
import threading
import time
from collections import Counter

import httpx
import numpy as np
import PIL.Image
import pytest
from standardwebhooks import Webhook

from tests.serve.running import Running, small

pytestmark = [pytest.mark.server, pytest.mark.skipif(not os.path.exists("/proc"), reason="needs /proc")]

JOBS, ENGINE_KILLS, SERVER_KILLS = 300, 20, 10
COLOURS = ("red", "green", "blue", "yellow", "white")


class Hooks(http.server.ThreadingHTTPServer):
    """Takes webhooks, and now and then refuses one at first."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Hook)
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.random = random.Random(3)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def host(self):
        return f"127.0.0.1:{self.server_address[1]}"


class _Hook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        refused = self.server.random.random() < 0.1
        if not refused:
            self.server.taken.append((dict(self.headers.items()), body))
        self.send_response(503 if refused else 200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def pixels(body):
    return np.asarray(PIL.Image.open(io.BytesIO(body)).convert("RGB"), np.int16)


def submit(base, number, host):
    inputs = small(f"a {COLOURS[number % 5]} circle", seed=number, num_inference_steps=12)
    body = {"version": "ai-forever/kandinsky-2.2", "input": inputs}
    body |= {"webhook": f"http://{host}/{number}", "webhook_events_filter": ["completed"]}
    return httpx.post(f"{base}/v1/predictions", json=body, timeout=30).raise_for_status().json()["id"]


def run(server, host, count, disturb=None):
    """Submit so many jobs and wait for them, while `disturb` kills; the predictions, in order."""
    ids: list[str] = []
    number = 0
    while number < count:
        try:
            ids.append(submit(server.base, number, host))
            number += 1
        except httpx.TransportError:  # it was killed: this one may be accepted or not, and is asked for again
            time.sleep(0.2)
        if disturb is not None:
            disturb(number)
    ended = {}
    deadline = time.monotonic() + 900
    while len(ended) < count:
        assert time.monotonic() < deadline, f"{len(ended)} of {count} ended"
        for each in ids:
            if each not in ended:
                try:
                    found = httpx.get(f"{server.base}/v1/predictions/{each}", timeout=30).raise_for_status().json()
                except httpx.TransportError:
                    break
                if found["status"] in ("succeeded", "failed", "canceled"):
                    ended[each] = found
                else:
                    break
        if disturb is not None:
            disturb(count)
        time.sleep(0.05)
    return [ended[each] for each in ids]


class Killer:
    """Kills at random moments, for as long as there are kills left; what it killed is started again."""

    def __init__(self, server, seed):
        self.server, self.random = server, random.Random(seed)
        self.left = ["engine"] * ENGINE_KILLS + ["server"] * SERVER_KILLS
        self.random.shuffle(self.left)
        self.next = time.monotonic() + 2
        self.done = Counter()

    def __call__(self, _):
        if not self.left or time.monotonic() < self.next:
            return
        what = self.left[-1]
        if what == "server":
            self.server.kill(signal.SIGKILL)
            self.server.start()
        elif (engine := self.server.engine()) is None:
            return
        else:
            os.kill(engine, signal.SIGKILL)
        self.left.pop()
        self.done[what] += 1
        self.next = time.monotonic() + self.random.uniform(0.5, 3.5)


def test_jobs_survive_kills_of_engine_and_server(shapes_bundle, tmp_path):
    hooks = Hooks()
    # ONNX Runtime compiles nothing: an engine that is killed computes again within a second.
    flags = ("--backend", "onnxruntime", "--allow-webhook-host", hooks.host, "--max-queue", "1000")
    with Running(shapes_bundle, tmp_path / "calm", *flags) as server:
        calm = run(server, hooks.host, JOBS)
        expected = [pixels(httpx.get(each["output"][0]).content) for each in calm]
    hooks.taken.clear()
    with Running(shapes_bundle, tmp_path / "killed", *flags) as server:
        killer = Killer(server, 1)
        ended = run(server, hooks.host, JOBS, killer)
        assert killer.done == {"engine": ENGINE_KILLS, "server": SERVER_KILLS}
        assert Counter(each["status"] for each in ended) == {"succeeded": JOBS}
        for each, picture in zip(ended, expected, strict=True):
            made = pixels(httpx.get(each["output"][0]).content)
            assert np.abs(made - picture).max() <= 1
        secret = httpx.get(f"{server.base}/v1/webhooks/default/secret").json()["key"]
        wait_for_hooks(hooks, {each["id"] for each in ended})
        check_hooks(hooks, secret, ended)
        listed = listed_ids(server.base)
    assert len(listed) == len(set(listed))
    assert set(listed) >= {each["id"] for each in ended}


def wait_for_hooks(hooks, ids):
    deadline = time.monotonic() + 180
    while {json.loads(body)["id"] for _, body in hooks.taken} < ids and time.monotonic() < deadline:
        time.sleep(0.2)


def check_hooks(hooks, secret, ended):
    """Each job's end was told at least once, validly signed, and always as the same end."""
    told = {}
    for headers, body in hooks.taken:
        found = Webhook(secret).verify(body, {name.lower(): value for name, value in headers.items()})
        assert told.setdefault(found["id"], found["status"]) == found["status"]
    assert {each["id"]: each["status"] for each in ended}.items() <= told.items()


def listed_ids(base):
    ids, url = [], f"{base}/v1/predictions"
    while url:
        page = httpx.get(url).raise_for_status().json()
        ids += [each["id"] for each in page["results"]]
        url = page["next"]
    return ids
