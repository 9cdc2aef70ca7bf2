"""Cancels at random moments: each stops within a step, neighbours are unchanged, memory is as before."""

import io
import os
import random
import statistics
import time

import httpx
import numpy as np
import PIL.Image
import pytest

from tests.serve.running import Running, resident, small

pytestmark = [pytest.mark.server, pytest.mark.skipif(not os.path.exists("/proc"), reason="needs /proc")]

ROUNDS, TOGETHER, STEPS = 50, 4, 100
"""In every round so many jobs are submitted at once; in each two are canceled alone, then two within a batch."""


def submit(http, seed, prompt="a red circle"):
    inputs = small(prompt, seed=seed, num_inference_steps=STEPS)
    body = {"version": "ai-forever/kandinsky-2.2", "input": inputs}
    return http.post("/v1/predictions", json=body).raise_for_status().json()["id"]


def state(http, job):
    return http.get(f"/v1/predictions/{job}").raise_for_status().json()


def ended(http, job):
    while (found := state(http, job))["status"] not in ("succeeded", "failed", "canceled"):
        time.sleep(0.005)
    return found


def pixels(http, prediction):
    return np.asarray(PIL.Image.open(io.BytesIO(http.get(prediction["output"][0]).content)), np.int16)


def steps_done(logs):
    lines = [line for line in logs.splitlines() if "|" in line]
    return int(lines[-1].split("|")[2].split("/")[0]) if lines else 0


def test_cancels_at_random_moments(shapes_bundle, tmp_path):
    random_moment = random.Random(5)
    canceled, memory, late = 0, [], []
    flags = ("--backend", "onnxruntime")  # compiles nothing, so that canceled pictures are always left out
    with (
        Running(shapes_bundle, tmp_path / "data", *flags) as server,
        httpx.Client(base_url=server.base, timeout=60) as http,
    ):
        server.wait_for("/readyz")
        expected = {seed: pixels(http, ended(http, submit(http, seed))) for seed in range(TOGETHER)}
        for job in [submit(http, seed) for seed in range(TOGETHER)]:
            ended(http, job)
        engine = server.engine()
        for _ in range(ROUNDS):
            for seed in range(2):  # alone
                job = submit(http, seed)
                time.sleep(random_moment.uniform(0, 0.5))
                canceled += cancel(http, job, late)
            jobs = [submit(http, seed) for seed in range(TOGETHER)]
            time.sleep(random_moment.uniform(0, 0.8))
            gone = random_moment.sample(range(TOGETHER), 2)
            canceled += sum(cancel(http, jobs[seed], late) for seed in gone)
            for seed in set(range(TOGETHER)) - set(gone):
                found = ended(http, jobs[seed])
                assert found["status"] == "succeeded"
                assert np.abs(pixels(http, found) - expected[seed]).max() <= 1
            assert server.engine() == engine
            memory.append(resident(engine))
    growth = statistics.median(memory[-10:]) - statistics.median(memory[10:20])
    print(f"\n{canceled} canceled before they ended; engine's memory grew by {growth / 2**20:.0f} MiB; late {late}")
    assert canceled >= ROUNDS * 3  # of four in each round; some had just ended
    assert growth < 64 << 20
    assert late == []


def cancel(http, job, late):
    """Cancel a job; whether it had not ended. One that computes a step more than the one it was in is late."""
    before = steps_done(state(http, job)["logs"])
    answer = http.post(f"/v1/predictions/{job}/cancel").raise_for_status().json()
    assert answer["status"] in ("canceled", "succeeded")
    after = steps_done(answer["logs"])
    time.sleep(0.1)
    later = state(http, job)
    if later["status"] != answer["status"] or steps_done(later["logs"]) > after:
        late.append((before, after, later["logs"]))
    return answer["status"] == "canceled"
