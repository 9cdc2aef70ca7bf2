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
MEASURED_EVERY = 10
"""Rounds after which it is measured anew how long jobs take: what else this machine does comes and goes."""


class Moments:
    """Random moments within the life of jobs, as long as that is on this machine and now."""

    def __init__(self, http):
        self._http, self._random = http, random.Random(5)
        self._seconds = {}

    def measure(self):
        """Time a job alone, and as many together as a round has."""
        for count in (1, TOGETHER):
            began = time.monotonic()
            for job in [submit(self._http, seed) for seed in range(count)]:
                ended(self._http, job)
            self._seconds[count] = time.monotonic() - began

    def lasted(self, count, seconds):
        """So many jobs ended after so long: where that is shorter than what was measured, moments come earlier."""
        self._seconds[count] = min(self._seconds[count], seconds)

    def wait(self, count):
        """Wait for a part of what so many jobs take: any moment before the last fifth."""
        time.sleep(self._random.uniform(0, 0.8 * self._seconds[count]))

    def step(self):
        """Seconds that a step takes, or a little more."""
        return self._seconds[TOGETHER] / STEPS

    def chosen(self):
        """Two jobs of a round."""
        return self._random.sample(range(TOGETHER), 2)


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
    canceled, memory, late = 0, [], []
    flags = ("--backend", "onnxruntime")  # compiles nothing, so that canceled pictures are always left out
    with (
        Running(shapes_bundle, tmp_path / "data", *flags) as server,
        httpx.Client(base_url=server.base, timeout=600) as http,
    ):
        server.wait_for("/readyz")
        expected = {seed: pixels(http, ended(http, submit(http, seed))) for seed in range(TOGETHER)}
        moments = Moments(http)
        engine = server.engine()
        for number in range(ROUNDS):
            if number % MEASURED_EVERY == 0:
                moments.measure()
            for seed in range(2):
                canceled += cancel_alone(http, seed, moments, late)
            canceled += cancel_in_batch(http, moments, expected, late)
            assert server.engine() == engine
            memory.append(resident(engine))
    growth = statistics.median(memory[-10:]) - statistics.median(memory[10:20])
    print(f"\n{canceled} canceled before they ended; engine's memory grew by {growth / 2**20:.0f} MiB; late {late}")
    assert canceled >= ROUNDS * 3  # of four in each round; some had just ended
    assert growth < 64 << 20
    assert late == []


def cancel_alone(http, seed, moments, late):
    """Submit a job and cancel it at a random moment; 1 where it had not ended, else 0."""
    began = time.monotonic()
    job = submit(http, seed)
    moments.wait(1)
    if cancel(http, job, moments, late):
        return 1
    moments.lasted(1, time.monotonic() - began)
    return 0


def cancel_in_batch(http, moments, expected, late):
    """Submit jobs at once and cancel two of them at a random moment; how many had not ended. The others are as ever."""
    began = time.monotonic()
    jobs = [submit(http, seed) for seed in range(TOGETHER)]
    moments.wait(TOGETHER)
    gone = moments.chosen()
    canceled = sum(cancel(http, jobs[seed], moments, late) for seed in gone)
    stay = {seed: ended(http, jobs[seed]) for seed in set(range(TOGETHER)) - set(gone)}
    moments.lasted(TOGETHER, time.monotonic() - began)
    for seed, found in stay.items():
        assert found["status"] == "succeeded"
        assert np.abs(pixels(http, found) - expected[seed]).max() <= 1
    return canceled


def cancel(http, job, moments, late):
    """Cancel a job; whether it had not ended. One that computes a step more than the one it was in is late."""
    before = steps_done(state(http, job)["logs"])
    answer = http.post(f"/v1/predictions/{job}/cancel").raise_for_status().json()
    assert answer["status"] in ("canceled", "succeeded")
    after = steps_done(answer["logs"])
    time.sleep(max(0.1, 4 * moments.step()))  # in which another step would be done
    later = state(http, job)
    if later["status"] != answer["status"] or steps_done(later["logs"]) > after:
        late.append((before, after, later["logs"]))
    return answer["status"] == "canceled"
