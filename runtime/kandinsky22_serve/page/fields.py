"""The form of the page: Gradio's components for its fields, with the bounds, defaults and help of the API's inputs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from kandinsky22.bundle.manifest import Manifest, Role
from kandinsky22.request.kinds import PRIOR_SCHEDULERS, SCHEDULERS
from kandinsky22.request.presets import PRESETS
from kandinsky22_serve.inputs import MOST_PROMPT, input_model
from kandinsky22_serve.page.form import FIELDS, LABELS, PARTS, USES, filled_by, skips_of

_SOURCES: Any = ["upload", "clipboard"]
_FIRST = "a red circle and a blue square"
_DECIDED = tuple(filled_by(next(iter(PRESETS))))
"""The fields that presets decide: each decides the same."""


class Form:
    """The fields by name, and the groups of them that some tasks alone show."""

    def __init__(self, manifest: Manifest, tasks: Sequence[str]) -> None:
        self._manifest, self._schema = manifest, input_model(manifest).model_json_schema()["properties"]
        self.by_name: dict[str, Component] = {}
        self.groups: dict[str, gr.Column] = {}
        self._tasks = tasks
        self._draw()

    @property
    def fields(self) -> list[Component]:
        """The fields in the order of FIELDS."""
        return [self.by_name[name] for name in FIELDS]

    def _add(self, name: str, field: Component) -> None:
        # Gradio fetches a picture whose path is a URL, and, mounted, copies any file of the machine that is named.
        setattr(field, "async_move_resource_to_block_cache", _uploads_only(field))  # noqa: B010 - a method
        self.by_name[name] = field

    def _group(self, name: str) -> gr.Column:
        self.groups[name] = gr.Column(visible=name in USES[self._tasks[0]])
        return self.groups[name]

    def _draw(self) -> None:
        choices = [(LABELS[task], task) for task in self._tasks]
        self.task = gr.Radio(choices, value=self._tasks[0], label="What to do", elem_id="task")
        self._add("task", self.task)
        with self._group("image"):
            self._add("image", _picture("Picture", "image"))
        with self._group("canvas"):
            gr.Markdown("Choose a picture, then paint over the part that is to be painted anew.")
            self._add("canvas", _editor())
        with self._group("hint"):
            self._add("hint", _picture("Depth map: near is bright", "hint"))
        with self._group("mix"):
            self._draw_mix()
        with self._group("prompt"):
            label = "Prompt: what to paint"
            prompt = gr.Textbox(_FIRST, label=label, lines=2, max_length=MOST_PROMPT, elem_id="prompt")
            self._add("prompt", prompt)
        label, hint = "Negative prompt: what to lead away from", "nothing"
        self._add("negative_prompt", gr.Textbox("", label=label, placeholder=hint, max_length=MOST_PROMPT))
        with self._group("strength"):
            self._add("strength", self._slider("strength", "Strength: how much of the picture is given up", 0.05, 0.3))
        with self._group("overlay"):
            label, hint = "Keep the other pixels exactly as they were", "Otherwise all of the picture changes a little."
            self._add("overlay", gr.Checkbox(False, label=label, info=hint))
        self._draw_size()
        self._draw_preset()
        with gr.Accordion("More settings", open=False, elem_id="more"):
            self._draw_more()

    def _draw_mix(self) -> None:
        gr.Markdown("Prompts and pictures with their weights; what is empty is left out.")
        has_encoder = Role.IMAGE_ENCODER in self._manifest.roles()
        for place in range(PARTS):
            with gr.Row(elem_classes="k-part"):
                label = f"Prompt {place + 1}"
                prompt = gr.Textbox(label=label, max_length=MOST_PROMPT, scale=3, min_width=180)
                self._add(f"mix_prompt_{place}", prompt)
                self._add(f"mix_prompt_weight_{place}", gr.Number(1.0, label="Weight", scale=1, min_width=80))
        with gr.Row(visible=has_encoder):
            for place in range(PARTS):
                with gr.Column(min_width=90):
                    picture = _picture(f"Picture {place + 1}", f"mix_image_{place}", 150)
                    self._add(f"mix_image_{place}", picture)
                    self._add(f"mix_image_weight_{place}", gr.Number(1.0, label="Weight", min_width=80))

    def _draw_size(self) -> None:
        side = self._manifest.default_size
        with gr.Row(elem_classes="k-row"):
            self._add("width", self._slider("width", "Width, pixels", 64, side))
            self._add("height", self._slider("height", "Height, pixels", 64, side))
        self._add("num_outputs", self._slider("num_outputs", "Pictures", 1))

    def _draw_preset(self) -> None:
        steps = {name: filled_by(name)["num_inference_steps"] for name in PRESETS}
        choices = [("none", ""), *((f"{name}: {steps[name]} steps", name) for name in PRESETS)]
        hint = "Fills in steps, schedulers and guidance below; what you change then wins."
        self.preset = gr.Radio(choices, value="", label="Preset", info=hint, elem_id="preset")
        self._add("preset", self.preset)

    @property
    def decided(self) -> list[Component]:
        """The fields that presets decide, in the order of what `fill` gives."""
        return [self.by_name[name] for name in _DECIDED]

    @property
    def fill(self) -> str:
        """JavaScript from a preset to the values of `decided`: no click on Paint comes before them."""
        values = {name: list(filled_by(name).values()) for name in PRESETS}
        values[""] = [getattr(field, "value", None) for field in self.decided]
        return f"preset => ({json.dumps(values)})[preset]"

    def _draw_more(self) -> None:
        for name, label, step in (
            ("num_inference_steps", "Steps: more take longer and are finer", 1),
            ("num_inference_steps_prior", "Steps of the prior, which reads the prompt", 1),
            ("guidance_scale", "Guidance: how closely the embedding is followed", 0.5),
            ("guidance_scale_prior", "Guidance of the prior: how closely the prompt is followed", 0.5),
        ):
            self._add(name, self._slider(name, label, step, most=20 if step == 0.5 else None))
        with gr.Row(elem_classes="k-row"):
            for name, label, share in (("begins", "Guidance begins", 0.0), ("ends", "Guidance ends", 1.0)):
                slider = gr.Slider(0, 1, share, step=0.05, label=f"{label}: share of the steps", elem_id=f"k-{name}")
                self._add(f"guidance_{name}", slider)
        self._draw_schedulers()
        self._draw_skip()
        label = "Seed: the same seed paints the same picture"
        self._add("seed", gr.Textbox("", label=label, placeholder="drawn at random", max_length=20, elem_id="seed"))
        formats = self._schema["output_format"]
        self._add("output_format", gr.Radio(formats["enum"], value=formats["default"], label="File format"))
        self._add("output_quality", self._slider("output_quality", "Quality of webp and jpeg", 1))

    def _draw_schedulers(self) -> None:
        for name, label, names in (
            ("scheduler", "Scheduler", SCHEDULERS),
            ("scheduler_prior", "Scheduler of the prior", PRIOR_SCHEDULERS),
        ):
            choices = [("the checkpoint's own", ""), *((each, each) for each in names)]
            field = gr.Dropdown(choices, value="", label=label, info=self._help(name), elem_id=f"k-{name}")
            self._add(name, field)

    def _draw_skip(self) -> None:
        skips = skips_of(self._manifest)
        label = "Skip: steps that are not computed as a whole, which is faster"
        hint = (
            "forecast:N computes one step in N and extrapolates the others; shallow:N runs the network's top level "
            "alone in the others. Another N can be typed."
        )
        field = gr.Dropdown(
            skips,
            value=skips[0],
            label=label,
            info=hint,
            allow_custom_value=True,
            visible=len(skips) > 1,
            elem_id="k-skip",
        )
        self._add("skip", field)

    def _help(self, name: str) -> str:
        return str(self._schema[name].get("description", ""))

    def _slider(
        self, name: str, label: str, step: float, value: float | None = None, most: float | None = None
    ) -> gr.Slider:
        schema = self._schema[name]
        bounds = next((each for each in schema.get("anyOf", [schema]) if "maximum" in each), schema)
        least, most = max(bounds.get("minimum", 0), step if step < 1 else 0), most or bounds["maximum"]
        value = schema["default"] if value is None else value
        return gr.Slider(least, most, value, step=step, label=label, elem_id=f"k-{name}")


def _picture(label: str, name: str, height: int = 220) -> gr.Image:
    """A field for a picture, kept as the file that it came as."""
    return gr.Image(
        label=label, type="filepath", image_mode=None, format="png", sources=_SOURCES, height=height, elem_id=name
    )


def _editor() -> gr.ImageEditor:
    """A field for a picture and, painted over it, what is to be painted anew."""
    return gr.ImageEditor(
        label="Picture",
        type="pil",
        format="png",
        sources=_SOURCES,
        transforms=(),
        layers=False,
        canvas_size=(512, 512),
        brush=gr.Brush(default_size=32, colors=["#ff5a28"], color_mode="fixed"),
        height=420,
        elem_id="canvas",
    )


def _uploads_only(field: Component) -> Any:
    """Gradio's way of taking a file, for those alone that are in its folder: uploads, and what the page made."""
    move, folder = field.async_move_resource_to_block_cache, Path(field.GRADIO_CACHE).resolve()

    async def uploads_only(path: Any) -> str | None:
        if path is not None and not Path(path).resolve().is_relative_to(folder):
            raise gr.Error("This is no uploaded picture; choose a file.", print_exception=False)
        return await move(path)

    return uploads_only
