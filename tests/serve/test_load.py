"""The server under load: many clients, quick answers, flat memory, batches that pay, little cost of its own."""

import asyncio
import contextlib
import io
import os
import statistics
import subprocess
import sys
import time

import httpx
import numpy as np
import PIL.Image
import pytest

from kandinsky22 import Pipeline
from kandinsky22.images import writing
from tests.serve.running import Running, resident, small

pytestmark = pytest.mark.skipif(not os.path.exists("/proc"), reason="needs /proc")

CLIENTS, EACH = 50, 20
MIB = 1 << 20
BATCHES = (1, 2, 4, 8)
"""Pictures of a batch, where the server takes 8 at most."""

BARE = """
import asyncio

async def answer(reader, writer):
    while await reader.readuntil(b"\\r\\n\\r\\n"):
        writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok")

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
"""A server that does nothing but answer: what it takes is this machine's own, and that of the clients' process."""


@contextlib.contextmanager
def bare_server():
    """The address of a server in a process of its own that does nothing but answer."""
    command = [sys.executable, "-c", BARE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
        finally:
            process.kill()


async def timed(http, address, seconds):
    """An answer, and how long it took, in `seconds`."""
    began = time.perf_counter()
    answer = (await http.get(address)).raise_for_status()
    seconds.append(time.perf_counter() - began)
    return answer


async def client(http, number, polls, bare, bare_polls):
    """One client: a job after the other, polled until it has ended, and the bare server beside it. Clients do not begin
    in one moment: this process would then measure itself, since it sends their requests one after the other."""
    await asyncio.sleep(number / CLIENTS)
    for place in range(EACH):
        inputs = small("a red circle", seed=number * EACH + place)
        body = {"version": "ai-forever/kandinsky-2.2", "input": inputs}
        answer = (await http.post("/v1/predictions", json=body)).raise_for_status().json()
        while answer["status"] not in ("succeeded", "failed", "canceled"):
            await asyncio.sleep(0.5)
            await timed(http, bare, bare_polls)
            answer = (await timed(http, f"/v1/predictions/{answer['id']}", polls)).json()
        assert answer["status"] == "succeeded", answer["error"]


def warm(server):
    """Run batches of every size: what is loaded and compiled once is there before anything is measured.

    A job of more steps runs first each time, alone, since it is not denoised alike; those that run together wait.
    """
    with httpx.Client(base_url=server.base, timeout=600) as http:
        for size in BATCHES:
            asked = [
                small("a red circle", num_inference_steps=200),
                *[small("a red circle", seed=n) for n in range(size)],
            ]
            ids = []
            for each in asked:
                body = {"version": "ai-forever/kandinsky-2.2", "input": each}
                ids.append(http.post("/v1/predictions", json=body).raise_for_status().json()["id"])
            while http.get(f"/v1/predictions/{ids[-1]}").raise_for_status().json()["status"] != "succeeded":
                time.sleep(0.1)


def p99(seconds):
    return statistics.quantiles(seconds, n=100)[98]


@pytest.mark.server
def test_a_thousand_jobs_of_fifty_clients(shapes_bundle, tmp_path):
    polls, bare_polls = [], []
    memory: list[tuple[int, int]] = []

    async def watch(server):
        while True:
            engine = server.engine()
            memory.append((resident(server.process.pid), resident(engine) if engine else 0))
            await asyncio.sleep(1)

    async def load(server, bare):
        watching = asyncio.create_task(watch(server))
        limits = httpx.Limits(max_connections=2 * CLIENTS, max_keepalive_connections=2 * CLIENTS)
        async with httpx.AsyncClient(base_url=server.base, timeout=600, limits=limits) as http:
            await asyncio.gather(*(client(http, number, polls, bare, bare_polls) for number in range(CLIENTS)))
        watching.cancel()

    with Running(shapes_bundle, tmp_path / "data") as server, bare_server() as bare:
        server.wait_for("/readyz")
        warm(server)
        asyncio.run(load(server, bare))
    of_server, of_engine = ([each[place] / MIB for each in memory] for place in (0, 1))
    print()
    for name, seconds in (("polls", polls), ("polls of the bare server", bare_polls)):
        print(
            f"{len(seconds)} {name}: median {statistics.median(seconds) * 1e3:.1f} ms, p99 {p99(seconds) * 1e3:.1f} ms"
        )
    for name, series in (("server", of_server), ("engine", of_engine)):
        print(f"memory of the {name}: {min(series):.0f} to {max(series):.0f} MiB, grown by {growth(series):.0f}")
    assert p99(polls) < p99(bare_polls) + 0.05
    assert growth(of_server) < 32
    assert growth(of_engine) < 64


def growth(series):
    """How much the last quarter is above the first, in the median."""
    quarter = max(1, len(series) // 4)
    return statistics.median(series[-quarter:]) - statistics.median(series[:quarter])


def pictures_a_second(server, count, first):
    """Of so many jobs that are submitted at once."""
    with httpx.Client(base_url=server.base, timeout=60) as http:
        began = time.perf_counter()
        ids = []
        for number in range(count):
            body = {"version": "ai-forever/kandinsky-2.2", "input": small("a red circle", seed=first + number)}
            ids.append(http.post("/v1/predictions", json=body).raise_for_status().json()["id"])
        while http.get(f"/v1/predictions/{ids[-1]}").json()["status"] != "succeeded":  # the oldest go first
            time.sleep(0.05)
        return count / (time.perf_counter() - began)


@pytest.mark.load
def test_batches_make_at_least_twice_the_pictures(shapes_bundle, tmp_path):
    # In bf16 pictures are computed one after the other, so that none depends on its neighbours: batches gain little.
    flags = ("--precision", "fp32")
    with (
        Running(shapes_bundle, tmp_path / "on", *flags) as on,
        Running(shapes_bundle, tmp_path / "off", *flags, "--max-batch", "1") as off,
    ):
        for server in (on, off):
            server.wait_for("/readyz")
            pictures_a_second(server, 96, 0)
        ratios = []
        for turn in range(3):
            ratios.append(pictures_a_second(on, 96, turn * 96) / pictures_a_second(off, 96, turn * 96))
        print(f"\nbatches on / off: {sorted(ratios)}")
        assert statistics.median(ratios) >= 2


@pytest.mark.load
def test_the_server_costs_little_beside_the_pipeline(shapes_bundle, tmp_path):
    """The same jobs one by one, through the server and through `Pipeline` with the same files written."""
    count = 24
    with Running(shapes_bundle, tmp_path / "data", "--max-batch", "8") as server, Pipeline.load(shapes_bundle) as pipe:
        server.wait_for("/readyz")
        through_server(server, 16, 512)
        through_pipeline(pipe, tmp_path, 16, 512)
        costs, shares = [], []
        for _ in range(6):
            ours, own = through_server(server, count, 512), through_pipeline(pipe, tmp_path, count, 512)
            costs.append((ours - own) / count)
            shares.append(ours / own - 1)
        print(f"\nthe server's own cost: {np.median(costs) * 1e3:.1f} ms a picture, {np.median(shares):.1%}")
        assert np.median(costs) <= 0.005
        assert np.median(shares) <= 0.03


def inputs(number, side):
    return small("a red circle", seed=number, width=side, height=side)


def through_server(server, count, side):
    """Seconds from the first request to the last end, in batches of eight."""
    with httpx.Client(base_url=server.base, timeout=60) as http:
        began = time.perf_counter()
        ids = []
        for number in range(count):
            body = {"version": "ai-forever/kandinsky-2.2", "input": inputs(number, side)}
            ids.append(http.post("/v1/predictions", json=body).raise_for_status().json()["id"])
        while http.get(f"/v1/predictions/{ids[-1]}").json()["status"] != "succeeded":
            time.sleep(0.01)
        return time.perf_counter() - began


def through_pipeline(pipe, folder, count, side):
    """Seconds of the same pictures, eight a call, as PNG files."""
    began = time.perf_counter()
    for first in range(0, count, 8):
        seeds = list(range(first, first + 8))
        output = pipe(
            ["a red circle"] * 8,
            height=side,
            width=side,
            num_inference_steps=4,
            prior_num_inference_steps=2,
            seed=seeds,
        )
        for seed, picture in zip(seeds, output.images, strict=True):
            writing.save(picture, folder / f"{seed}.png", {"seed": seed}, overwrite=True)
    return time.perf_counter() - began


@pytest.mark.server
def test_pictures_of_a_batch_are_those_made_alone(shapes_bundle, tmp_path):
    with Running(shapes_bundle, tmp_path / "data") as server, httpx.Client(base_url=server.base, timeout=60) as http:
        ids = []
        for number in range(16):
            body = {"version": "ai-forever/kandinsky-2.2", "input": inputs(number, 64)}
            ids.append(http.post("/v1/predictions", json=body).raise_for_status().json()["id"])
        made = []
        for each in ids:
            while (found := http.get(f"/v1/predictions/{each}").json())["status"] != "succeeded":
                time.sleep(0.02)
            made.append(np.asarray(PIL.Image.open(io.BytesIO(http.get(found["output"][0]).content)), np.int16))
    with Pipeline.load(shapes_bundle) as pipe:
        for number, picture in enumerate(made):
            alone = pipe(
                "a red circle", height=64, width=64, num_inference_steps=4, prior_num_inference_steps=2, seed=number
            ).images[0]
            assert np.abs(np.asarray(alone, np.int16) - picture).max() <= 1
