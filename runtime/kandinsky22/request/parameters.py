"""Every parameter of a request, declared once: its type, default, bounds, help, and flag on the command line.

The signatures of `Pipeline`, the command line, `show`, JSON and docs/parameters.md are derived from here. A new
parameter is one more entry of `Parameters`. Nothing here imports NumPy or Pillow.
"""

# The annotations are read when the program runs, so that they are not left as text (no `from __future__`): types that
# need NumPy stand in quotes.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from kandinsky22 import checks
from kandinsky22.request import kinds
from kandinsky22.request.kinds import Kind
from kandinsky22.request.presets import PRESETS

if TYPE_CHECKING:
    from kandinsky22.arrays import Array, Embeddings
    from kandinsky22.callbacks import Callback, OnBatch
    from kandinsky22.images.reading import Picture

OutputType = Literal["pil", "np", "latent"]

Part = Literal["input", "source", "run", "prior", "decoder", "output"]
"""What a parameter belongs to: a task's own input, other embeddings than a prompt's, the run as a whole, the prior, the
decoder, or what comes out."""


@dataclass(frozen=True)
class Parameter:
    """What is to be known of a parameter beside its type.

    `help` is one sentence or a few, for every reader; `more` is for those who write Python.

    `flag` is its name on the command line, None where it has none. `stored` is False for what is no data: callbacks.
    `hint` is the default in words, where the value does not say it. `beside` names the parameter without which this one
    means nothing: given alone, it is refused.
    """

    kind: Kind
    default: Any
    part: Part
    help: str
    flag: str | None = None
    stored: bool = True
    hint: str = ""
    beside: str = ""
    more: str = ""


class Parameters(TypedDict, total=False):
    """What a task may be asked for; which task takes what is in `TASKS`."""

    prompt: Annotated[
        "str | Sequence[str] | None",
        Parameter(
            kinds.texts(),
            None,
            "input",
            "What to paint: one prompt or several, each of which gives `num_images_per_prompt` pictures.",
            more="None where `image_embeds` is given.",
        ),
    ]
    negative_prompt: Annotated[
        "str | Sequence[str] | None",
        Parameter(
            kinds.texts(),
            None,
            "input",
            'What to lead away from. "" is not the same as none: any text, also the empty one, is run through the '
            "prior and leads both the prior and the decoder away.",
            "--negative-prompt",
            hint="nothing",
            more="One for all prompts, or a list of one a prompt.",
        ),
    ]
    images_and_prompts: Annotated[
        "Sequence[str | Picture]",
        Parameter(
            kinds.parts(),
            None,
            "input",
            "What is mixed: prompts, which go through the prior, and pictures, which go through CLIP's image encoder.",
            more="Strings are prompts; anything else is a picture, of which a path must be a `pathlib.Path`. "
            '{"text": …} and {"image": …} say it outright.',
        ),
    ]
    weights: Annotated[
        "Sequence[float] | None",
        Parameter(
            kinds.weights(),
            None,
            "input",
            "A number for each thing that is mixed, in their order; they need not sum to 1.",
            "--weights",
            hint="equal, with a sum of 1",
        ),
    ]
    negative_prior_prompt: Annotated[
        str | None,
        Parameter(
            kinds.text(),
            None,
            "input",
            "What the prior is led away from.",
            "--negative-prior-prompt",
            hint="nothing",
        ),
    ]
    image: Annotated[
        "Picture | Sequence[Picture] | None",
        Parameter(
            kinds.pictures(embeddings=True),
            None,
            "input",
            "A picture to begin from, to repaint in part, or to vary; it is resized to `height` x `width`.",
            "--image",
            more="One for all prompts, or a list of one a prompt; see `kandinsky22.images.reading` for what is read. "
            "In `img2img` and `controlnet` floats (n, C, h, w) are clean latents, in `emb2emb` (n, E) embeddings.",
        ),
    ]
    mask_image: Annotated[
        "Picture | Sequence[Picture] | None",
        Parameter(
            kinds.pictures(),
            None,
            "input",
            "A mask of the size of `image`, white where it is repainted and black where it is kept.",
            "--mask",
            more="One for all pictures, or a list. An array may have the size that is painted instead.",
        ),
    ]
    hint: Annotated[
        "Picture | Sequence[Picture] | None",
        Parameter(
            kinds.pictures(),
            None,
            "input",
            "A depth map to follow, near is bright.",
            "--hint",
            more="One for all prompts, or a list of one a prompt.",
        ),
    ]
    depth_model: Annotated[
        str | Path | None,
        Parameter(
            kinds.path(),
            None,
            "input",
            "An ONNX network of inverse depth (MiDaS, DPT, Depth Anything; input (1, 3, H, W) normalised as ImageNet) "
            "that makes the depth map: `hint` is then an ordinary picture.",
            "--depth-model",
            beside="hint",
        ),
    ]
    strength: Annotated[
        float,
        Parameter(
            kinds.share(),
            checks.STRENGTH,
            "input",
            "Share of `image` that is given up, 0 to 1: the last int(steps · strength) steps are run.",
            "--strength",
            beside="image",
        ),
    ]
    overlay: Annotated[
        bool,
        Parameter(
            kinds.switch(),
            False,
            "input",
            "Put the pixels of `image` back where `mask_image` is black. Without it they have been through MoVQ, and "
            "within some 16 pixels of the mask they are painted anew.",
            "--overlay",
            beside="mask_image",
        ),
    ]
    image_embeds: Annotated[
        "Embeddings | Array | None",
        Parameter(
            kinds.arrays(),
            None,
            "source",
            "Embeddings in place of prompts: from `embed`, `emb2emb` or `interpolate`, or floats (n, E). `seed` then "
            "begins at the decoder's noise.",
        ),
    ]
    negative_image_embeds: Annotated[
        "Array | None",
        Parameter(
            kinds.arrays(),
            None,
            "source",
            "Floats (n, E) beside an array `image_embeds`; None takes the all-zero image's.",
            beside="image_embeds",
        ),
    ]
    prior_image: Annotated[
        "Picture | Sequence[Picture] | None",
        Parameter(
            kinds.pictures(embeddings=True),
            None,
            "source",
            "A picture whose content, not its pixels, is changed towards the prompt: the prior begins with its "
            "embedding.",
            "--prior-image",
            more="One for all prompts, or a list of one a prompt; or embeddings (n, E).",
        ),
    ]
    prior_strength: Annotated[
        float,
        Parameter(
            kinds.share(),
            checks.STRENGTH,
            "source",
            "Share of `prior_image` that is given up, 0 to 1.",
            "--prior-strength",
            beside="prior_image",
        ),
    ]
    preset: Annotated[
        str | None,
        Parameter(
            kinds.choice_or_none(*PRESETS),
            None,
            "run",
            "Name of a setting of several parameters: same (as diffusers), fast, or fastest. What is given beside it "
            "wins.",
            "--preset",
            hint="none",
            more="The request has its values in its place.",
        ),
    ]
    num_images_per_prompt: Annotated[
        int,
        Parameter(kinds.whole(1, checks.MAX_PICTURES), 1, "run", "Pictures of each prompt.", "--num-images"),
    ]
    prior_num_inference_steps: Annotated[
        int,
        Parameter(kinds.whole(2, checks.MAX_STEPS), 25, "prior", "Denoising steps of the prior.", "--prior-steps"),
    ]
    prior_guidance_scale: Annotated[
        float,
        Parameter(
            kinds.scale(), 4.0, "prior", "Strength of the prior's guidance; none at 1 or below.", "--prior-guidance"
        ),
    ]
    prior_scheduler: Annotated[
        "str | Mapping[str, Any] | object | None",
        Parameter(
            kinds.scheduler(kinds.PRIOR_SCHEDULERS),
            None,
            "prior",
            "Scheduler of the prior: UnCLIP, or DDIM or DPM++ (DPM-Solver++ 2M), which draw no noise but the first and "
            "are for 5 to 10 steps.",
            "--prior-scheduler",
            hint="the checkpoint's own, UnCLIP",
            more="Also a diffusers config, or a diffusers scheduler.",
        ),
    ]
    prior_latents: Annotated[
        "Array | None",
        Parameter(
            kinds.arrays(),
            None,
            "prior",
            "Noise (n, E) that the prior begins with, a row a picture, in place of the seeds' own. Where there are "
            "negative prompts, (2n, E): theirs are the second half.",
        ),
    ]
    batch_size: Annotated[
        int | None,
        Parameter(
            kinds.count_or_all(),
            None,
            "run",
            "Pictures that are denoised at once; more take more memory.",
            "--batch-size",
            hint="all",
        ),
    ]
    seed: Annotated[
        "int | Sequence[int] | None",
        Parameter(
            kinds.seed(),
            None,
            "run",
            "Seed of the first picture; the next ones count on from it.",
            "--seed",
            hint="drawn at random",
            more="A list gives each picture its own.",
        ),
    ]
    height: Annotated[
        int | None,
        Parameter(
            kinds.side(),
            None,
            "decoder",
            "Pixels, rounded up to a multiple of the squared downscale (64), as in diffusers.",
            "--height",
            hint="the training size",
        ),
    ]
    width: Annotated[
        int | None,
        Parameter(
            kinds.side(),
            None,
            "decoder",
            "Pixels, rounded up to a multiple of the squared downscale (64), as in diffusers.",
            "--width",
            hint="the training size",
        ),
    ]
    num_inference_steps: Annotated[
        int,
        Parameter(kinds.whole(1, checks.MAX_STEPS), 50, "decoder", "Denoising steps of the decoder.", "--steps"),
    ]
    guidance_scale: Annotated[
        float,
        Parameter(
            kinds.scale(), 4.0, "decoder", "Strength of the decoder's guidance; none at 1 or below.", "--guidance"
        ),
    ]
    guidance_interval: Annotated[
        tuple[float, float],
        Parameter(
            kinds.interval(),
            (0.0, 1.0),
            "decoder",
            "Shares of the decoder's steps that guidance begins and ends at; a step without it takes half the time "
            "(arXiv:2404.07724).",
            "--guidance-interval",
            hint="all: 0 1",
        ),
    ]
    scheduler: Annotated[
        "str | Mapping[str, Any] | object | None",
        Parameter(
            kinds.scheduler(),
            None,
            "decoder",
            "Scheduler of the decoder: DDPM, DDIM, DPM++ (DPM-Solver++ 2M), or DPM++ Karras (with Karras' noise "
            "levels, for 15 to 20 steps).",
            "--scheduler",
            hint="the checkpoint's own",
            more="Also a diffusers config, or a diffusers scheduler.",
        ),
    ]
    eta: Annotated[
        float,
        Parameter(kinds.share(), 0.0, "decoder", "DDIM's share of fresh noise, 0 to 1 (arXiv:2010.02502).", "--eta"),
    ]
    skip: Annotated[
        str,
        Parameter(
            kinds.skip(),
            checks.NO_SKIP,
            "decoder",
            "Steps whose network is not computed as a whole. forecast:N (N is 2 where it is not given) computes the "
            "first 4 steps, then one in N, the last 2, and 2 where guidance begins or ends; in between, what the "
            "network would give is extrapolated from the last two that it gave (arXiv:2603.01623). shallow:N (3) "
            "computes the first step, then one in N, and one where guidance begins or ends; in between, the network's "
            "top level alone is run (arXiv:2312.00858), for which the bundle is exported with --shallow.",
            "--skip",
        ),
    ]
    latents: Annotated[
        "Array | None",
        Parameter(
            kinds.arrays(),
            None,
            "decoder",
            "Noise (n, C, h, w) that the decoder begins with, in place of the seeds' own.",
        ),
    ]
    output_type: Annotated[
        OutputType,
        Parameter(
            kinds.choice("pil", "np", "latent"),
            "pil",
            "output",
            "PIL pictures (pil), floats (n, H, W, 3) in 0 to 1 (np), or latents (n, C, h, w) (latent).",
        ),
    ]
    callback_on_step_end: Annotated[
        "Callback | None",
        Parameter(
            kinds.callback(),
            None,
            "output",
            "Called after each step of the decoder as `callback(pipeline, step, timestep, tensors)` with `latents` "
            "and the predicted clean `x0`; may return {'latents': …} to replace them. To stop, raise "
            "`kandinsky22.Cancelled` in it; with places, these pictures end and the others go on.",
            stored=False,
        ),
    ]
    callback_on_batch_end: Annotated[
        "OnBatch | None",
        Parameter(
            kinds.callback(),
            None,
            "output",
            "Called as `callback(first, images)` as soon as a batch of `batch_size` pictures is finished, with the "
            "place of its first in all, and in parts where pictures in between were cancelled. Each batch then has "
            "its own run of the prior.",
            stored=False,
        ),
    ]
    prior_callback_on_step_end: Annotated[
        "Callback | None",
        Parameter(
            kinds.callback(),
            None,
            "prior",
            "Called after each step of the prior, as `callback_on_step_end` is after the decoder's.",
            stored=False,
        ),
    ]


PARAMETERS: dict[str, Parameter] = {
    name: annotation.__metadata__[0] for name, annotation in Parameters.__annotations__.items()
}
"""Every parameter by its name, in the order of their declaration."""

TYPES: dict[str, Any] = {name: annotation.__origin__ for name, annotation in Parameters.__annotations__.items()}
"""The types of the parameters, for signatures."""


@dataclass(frozen=True)
class Task:
    """One task: its own `inputs` in the order of their positions, its `named` ones, and whatever its `parts` take.

    `required` inputs have no default. `defaults` are those that differ from the declaration's. `command` is the
    command that does it, "" where there is none. `painted` says that it gives pictures, not embeddings.
    """

    name: str
    inputs: tuple[str, ...]
    named: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ("source", "run", "prior", "decoder", "output")
    required: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

    @property
    def makes_pictures(self) -> bool:
        """Whether it gives pictures."""
        return "decoder" in self.parts

    def parameters(self) -> dict[str, Parameter]:
        """What it takes, by name: its inputs, then the rest in the order of declaration."""
        own = (*self.inputs, *self.named)
        return {name: PARAMETERS[name] for name in own} | {
            name: parameter for name, parameter in PARAMETERS.items() if parameter.part in self.parts
        }

    def default(self, name: str) -> Any:
        """The value of a parameter that is not given."""
        return self.defaults.get(name, PARAMETERS[name].default)


_MIXED: tuple[Part, ...] = ("run", "prior", "decoder", "output")
_EMBEDDED: tuple[Part, ...] = ("run", "prior")
_AWAY = {"negative_prompt": ""}

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("text2img", ("prompt", "negative_prompt"), command="generate"),
        Task("img2img", ("prompt", "image", "negative_prompt"), ("strength",), command="generate"),
        Task("inpaint", ("prompt", "image", "mask_image", "negative_prompt"), ("overlay",), command="generate"),
        Task("controlnet", ("prompt", "hint", "image", "negative_prompt"), ("depth_model", "strength"),
             command="generate"),
        Task("mix", ("images_and_prompts", "weights", "negative_prompt"), ("negative_prior_prompt",), _MIXED,
             ("images_and_prompts",), _AWAY, "mix"),
        Task("variations", ("image",), ("negative_prompt",), _MIXED, ("image",), _AWAY, "variations"),
        Task("embed", ("prompt", "negative_prompt"), (), _EMBEDDED, ("prompt",)),
        Task("emb2emb", ("prompt", "image", "negative_prompt"), ("strength",), _EMBEDDED, ("prompt", "image")),
        Task("interpolate", ("images_and_prompts", "weights", "negative_prompt"), ("negative_prior_prompt",),
             _EMBEDDED, ("images_and_prompts",), _AWAY),
    )
}  # fmt: skip
"""The tasks by their names: `text2img` is `Pipeline.__call__`, the others are its methods."""


def task_of(name: object) -> Task:
    """The task `name`. Raises InputError where there is none."""
    return TASKS[checks.choice("task", name, tuple(TASKS))]
