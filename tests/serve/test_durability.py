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
AHEAD = 40
"""Jobs that are always there while kills are left."""
STALLED = 300
"""Seconds in which something ends on any machine; pauses between engines that died have 30 at most."""
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
        length = int(self.headers["content-length"])
        body = self.rfile.read(length)
        if len(body) < length:  # the server was killed while it told this: it tells it again
            self.close_connection = True
            return
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
    # The pictures of JOBS jobs are known: those that come after them are the same ones again.
    inputs = small(f"a {COLOURS[number % 5]} circle", seed=number % JOBS, num_inference_steps=12)
    body = {"version": "ai-forever/kandinsky-2.2", "input": inputs}
    body |= {"webhook": f"http://{host}/{number}", "webhook_events_filter": ["completed"]}
    return httpx.post(f"{base}/v1/predictions", json=body, timeout=STALLED).raise_for_status().json()["id"]


def run(server, host, killer=None):
    """Submit the jobs and wait for them, while `killer` kills; the predictions, in order.

    On a fast machine jobs end before all kills are done: then so many more are submitted that there are always some.
    """
    ids, ended = [], []
    progressed = time.monotonic()
    while len(ids) < JOBS or len(ended) < len(ids) or (killer and killer.left):
        assert time.monotonic() - progressed < STALLED, f"{len(ended)} of {len(ids)} ended, and no more"
        before = len(ids) + len(ended)
        try:
            if len(ids) < JOBS or (killer and killer.left and len(ids) < len(ended) + AHEAD):
                ids.append(submit(server.base, len(ids), host))
            else:
                time.sleep(0.05)
            collect(server.base, ids, ended)
        except httpx.TransportError:  # it was killed: a job may be accepted or not, and is asked for again
            time.sleep(0.2)
        if killer:
            killer.kill(len(ended))
        if len(ids) + len(ended) > before:
            progressed = time.monotonic()
    return ended


def collect(base, ids, ended):
    """Add to `ended` the predictions that have, the oldest first, up to one that has not."""
    while len(ended) < len(ids):
        found = httpx.get(f"{base}/v1/predictions/{ids[len(ended)]}", timeout=STALLED).raise_for_status().json()
        if found["status"] not in ("succeeded", "failed", "canceled"):
            return
        ended.append(found)


class Killer:
    """Kills at random moments, for as long as there are kills left; what it killed is started again.

    Of three kills in a row some job ends between the first and the last: a job fails when four engines died of it, and
    on a busy machine an engine may need longer for one than is between four kills.
    """

    def __init__(self, server, seed):
        self.server, self.random = server, random.Random(seed)
        self.left = ["engine"] * ENGINE_KILLS + ["server"] * SERVER_KILLS
        self.random.shuffle(self.left)
        self.next = time.monotonic() + 2
        self.done = Counter()
        self.ended = [-1, -1]

    def kill(self, ended):
        """Kill, if it is time to; so many jobs have ended."""
        if not self.left or time.monotonic() < self.next or ended <= self.ended[-2]:
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
        self.ended.append(ended)
        self.next = time.monotonic() + self.random.uniform(0.5, 3.5)


def test_jobs_survive_kills_of_engine_and_server(shapes_bundle, tmp_path):
    hooks = Hooks()
    # ONNX Runtime compiles nothing: an engine that is killed computes again within a second.
    flags = ("--backend", "onnxruntime", "--allow-webhook-host", hooks.host, "--max-queue", "1000")
    with Running(shapes_bundle, tmp_path / "calm", *flags) as server:
        calm = run(server, hooks.host)
        expected = [pixels(httpx.get(each["output"][0], timeout=STALLED).content) for each in calm]
    hooks.taken.clear()
    with Running(shapes_bundle, tmp_path / "killed", *flags) as server:
        killer = Killer(server, 1)
        ended = run(server, hooks.host, killer)
        print(f"\n{len(ended)} jobs while {dict(killer.done)} were killed")
        assert killer.done == {"engine": ENGINE_KILLS, "server": SERVER_KILLS}
        assert Counter(each["status"] for each in ended) == {"succeeded": len(ended)}
        for number, each in enumerate(ended):
            made = pixels(httpx.get(each["output"][0], timeout=STALLED).content)
            assert np.abs(made - expected[number % JOBS]).max() <= 1
        secret = httpx.get(f"{server.base}/v1/webhooks/default/secret", timeout=STALLED).json()["key"]
        wait_for_hooks(hooks, {each["id"] for each in ended})
        check_hooks(hooks, secret, ended)
        listed = listed_ids(server.base)
    assert len(listed) == len(set(listed))
    assert set(listed) >= {each["id"] for each in ended}


def wait_for_hooks(hooks, ids):
    """Wait until the end of each job was told, as long as calls come."""
    taken, progressed = 0, time.monotonic()
    while not ids <= {json.loads(body)["id"] for _, body in hooks.taken}:
        if len(hooks.taken) > taken:
            taken, progressed = len(hooks.taken), time.monotonic()
        assert time.monotonic() - progressed < STALLED, "no more webhooks come"
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
        page = httpx.get(url, timeout=STALLED).raise_for_status().json()
        ids += [each["id"] for each in page["results"]]
        url = page["next"]
    return ids
