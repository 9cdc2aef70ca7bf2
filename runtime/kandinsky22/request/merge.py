"""Jobs that run together: what they must have in common, and the one job of all their pictures.

A picture depends on its own seed and inputs, so that running it beside others changes nothing but the time. What a
decoder is fed for the whole run must be the same for all; where the embeddings come from need not.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kandinsky22 import batching
from kandinsky22.request.job import Blend, GivenEmbeddings, Job, PriorRun, Sampling, Together
from kandinsky22.request.tasks import Inputs


def batch_key(job: Job) -> str:
    """A text that is equal for jobs which can run as one: see `merged`. It is the same in every process.

    It has what the decoder's run is fed for all pictures (component, shape, schedule, guidance, steps that are skipped,
    which inputs there are, whether the first noise is the caller's), `batch_size` where it is given, and what comes
    out. Where embeddings alone are asked for, it has what the prior's run is fed. Jobs that two bundles resolved have
    nothing in common, whatever their keys say.
    """
    if job.sampling is None:
        source = job.source
        alike = _prior_key(source) if isinstance(source, PriorRun) else type(source).__name__
        return _digest("embeddings", _batch_size(job), alike)
    return _digest("pictures", _batch_size(job), job.request.parameters["output_type"], *_of_decoder(job.sampling))


def merged(jobs: Sequence[Job]) -> Job:
    """One job of all pictures of `jobs`, in order; they run in one batch, or in batches of the `batch_size` they share.

    Runs of the prior that differ in their texts alone become one run. Raises ValueError where there is no job, or where
    two have different keys.
    """
    if len({batch_key(job) for job in jobs}) != 1:
        raise ValueError(f"{len(jobs)} jobs were given to merge; expected one or more, all of the same batch_key.")
    if len(jobs) == 1:
        return jobs[0]
    first = jobs[0]
    seeds = tuple(seed for job in jobs for seed in job.seeds)
    return Job(
        first.request,
        _components(jobs),
        seeds,
        tuple(batching.parts(len(seeds), _batch_size(first))),
        Together(_joined(_sources(jobs))),
        first.sampling and _sampling(jobs, first.sampling),
    )


def _batch_size(job: Job) -> int | None:
    return job.request.parameters["batch_size"]


def _of_decoder(sampling: Sampling) -> tuple[Any, ...]:
    """What a run of the decoder is fed for all of its pictures."""
    inputs = sampling.inputs
    return (
        inputs.decoder,
        type(inputs.images).__name__,  # pictures, latents or none
        inputs.strength is not None,
        inputs.masks is not None,
        inputs.hints is not None,
        inputs.overlay,
        sampling.schedule,
        float(sampling.guidance_scale) if any(segment.guided for segment in sampling.segments) else None,
        sampling.segments,
        sampling.skip,
        sampling.shape,
        sampling.ranks,
        sampling.rank_weight,
        sampling.noise is not None,
    )


def _prior_key(run: PriorRun) -> str:
    """A text that is equal for runs of the prior that can be one."""
    own = run.noise is not None, run.pictures is not None
    return _digest(run.schedule, float(run.guidance_scale), run.negatives is not None, *own)


def _components(jobs: Sequence[Job]) -> tuple[str, ...]:
    """Names of components in the order of their use: what makes embeddings in any job, then what all jobs share."""
    shared = 0
    if jobs[0].sampling is not None:
        roles = jobs[0].sampling.inputs.roles
        shared = (
            len(roles) + (jobs[0].sampling.skip is not None) + (jobs[0].request.parameters["output_type"] != "latent")
        )
    ends = [len(job.components) - shared for job in jobs]
    before = dict.fromkeys(name for job, end in zip(jobs, ends, strict=True) for name in job.components[:end])
    return (*before, *jobs[0].components[ends[0] :])


_Part = tuple[GivenEmbeddings | PriorRun | Blend, tuple[int, ...]]


def _sources(jobs: Sequence[Job]) -> list[_Part]:
    """The sources of all jobs with the places of their pictures; of a job that was merged before, its parts."""
    found: list[_Part] = []
    start = 0
    for job in jobs:
        source = job.source
        parts = source.parts if isinstance(source, Together) else ((source, tuple(range(len(job.seeds)))),)
        found += [(part, tuple(start + place for place in places)) for part, places in parts]
        start += len(job.seeds)
    return found


def _joined(parts: Sequence[_Part]) -> tuple[_Part, ...]:
    """The same with those runs of the prior made one that can be."""
    alike: dict[str, list[tuple[PriorRun, tuple[int, ...]]]] = {}
    others: list[_Part] = []
    for source, places in parts:
        if isinstance(source, PriorRun) and source.noise is None and source.pictures is None:
            alike.setdefault(_prior_key(source), []).append((source, places))
        else:
            others.append((source, places))
    return (*map(_as_one, alike.values()), *others)


def _as_one(runs: Sequence[tuple[PriorRun, tuple[int, ...]]]) -> tuple[PriorRun, tuple[int, ...]]:
    """One run of the prior for the texts of several."""
    first = runs[0][0]
    prompts = tuple(prompt for run, _ in runs for prompt in run.prompts)
    negatives = tuple(negative for run, _ in runs for negative in run.negatives or ())
    joined = dataclasses.replace(first, prompts=prompts, negatives=None if first.negatives is None else negatives)
    return joined, tuple(place for _, places in runs for place in places)


def _sampling(jobs: Sequence[Job], first: Sampling) -> Sampling:
    each = [(job.sampling, len(job.seeds)) for job in jobs if job.sampling is not None]
    noise = None if first.noise is None else np.concatenate([sampling.noise for sampling, _ in each])
    inputs = [(sampling.inputs, count) for sampling, count in each]
    return dataclasses.replace(first, inputs=_inputs(inputs), noise=noise)


def _inputs(each: Sequence[tuple[Inputs, int]]) -> Inputs:
    """The inputs of several jobs with so many pictures: one a picture, where a job has one for several."""

    def all_of(name: str) -> Any:
        given = [(getattr(inputs, name), count) for inputs, count in each]
        if given[0][0] is None:
            return None
        rows = [values[i * len(values) // count] for values, count in given for i in range(count)]
        return np.stack(rows) if isinstance(given[0][0], np.ndarray) else rows

    return dataclasses.replace(each[0][0], **{name: all_of(name) for name in ("images", "masks", "hints")})


def _digest(*values: Any) -> str:
    """A hash of values, equal where they are."""
    return hashlib.sha256(repr([_plain(value) for value in values]).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A value as Python prints it in full, and alike in every process."""
    if isinstance(value, np.ndarray):
        ordered = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        return ordered.dtype.str, value.shape, hashlib.sha256(ordered.tobytes()).hexdigest()
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value):
        return [_plain(getattr(value, each.name)) for each in dataclasses.fields(value)]
    if isinstance(value, slice):
        return value.start, value.stop
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, str) else value
