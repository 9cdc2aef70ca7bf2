"""Measuring: what is timed, how often, and what is told."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from kandinsky22 import bench, cli
from kandinsky22.backends import Settings, onnxruntime
from kandinsky22.bench import Memory, Size, Timing
from kandinsky22.bundle import Bundle
from kandinsky22.errors import InputError


def timing(*seconds: float) -> Timing:
    return Timing("decoder_step", Size(64, 64), seconds, Memory(0, 0))


def test_percentiles_are_times_that_were_measured() -> None:
    ten = timing(*(float(i) for i in range(10, 0, -1)))
    assert [ten.percentile(share) for share in (50, 90, 99)] == [5.0, 9.0, 10.0]
    assert timing(3.0).percentile(50) == timing(3.0).percentile(99) == 3.0


class Sleeper:
    """A stage that takes long the first time, and then a set time."""

    name = "movq_decoder"

    def __init__(self) -> None:
        self.runs: list[float] = []

    def prepare(self, size: Size) -> None:
        self.size = size

    def run(self) -> float:
        self.runs.append(0.1 if not self.runs else 0.01)
        time.sleep(self.runs[-1])
        return self.runs[-1]


def test_the_first_run_does_not_count() -> None:
    told: list[float] = []
    stage = Sleeper()
    result = bench.time_stage(stage, Size(64, 128), repeat=3, on_run=told.append)  # type: ignore[arg-type]
    assert result.seconds == (0.01, 0.01, 0.01)
    assert told == [0.1, 0.01, 0.01, 0.01]
    assert stage.size == Size(64, 128)


def test_patience_ends_it_after_at_least_one_run() -> None:
    result = bench.time_stage(Sleeper(), Size(64, 64), repeat=100, patience=0.005)  # type: ignore[arg-type]
    assert result.seconds == (0.01,)


def test_the_highest_memory_of_a_block_is_that_of_the_block() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("NOT TESTED: this system does not tell the highest memory of a block")
    with bench.highest_memory() as memory:
        before = memory().host
    with bench.highest_memory() as memory:
        block = bytearray(200 << 20)
        block[::4096] = b"x" * len(block[::4096])
        del block
    assert 150 << 20 < memory().host - before < 300 << 20
    with bench.highest_memory() as memory:
        pass
    assert memory().host - before < 100 << 20


@pytest.mark.parametrize("name", ["text_encoder", "prior_step", "decoder_step", "movq_decoder"])
def test_a_stage_runs_at_any_size(handmade_bundle: Bundle, name: str) -> None:
    stage = bench.Stage(handmade_bundle, name, onnxruntime.CPU, Settings(threads=1), steps=3)
    for size in (Size(64, 128), Size(128, 64, batch=2, guided=False)):
        assert bench.time_stage(stage, size, repeat=1).seconds[0] > 0
    stage.close()
    assert bench.depends_on_size(handmade_bundle, name) == (name in ("decoder_step", "movq_decoder"))


def test_sizes_that_no_graph_takes_are_refused(handmade_bundle: Bundle) -> None:
    assert bench.sizes(handmade_bundle, [(128, 64)], [1, 2]) == [Size(64, 128), Size(64, 128, 2)]
    for side in (100, 0, 1 << 20):
        with pytest.raises(InputError, match="expected multiples of 64 up to"):
            bench.sizes(handmade_bundle, [(side, 64)], [1])


def test_the_command_tells_stages_and_pictures(handmade_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"bench {handmade_bundle.path} --backend onnxruntime --size 64 --size 128x64 --batch 1 --batch 2"
    line += " --repeat 2 --steps 2 --prior-steps 2"
    assert cli.main([*line.split(), "--json", "--quiet"]) == 0
    (backend,) = json.loads(capsys.readouterr().out)["backends"]
    assert backend["name"] == "onnxruntime"
    stages = [(each["stage"], each["width"], each["batch"]) for each in backend["stages"]]
    assert stages.count(("decoder_step", 128, 2)) == 1
    assert len([stage for stage, _, _ in stages if stage == "decoder_step"]) == 4
    assert len([stage for stage, _, _ in stages if stage == "prior_step"]) == 2  # once a batch
    for each in backend["stages"]:
        assert len(each["seconds"]) == 2
        assert min(each["seconds"]) == each["p50"] <= each["p90"] == each["p99"] == max(each["seconds"])
        assert each["peak_host_memory"] > 10 << 20
    assert len(backend["pictures"]) == 8
    assert all(each["timings"]["total"] > each["timings"]["decoder_step"] > 0 for each in backend["pictures"])

    assert cli.main([*line.split(), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "p99 ms" in out
    assert "decoder_step  128x64 x 2" in out
    assert out.count("first") == 4
    assert out.count("next") == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--size 100", "The size 100 cannot be timed; expected multiples of 64"),
        ("--size huge", "The size is 'huge'; expected pixels such as 1024 or 1024x768."),
        ("--repeat 0", "repeat is 0; expected a whole number from 1"),
        ("--batch 0", "batch is 0"),
        ("--component nothing", "no component 'nothing'"),
        ("--backend nothing", "no backend 'nothing'"),
    ],
)
def test_mistakes_are_one_sentence(
    handmade_bundle: Bundle, capsys: pytest.CaptureFixture[str], arguments: str, sentence: str
) -> None:
    assert cli.main(["bench", str(handmade_bundle.path), *arguments.split(), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
