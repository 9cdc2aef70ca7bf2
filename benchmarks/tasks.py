"""Every task of a bundle with all components, one after the other: seconds a stage and peak memory.

    python -m benchmarks.tasks engines/full --name my-machine [--sizes 512 1024] [--only inpainting ControlNet]

The bundle has all components: kandinsky22-export --architecture kandinsky-2.2-all --random-weights 0 --precision fp16.
Each task runs in a process of its own with one component in memory at a time, for a few steps: a stage's seconds are
given for one run of it. Results are kept in reports/tasks-NAME.json as they come, and written as reports/tasks-NAME.md;
a task that fails has its sentence there instead of numbers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from benchmarks import workers
from benchmarks.command import REPORTS, one_sentence
from benchmarks.machine import TOTAL, MachineMeasurements, MachineRecord, complete, describe, role_of
from benchmarks.markdown import table
from benchmarks.results import GIB, commits
from kandinsky22 import Pipeline
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import DECODERS, Role
from kandinsky22.files import write_file
from kandinsky22.measure import timing
from kandinsky22.measure.report import Bytes, Count, Measured, Steps

STEPPED = DECODERS | {Role.PRIOR}
"""The roles whose components are run once a step."""
PROMPT = "a fox in the snow"


@dataclass(frozen=True)
class TaskSpec:
    """What is measured."""

    task: str
    size: Count
    steps: Steps
    backend: str


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What was measured of a task, in the report."""

    commit: str
    spec: TaskSpec
    error: str = ""
    timings: Annotated[dict[str, Measured], TOTAL] | None = None
    peak: Bytes | None = None


RESULT = complete("timings", "peak")


@dataclass(frozen=True)
class TasksRecord:
    """The report's numbers."""

    machine: MachineRecord
    results: tuple[Annotated[TaskResult, RESULT], ...]


@one_sentence()
def main() -> None:
    """Measure what is missing, and write the report; with `--spec`, measure one and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("bundle", type=Path)
    add("--name", default="machine", help="of the report (%(default)s)")
    add("--sizes", type=int, nargs="+", default=[1024], help="pixels a side (1024)")
    add("--steps", type=int, default=2, help="of the decoder, and of the prior (%(default)s)")
    add("--backend", default="openvino", help="(%(default)s)")
    add("--only", nargs="+", choices=TASKS, default=list(TASKS), help="tasks (all)")
    add("--reports", type=Path, default=REPORTS, help="folder of reports (%(default)s)")
    add("--spec", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.spec:
        print(json.dumps(measure(options.bundle, json.loads(options.spec))))
        return
    path = options.reports / f"tasks-{options.name}.json"
    options.reports.mkdir(parents=True, exist_ok=True)
    found = MachineMeasurements(path, describe(Bundle(options.bundle)), {"results": []}, TasksRecord)
    for size, task in itertools.product(options.sizes, options.only):
        spec = {"task": task, "size": size, "steps": options.steps, "backend": options.backend}
        if any(result["spec"] == spec for result in found.data["results"]):
            continue
        print(f"{task}, {size}x{size}", file=sys.stderr)
        arguments = [str(options.bundle), "--spec", json.dumps(spec)]
        result = workers.alone(task, "benchmarks.tasks", arguments, path.with_suffix(".log"))
        found.keep("results", {"spec": spec, **result})
    write_file(path.with_suffix(".md"), markdown(found.data).encode())
    print(path.with_suffix(".md"), file=sys.stderr)


Call = Callable[[Pipeline, Mapping[str, Any], "np.ndarray[Any, Any]"], Any]


def _half(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A mask of the left half."""
    mask = np.zeros(picture.shape[:2], np.float32)
    mask[:, : mask.shape[1] // 2] = 1
    return mask


TASKS: dict[str, Call] = {
    "text to image": lambda pipe, how, picture: pipe(PROMPT, **how),
    "image to image": lambda pipe, how, picture: pipe.img2img(PROMPT, picture, strength=1.0, **how),
    "inpainting": lambda pipe, how, picture: pipe.inpaint(PROMPT, picture, _half(picture), **how),
    "ControlNet": lambda pipe, how, picture: pipe.controlnet(PROMPT, picture, **how),
    "mixing a text and a picture": lambda pipe, how, picture: pipe.mix([PROMPT, picture], [0.5, 0.5], **how),
}


def measure(bundle: Path, spec: dict[str, Any]) -> dict[str, Any]:
    """Run a task once: seconds and numbers of runs by stage, and the process' peak memory in bytes."""
    picture = np.random.default_rng(0).random((spec["size"], spec["size"], 3), np.float32)
    how = {
        "height": spec["size"],
        "width": spec["size"],
        "num_inference_steps": spec["steps"],
        "prior_num_inference_steps": spec["steps"],
        "seed": 0,
    }
    pipe = Pipeline.load(bundle, spec["backend"], low_memory=True, memory_limit=None)
    with timing.highest_memory() as peak:
        out = TASKS[spec["task"]](pipe, how, picture)
    assert np.asarray(out.images[0]).shape == (spec["size"], spec["size"], 3)
    return {"timings": out.timings, "peak": peak().host}


def markdown(data: Mapping[str, Any]) -> str:
    """The report."""
    machine, results = data["machine"], sorted(data["results"], key=lambda result: result["spec"]["size"])
    lead = f"""# Tasks: {machine["processor"]}

{machine["checkpoint"].capitalize()} ({machine["bundle"]["precision"]}), {machine["system"]}, \
{", ".join(machine["instructions"])}; one component in memory at a time. Seconds of one run of each stage, guided: of \
the prior and the UNets, of one step. "In all" is one picture, with loading, and as many steps of the prior and of the \
UNet as the column says. Commits {commits(results)}, {machine["date"]}; made by `{machine["command"]}`.

"""
    header: Sequence[str] = ("task", "size", "stages: seconds", "steps", "loading s", "in all s", "peak GiB")
    return lead + table(header, (row(result, machine) for result in results)) + "\n"


def row(result: Mapping[str, Any], machine: Mapping[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    spec = result["spec"]
    about = (spec["task"], f"{spec['size']}x{spec['size']}")
    if "error" in result:
        return *about, result["error"], str(spec["steps"]), "", "", ""
    timings = dict(result["timings"])
    load, total = timings.pop("load", 0.0), timings.pop("total")
    stages = ", ".join(
        f"{name} {seconds / (spec['steps'] if role_of(machine, name) in STEPPED else 1):.1f}"
        for name, seconds in timings.items()
    )
    return *about, stages, str(spec["steps"]), f"{load:.0f}", f"{total:.0f}", f"{result['peak'] / GIB:.2f}"


if __name__ == "__main__":
    main()
