"""The page: its parts, and what they do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
from PIL import Image

from kandinsky22.errors import InputError
from kandinsky22_serve import problems
from kandinsky22_serve.contracts.base import base_of
from kandinsky22_serve.page import form, jobs, shown, snippets
from kandinsky22_serve.page.fields import Form
from kandinsky22_serve.page.form import FIELDS, USES
from kandinsky22_serve.service import UPLOAD_SECONDS, Service
from kandinsky22_serve.store.records import Job

log = logging.getLogger(__name__)

CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; overflow-x: clip; }
.k-pictures { display: flex; flex-wrap: wrap; gap: 8px; }
.k-pictures figure { margin: 0; max-width: 100%; }
.k-pictures img { max-width: 100%; height: auto; border-radius: 6px; display: block; }
.k-pictures img.k-preview { width: min(100%, 384px); }
.k-pictures figcaption { font-size: 0.85em; padding: 4px 0; }
.k-recent { display: grid; grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); gap: 8px; }
.k-recent button { padding: 0; border: 0; background: none; cursor: pointer; border-radius: 6px; overflow: hidden; }
.k-recent img { width: 100%; aspect-ratio: 1; object-fit: cover; display: block; }
.k-made dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 12px; margin: 8px 0; }
.k-made dt { opacity: 0.7; }
.k-made dd { margin: 0; overflow-wrap: anywhere; }
.k-error { color: #b42318; }
.dark .k-error { color: #ff8a7a; }
.k-part { flex-wrap: nowrap; }
.k-part > * { min-width: 0 !important; }
progress { width: 100%; margin: 6px 0; accent-color: #f97316; }
"""
_CHOOSE = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-file]');
  if (button) trigger('click', {file: button.dataset.file});
});
"""
_TO_FORM = "() => { document.getElementById('task').scrollIntoView({behavior: 'smooth'}); }"
_QUIET: Any = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": 64}
"""Of every event: no overlay of Gradio's, no name in its API, and not one after the other."""


def theme() -> gr.themes.Base:
    """Gradio's own look, with the fonts that the reader's machine has: nothing is fetched from elsewhere."""
    return gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])


def build(service: Service) -> gr.Blocks:
    """The page over a service."""
    # Gradio's copies of what is put into the form go when our own would; those of killed servers go at the next start.
    age = int(max(60.0, min(service.settings.keep, UPLOAD_SECONDS)))
    blocks = gr.Blocks(title="kandinsky22", analytics_enabled=False, delete_cache=(60, age))
    with blocks:
        tasks = form.tasks_of(service.manifest)
        if tasks:
            _Page(service, tasks).draw(blocks)
        else:
            gr.Markdown("This bundle has not the components of any task; export a whole checkpoint.")
    blocks.queue(max_size=256)
    return blocks


class _Page:
    def __init__(self, service: Service, tasks: list[str]) -> None:
        self._service, self._tasks = service, tasks

    def draw(self, blocks: gr.Blocks) -> None:
        gr.Markdown(f"# kandinsky22\n{self._service.manifest.name}")
        self._job = gr.State("")
        with gr.Row():
            with gr.Column(min_width=300):
                self._form = Form(self._service.manifest, self._tasks)
                with gr.Row():
                    self._paint = gr.Button("Paint", variant="primary", elem_id="paint", min_width=120)
                    self._cancel = gr.Button("Cancel", interactive=False, elem_id="cancel", min_width=120)
            with gr.Column(min_width=300):
                self._result = gr.HTML(shown.NOTHING, elem_id="result", js_on_load=None)
                self._draw_snippets()
        gr.Markdown("## Recent pictures")
        self._recent = gr.HTML(shown.NONE_YET, elem_id="recent", js_on_load=_CHOOSE)
        self._chosen = gr.State("")
        self._made = gr.HTML("", elem_id="made", js_on_load=None)
        self._again = gr.Button("Use again", visible=False, elem_id="again")
        self._connect(blocks)

    def _draw_snippets(self) -> None:
        with gr.Accordion("As API call", open=False, elem_id="api"):
            self._show_call = gr.Button("Show the call of these inputs", elem_id="show-call", size="sm")
            self._calls = []
            with gr.Tabs():
                languages: Any = {"Python": "python", "Node": "javascript", "cURL": "shell"}
                for name, language in languages.items():
                    with gr.Tab(name):
                        code = gr.Code(
                            language=language, interactive=False, wrap_lines=True, elem_id=f"call-{name.lower()}"
                        )
                        self._calls.append(code)
            gr.Markdown(self._call_note())

    def _call_note(self) -> str:
        hours = f"Pictures of the form are uploaded for it, and stay for {UPLOAD_SECONDS / 3600:.0f} hours."
        if self._service.settings.token_file is None:
            return hours
        return f"The token is read from the variable `{snippets.TOKEN}`. {hours}"

    def _connect(self, blocks: gr.Blocks) -> None:
        fields, following = self._form.fields, [self._result, self._job, self._paint, self._cancel, self._recent]
        groups = list(self._form.groups.values())
        blocks.load(self._resume, None, following, **_QUIET)
        self._form.task.change(self._choose_task, self._form.task, groups, **_QUIET)
        self._form.preset.input(
            None, self._form.preset, self._form.decided, js=self._form.fill, api_visibility="private"
        )
        self._paint.click(self._do_paint, fields, following, **_QUIET)
        self._cancel.click(self._do_cancel, self._job, None, **_QUIET)
        self._show_call.click(self._show_calls, fields, self._calls, **_QUIET)
        self._recent.click(self._choose, None, [self._chosen, self._made, self._again], **_QUIET)
        filled = self._again.click(self._use_again, self._chosen, fields, **_QUIET)
        filled.success(None, js=_TO_FORM, api_visibility="private")

    # What the parts do.

    def _choose_task(self, task: str) -> list[Any]:
        return [gr.update(visible=name in USES[task]) for name in self._form.groups]

    async def _do_paint(self, request: gr.Request, *values: Any) -> AsyncIterator[list[Any]]:
        try:
            job = await jobs.paint(self._service, dict(zip(FIELDS, values, strict=True)), _base(self._service, request))
        except Exception as error:  # whatever it is, the reader is told in a sentence
            raise _told(error) from None
        async for shown_now in self._follow(job):
            yield shown_now

    async def _resume(self) -> AsyncIterator[list[Any]]:
        """When the page is opened: recent pictures, and the job that was begun before, if it goes on."""
        yield [gr.skip(), gr.skip(), gr.skip(), gr.skip(), await self._recent_now()]
        job = await asyncio.to_thread(jobs.unfinished, self._service)
        if job is not None:
            async for shown_now in self._follow(job):
                yield shown_now

    async def _follow(self, job: Job) -> AsyncIterator[list[Any]]:
        async for now in jobs.follow(self._service, job.id):
            html = shown.state(self._service, now)
            if now.job.status.is_terminal:
                ended = [html, "", gr.update(interactive=True), gr.update(interactive=False)]
                yield [*ended, await self._recent_now()]
            else:
                yield [html, job.id, gr.update(interactive=False), gr.update(interactive=True), gr.skip()]

    async def _recent_now(self) -> str:
        return shown.recent(self._service, await asyncio.to_thread(jobs.recent, self._service))

    async def _do_cancel(self, job: str) -> None:
        if job:
            await asyncio.to_thread(self._service.cancel, job)

    async def _show_calls(self, request: gr.Request, *values: Any) -> list[str]:
        base = _base(self._service, request)
        try:
            inputs = await jobs.call_of(self._service, dict(zip(FIELDS, values, strict=True)), base)
        except Exception as error:  # as above
            raise _told(error) from None
        settings = self._service.settings
        call = snippets.snippets(inputs, base, settings.model, has_token=settings.token_file is not None)
        return [call.python, call.node, call.curl]

    async def _choose(self, event: gr.EventData) -> list[Any]:
        file = str(event.file)
        picture = await asyncio.to_thread(jobs.picture, self._service, file)
        if picture is None:
            raise gr.Error("This picture has expired.", print_exception=False)
        can_repeat = picture.job.request["task"] in self._tasks
        return [file, shown.parameters(self._service, picture), gr.update(visible=can_repeat)]

    async def _use_again(self, file: str) -> list[Any]:
        picture = await asyncio.to_thread(jobs.picture, self._service, file)
        if picture is None:
            raise gr.Error("This picture has expired.", print_exception=False)
        fields = await asyncio.to_thread(_opened, jobs.fields_again(picture))
        for sentence in form.lost_of(picture.job.request):
            gr.Warning(sentence)
        return [fields.get(name, gr.skip()) for name in FIELDS]


def _opened(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with pictures in place of the paths of the store's files, which are not Gradio's to show."""
    for name, value in fields.items():
        if value is None:
            continue
        if name == "canvas":
            picture, mask = (Image.open(path) for path in value)
            fields[name] = {"background": picture.convert("RGB"), "layers": [form.layer_of(mask)], "composite": None}
        elif name in ("image", "hint") or (name.startswith("mix_image_") and "weight" not in name):
            fields[name] = Image.open(value)
    if fields.get("seed") is not None:
        fields["seed"] = str(fields["seed"])
    return fields


def _base(service: Service, request: gr.Request) -> str:
    if request.request is None:
        raise InputError("The page's address is not known.")
    return base_of(service, request.request)


def _told(error: Exception) -> gr.Error:
    """What the reader is told of an error."""
    status, sentence, _ = problems.told(error)
    if status >= 500:
        log.error("the page's job was not accepted", exc_info=error)
    return gr.Error(sentence, title="This cannot be done", print_exception=False, duration=12)
