"""Which jobs run together: the oldest first, alike ones with it, as far as pictures and memory go."""

import threading
import time
from dataclasses import replace

import httpx
import pytest

from kandinsky22 import memory
from kandinsky22_serve.engine.batches import Room, next_batch
from kandinsky22_serve.store.store import Store
from tests.serve.quick import serving
from tests.serve.test_store import new_job


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    yield store
    store.close()


def room(pictures=8, limit=None, cost=None, manifest=None):
    return Room(manifest, pictures, cost, limit, low_memory=False)


def accept(store, key="k", pictures=1):
    return store.jobs.accept(new_job(key=key, pictures=pictures), 100).id


def chosen(store, **more):
    return [job.id for job in next_batch(store.jobs, room(**more))]


def test_nothing_runs_where_nothing_waits(store):
    assert chosen(store) == []


def test_the_oldest_runs_first_and_jobs_of_another_kind_wait(store):
    first, other, second = accept(store), accept(store, "other"), accept(store)
    assert chosen(store) == [first, second]
    store.jobs.start([first, second])
    assert chosen(store) == [other]


@pytest.mark.parametrize(("waiting", "taken"), [(1, 1), (2, 2), (3, 2), (5, 4), (7, 4), (8, 8), (20, 8)])
def test_batches_have_few_sizes(store, waiting, taken):
    ids = [accept(store) for _ in range(waiting)]
    assert chosen(store) == ids[:taken]


def test_no_batch_has_more_pictures_than_are_allowed(store):
    first, _, third = accept(store, pictures=2), accept(store, pictures=4), accept(store, pictures=2)
    assert chosen(store, pictures=5) == [first, third]


def test_a_job_that_is_larger_than_a_batch_runs_alone(store):
    first, _ = accept(store, pictures=9), accept(store)
    assert chosen(store) == [first]


def test_a_job_that_an_engine_died_of_runs_alone(store):
    first, second, third = accept(store), accept(store), accept(store)
    store.jobs.start([first, second])
    store.jobs.put_back([first, second], died=True)
    assert chosen(store) == [first]
    store.jobs.start([first])
    assert chosen(store) == [second]
    store.jobs.start([second])
    assert chosen(store) == [third]


def test_a_batch_takes_no_more_memory_than_the_limit(store, shapes_bundle):
    from kandinsky22.bundle.bundle import Bundle

    manifest = Bundle(shapes_bundle).manifest
    cost = memory.COSTS["openvino", "fp32"]
    demand = {"components": ["decoder_step"], "latents": [128, 128], "branches": [2]}
    ids = [store.jobs.accept(replace(new_job(), demand=demand), 100).id for _ in range(8)]

    def needed(pictures):
        asked = memory.Demand(("decoder_step",), (128, 128), pictures, pictures, frozenset({2}))
        return memory.estimate(manifest, asked, cost, ("decoder_step",))

    for pictures in (1, 2, 4, 8):
        assert chosen(store, manifest=manifest, cost=cost, limit=needed(pictures) + 1) == ids[:pictures]
        assert chosen(store, manifest=manifest, cost=cost, limit=needed(pictures) - 1) == ids[: max(1, pictures // 2)]


def test_jobs_of_all_contracts_run_together(shapes_bundle, tmp_path):
    """Three contracts, other prompts, seeds, formats and runs of the prior; one of another size waits."""
    alike = {"width": 64, "height": 64, "num_inference_steps": 7, "guidance_scale": 3.0}
    model = {"version": "ai-forever/kandinsky-2.2"}
    asked = [
        ("/v1/predictions", {**model, "input": {**alike, "prompt": "a", "output_format": "png"}}),
        ("/predictions", {"input": {**alike, "prompt": "b", "seed": 4, "scheduler_prior": "ddim"}}),
        ("/v1/predictions", {**model, "input": {**alike, "prompt": "c", "width": 128}}),
        ("/v1/predictions", {**model, "input": {**alike, "mix_prompts": ["a", "b"], "output_format": "jpeg"}}),
    ]
    words = {"prompt": "d", "size": "64x64", "num_inference_steps": 7, "guidance_scale": 3.0}
    ids = []
    with serving(shapes_bundle, tmp_path / "data", ui=False) as server:
        server.engine.hold.set()
        for path, body in asked:
            answer = httpx.post(server.base + path, headers={"Prefer": "respond-async"}, json=body)
            assert answer.status_code in (201, 202), answer.text
            ids.append(answer.json()["id"])
        keywords = {"json": words, "timeout": 60}  # it waits for its picture
        waiting = threading.Thread(target=httpx.post, args=(f"{server.base}/v1/images/generations",), kwargs=keywords)
        waiting.start()
        jobs, deadline = server.service.store.jobs, time.monotonic() + 30
        while (openais := jobs.newest(1)[0]).contract != "openai":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert [job.id for job in next_batch(jobs, room())] == [ids[0], ids[1], ids[3], openais.id]
        server.service.cancel(openais.id)
        waiting.join(30)
