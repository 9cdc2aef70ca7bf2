"""The page's jobs: accepted from its fields as any contract's are, followed, and found again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from kandinsky22_serve import problems
from kandinsky22_serve.contracts import base as contract
from kandinsky22_serve.inputs import Input, input_model
from kandinsky22_serve.page import form
from kandinsky22_serve.pictures import forget, keep
from kandinsky22_serve.service import Progress, Service
from kandinsky22_serve.store.records import File, Job, Options, Status

CONTRACT = "page"
RECENT = 24
"""Pictures that are listed."""
_LOOKED_AT = 200
"""Jobs that are looked through for them."""
_PAUSE = 0.2
"""Seconds between two states that are shown."""


@dataclass(frozen=True)
class State:
    """A job as it is now; `place` is how many wait before it, `files` are its pictures."""

    job: Job
    place: int
    progress: Progress | None
    engine: str
    files: tuple[File, ...] = ()


@dataclass(frozen=True)
class Recent:
    """One picture that is still there, and the job that made it."""

    job: Job
    file: File


async def paint(service: Service, fields: Mapping[str, Any], base: str) -> Job:
    """Accept a job for the fields. Raises as `contracts.base.submit` does, or InputError where a field is missing."""
    inputs, files = await _kept(service, fields, base, "input")
    try:
        given = _checked(service, inputs)
        asked: Any = given
        options = Options(form=asked.output_format, quality=asked.output_quality, previews=True, base=base)
        return await contract.submit(service, CONTRACT, given, options, shown=inputs)
    except Exception:
        await forget(service, files)
        raise


async def call_of(service: Service, fields: Mapping[str, Any], base: str) -> dict[str, Any]:
    """The API's inputs for the fields, their pictures as addresses of uploads. Raises as `paint` does."""
    inputs, _ = await _kept(service, fields, base, "upload")
    _checked(service, inputs)
    return inputs


async def _kept(
    service: Service, fields: Mapping[str, Any], base: str, kind: str
) -> tuple[dict[str, Any], tuple[File, ...]]:
    pictures = await asyncio.to_thread(form.pictures_of, fields)
    files = {}
    for name, body in pictures.items():
        files[name] = await keep(service, name, body, kind=kind, file_name=name)
    links = {name: contract.picture_url(base, service, file) for name, file in files.items()}
    return form.inputs_of(fields, links), tuple(files.values())


def _checked(service: Service, inputs: Mapping[str, Any]) -> Input:
    try:
        return input_model(service.manifest).model_validate(inputs)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def sentence(error: Exception) -> str:
    """What to tell of an error, in one sentence."""
    return problems.told(error)[1]


async def follow(service: Service, job: str) -> AsyncIterator[State]:
    """The states of a job until it has ended, a few a second at most."""
    async for found in service.follow(job):
        yield await asyncio.to_thread(_state, service, found)
        if not found.status.is_terminal:
            await asyncio.sleep(_PAUSE)


def _state(service: Service, job: Job) -> State:
    place = service.store.jobs.place(job) if job.status is Status.STARTING else 0
    files = tuple(service.outputs(job))
    return State(job, place, service.progress(job.id), service.supervisor.state, files)


def unfinished(service: Service) -> Job | None:
    """The newest of the page's jobs that has not ended, or None."""
    jobs = service.store.jobs.newest(RECENT, contracts=(CONTRACT,))
    return next((job for job in jobs if not job.status.is_terminal), None)


def recent(service: Service) -> list[Recent]:
    """The newest pictures that are still there, whichever way they were asked for: who may see the page may list all.

    Reads the store.
    """
    found: list[Recent] = []
    for job in service.store.jobs.newest(_LOOKED_AT):
        found += [Recent(job, file) for file in service.outputs(job)]
        if len(found) >= RECENT:
            break
    return found[:RECENT]


def picture(service: Service, file: str) -> Recent | None:
    """The picture of that id with its job, or None where it has expired."""
    found = service.store.files.get(file)
    if found is None or found.kind != "output" or found.job is None:
        return None
    job = service.job(found.job)
    return None if job is None else Recent(job, found)


def seed_of(picture: Recent) -> int | None:
    """The seed that a picture was made with."""
    seeds = picture.job.seeds
    return seeds[picture.file.place] if picture.file.place < len(seeds) else None


def preset_of(job: Job) -> str:
    """The preset that a job was asked for with, "" where there was none."""
    return str(job.input.get("preset") or "")


def fields_again(picture: Recent) -> dict[str, Any]:
    """The fields that make a picture again; pictures that have expired are None."""
    fields = form.fields_of(picture.job.request, seed_of(picture), preset_of(picture.job))
    for name, value in fields.items():
        is_picture = name in ("image", "hint") or (name.startswith("mix_image_") and "weight" not in name)
        if is_picture and value is not None and not Path(value).is_file():
            fields[name] = None
    if fields.get("canvas") is not None and not all(Path(path).is_file() for path in fields["canvas"]):
        fields["canvas"] = None
    options = picture.job.options
    return fields | {"output_format": options.form, "output_quality": options.quality}
