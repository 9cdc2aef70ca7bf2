"""What the page shows, as HTML: how a job goes, its pictures, recent pictures, and what one was made with."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from kandinsky22_serve.page import jobs
from kandinsky22_serve.page.form import LABELS
from kandinsky22_serve.page.jobs import Recent, State
from kandinsky22_serve.service import Service
from kandinsky22_serve.store.records import File, Job, Status

NOTHING = '<p class="k-hint">Your picture appears here.</p>'
NONE_YET = '<p class="k-hint">There are no pictures yet.</p>'
_STAGES = {"prior": "Reading the prompt", "decoder": "Painting"}
_PARAMETERS = {
    "prompt": "Prompt", "negative_prompt": "Not in it", "width": "Width", "height": "Height",
    "preset": "Preset", "num_inference_steps": "Steps", "prior_num_inference_steps": "Steps of the prior",
    "guidance_scale": "Guidance", "prior_guidance_scale": "Guidance of the prior",
    "guidance_interval": "Guided steps", "scheduler": "Scheduler", "prior_scheduler": "Scheduler of the prior",
    "skip": "Skipped steps", "strength": "Strength", "overlay": "Kept exactly", "weights": "Weights",
}  # fmt: skip


def link(service: Service, file: File) -> str:
    """Where a picture is on this server."""
    return f"/files/{file.id}{service.store.files.suffix(file.media_type)}"


def state(service: Service, now: State) -> str:
    """How a job goes, or its pictures."""
    if now.job.status is Status.SUCCEEDED:
        return _pictures(service, now.job, now.files)
    if now.job.status is Status.CANCELED:
        return _said("Canceled.")
    if now.job.status is Status.FAILED:
        return _said(f"It failed: {escape(now.job.error or 'the log has more')}", "k-error")
    if now.job.status is Status.STARTING or now.progress is None:
        return _said(_waiting(now))
    return _running(now)


def _said(text: str, kind: str = "k-hint") -> str:
    return f'<p class="{kind}" role="status">{text}</p>'


def _waiting(now: State) -> str:
    if now.place:
        return f"Waiting: {now.place} {'job is' if now.place == 1 else 'jobs are'} before this one."
    return "The model is being loaded." if now.engine == "starting" else "It is next."


def _running(now: State) -> str:
    progress = now.progress
    if progress is None or not progress.steps:
        return _said("Starting.")
    stage = _STAGES.get(progress.stage, "Painting")
    preview = ""
    if progress.preview is not None:
        data = base64.b64encode(progress.preview).decode()
        preview = f'<img class="k-preview" alt="The unfinished picture" src="data:image/png;base64,{data}">'
    bar = f'<progress max="{progress.steps}" value="{progress.step}"></progress>'
    return f'{_said(f"{stage}: step {progress.step} of {progress.steps}")}{bar}<div class="k-pictures">{preview}</div>'


def _pictures(service: Service, job: Job, files: Sequence[File]) -> str:
    if not files:
        return _said("Its pictures have expired.")
    shown = "".join(
        f'<figure><a href="{link(service, file)}" target="_blank"><img alt="{_title(job)}" '
        f'src="{link(service, file)}"></a><figcaption>seed {_seed(job, file)} · '
        f'<a href="{link(service, file)}" download="{file.name}">save</a></figcaption></figure>'
        for file in files
    )
    seconds = "" if job.predict_seconds is None else _said(f"Done in {job.predict_seconds:.1f} seconds.")
    return f'{seconds}<div class="k-pictures">{shown}</div>'


def recent(service: Service, pictures: Sequence[Recent]) -> str:
    """The newest pictures as buttons, each with the id of its file."""
    if not pictures:
        return NONE_YET
    buttons = "".join(
        f'<button type="button" data-file="{each.file.id}" title="{_title(each.job)}">'
        f'<img loading="lazy" alt="{_title(each.job)}" src="{link(service, each.file)}"></button>'
        for each in pictures
    )
    return f'<div class="k-recent">{buttons}</div>'


def parameters(service: Service, picture: Recent) -> str:
    """One picture with what it was made with."""
    job, request = picture.job, picture.job.request
    rows = [("Task", LABELS.get(request["task"], request["task"]))]
    values = {**request, "preset": jobs.preset_of(job)}
    for name, label in _PARAMETERS.items():
        value = values.get(name)
        if value not in (None, "", False):
            rows.append((label, _in_words(name, value)))
    texts = [part["text"] for part in request.get("images_and_prompts") or () if "text" in part]
    rows += [("Prompts", "; ".join(texts))] if texts else []
    rows.append(("Seed", _seed(job, picture.file)))
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    address = link(service, picture.file)
    image = f'<a href="{address}" target="_blank"><img alt="{_title(job)}" src="{address}"></a>'
    return f'<div class="k-made"><div class="k-pictures">{image}</div><dl>{cells}</dl></div>'


def _in_words(name: str, value: Any) -> str:
    if name == "guidance_interval":
        return "from {:g} to {:g} of all".format(*value)
    return "yes" if value is True else str(value)


def _seed(job: Job, file: File) -> str:
    seed = jobs.seed_of(Recent(job, file))
    return "unknown" if seed is None else str(seed)


def _title(job: Job) -> str:
    prompt = job.request.get("prompt")
    title = prompt if isinstance(prompt, str) and prompt else LABELS.get(job.request["task"], "A picture")
    return escape(title[:200], quote=True)
