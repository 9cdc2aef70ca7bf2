"""What the contracts share: addresses, and a job from a client's inputs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request

from kandinsky22_serve import webhooks
from kandinsky22_serve.inputs import PICTURES, Input, request_of, task_of
from kandinsky22_serve.pictures import forget, take
from kandinsky22_serve.service import Service, Submission
from kandinsky22_serve.store.records import File, Job, Options


def base_of(service: Service, request: Request) -> str:
    """The address that the client reached us at, without a slash at its end: scheme, host and port."""
    if service.settings.public_url:
        return service.settings.public_url.rstrip("/")
    return f"{request.url.scheme}://{request.url.netloc}"


def picture_url(base: str, service: Service, file: File) -> str:
    """Where a picture is."""
    return f"{base}/files/{file.id}{service.store.files.suffix(file.media_type)}"


async def submit(
    service: Service,
    contract: str,
    given: Input,
    options: Options,
    *,
    shown: Mapping[str, Any],
    seconds: float | None = None,
    job: str = "",
) -> Job:
    """Accept a job for a client's inputs: its pictures are taken, its request is checked. Raises as these do.

    Pictures that no job was made of are not kept.
    """
    asked: Any = given
    taken: dict[str, File] = {}

    async def path_of(name: str, value: str) -> Path:
        taken[name] = file = await take(service, name, value, options.base)
        return service.store.files.path(file).absolute()

    try:
        task_of(given)
        if options.webhook is not None:
            await webhooks.check(options.webhook.url, service.settings.allow_webhook_host)
        sources = {name: value for name in PICTURES if (value := getattr(given, name)) is not None}
        several = {f"mix_images[{place}]": value for place, value in enumerate(asked.mix_images or ())}
        paths = {name: await path_of(name, value) for name, value in sources.items()}
        mixed = [await path_of(name, value) for name, value in several.items()]
        request = request_of(given, paths, mixed)

        def link(name: str, value: str) -> str:
            return picture_url(options.base, service, taken[name]) if value[:5].lower() == "data:" else value

        # What is shown back has addresses in place of whole pictures: it is kept, listed and sent to webhooks.
        links: dict[str, Any] = {name: link(name, value) for name, value in sources.items() if name in shown}
        if shown.get("mix_images"):
            links["mix_images"] = [link(name, value) for name, value in several.items()]
        files = tuple(file.id for file in taken.values())
        submission = Submission(contract, request, {**shown, **links}, options, files, seconds, job)
        return await asyncio.to_thread(service.submit, submission)
    except Exception:
        await forget(service, taken.values())
        raise
