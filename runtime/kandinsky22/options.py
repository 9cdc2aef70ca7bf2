"""The arguments that every task of `Pipeline` takes, with their defaults; the words are diffusers'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from kandinsky22.arrays import Array, Floats

if TYPE_CHECKING:
    import PIL.Image

    from kandinsky22.arrays import Embeddings
    from kandinsky22.images.reading import Picture
    from kandinsky22.pipeline import Pipeline

OutputType = Literal["pil", "np", "latent"]
Callback = Callable[["Pipeline", int, int, dict[str, Array]], "Mapping[str, Array] | None"]
"""`callback(pipeline, step, timestep, {"latents": …, "x0": …})`, as in diffusers; see `Options`."""
OnBatch = Callable[[int, "list[PIL.Image.Image] | Floats"], object]
"""`callback(first, images)`; see `Options`."""


class PriorOptions(TypedDict, total=False):
    """What steers the prior, and the seeds.

    num_images_per_prompt: 1.
    prior_num_inference_steps: 25: denoising steps of the prior.
    prior_guidance_scale: 4.0: strength of guidance; none at 1 or below.
    prior_latents: noise (n, E) that the prior begins with, one row a picture, in place of the seeds' own. Where there
        are negative prompts, (2n, E): theirs are the second half.
    batch_size: pictures that are denoised at once; None: all.
    seed: picture i depends on seed + i alone; a list gives each picture its own; None draws one at random.
    prior_callback_on_step_end: called after each step of the prior, see `Options`.
    """

    num_images_per_prompt: int
    prior_num_inference_steps: int
    prior_guidance_scale: float
    prior_latents: Array | None
    batch_size: int | None
    seed: int | Sequence[int] | None
    prior_callback_on_step_end: Callback | None


class Options(PriorOptions, total=False):
    """What steers the prior, the decoder, and what comes out.

    height, width: pixels; each rounds up to a multiple of the squared downscale (64), as in diffusers. None takes the
        size that the checkpoint was trained at (512 for the published one).
    num_inference_steps: 50: denoising steps of the decoder.
    guidance_scale: 4.0: strength of guidance; none at 1 or below.
    guidance_interval: (0.0, 1.0): share of the decoder's steps that are guided, from and to, 0..1; a step without
        guidance takes half the time (arXiv:2404.07724).
    scheduler: of the decoder: None for the checkpoint's own, "DDPM", "DDIM", "DPM++" (DPM-Solver++ 2M), "DPM++ Karras"
        (with Karras' noise levels, for 15 to 20 steps), or a diffusers config.
    eta: 0.0: DDIM's share of fresh noise, 0..1 (arXiv:2010.02502).
    image_embeds: precomputed embeddings, from `embed`, `emb2emb`, `interpolate`, or (n, E); `seed` then begins at the
        decoder's noise.
    negative_image_embeds: (n, E) beside an array `image_embeds`; None takes the all-zero image's.
    prior_image: a picture, or one a prompt, whose content and not its pixels is changed towards the prompt: the prior
        begins with its embedding, as `Pipeline.emb2emb` does. Also embeddings (n, E).
    prior_strength: 0..1: how much of `prior_image` is given up; None is 0.3.
    latents: noise (n, C, h, w) that the decoder begins with, in place of the seeds' own.
    output_type: "pil", "np" or "latent", see `Output`.
    callback_on_batch_end: called as `callback(first, images)` as soon as a batch of `batch_size` pictures is finished:
        the place of its first in all, and what `Output.images` will have of it. Each batch then has its own run of the
        prior; None runs the prior for all first, and decodes all at the end.
    callback_on_step_end, prior_callback_on_step_end: called after each step as `callback(pipeline, step, timestep,
        tensors)` with `latents` and the predicted clean `x0`; may return `{"latents": …}` to replace them. To stop,
        raise `kandinsky22.Cancelled` in it: the exception reaches the caller.
    """

    height: int | None
    width: int | None
    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float]
    scheduler: str | Mapping[str, Any] | None
    eta: float
    image_embeds: Embeddings | Array | None
    negative_image_embeds: Array | None
    prior_image: Picture | Sequence[Picture] | None
    prior_strength: float | None
    latents: Array | None
    output_type: OutputType
    callback_on_batch_end: OnBatch | None
    callback_on_step_end: Callback | None


DEFAULTS: Options = {
    "num_images_per_prompt": 1,
    "prior_num_inference_steps": 25,
    "prior_guidance_scale": 4.0,
    "prior_latents": None,
    "seed": None,
    "prior_callback_on_step_end": None,
    "height": None,
    "width": None,
    "num_inference_steps": 50,
    "guidance_scale": 4.0,
    "guidance_interval": (0.0, 1.0),
    "scheduler": None,
    "eta": 0.0,
    "image_embeds": None,
    "negative_image_embeds": None,
    "prior_image": None,
    "prior_strength": None,
    "latents": None,
    "output_type": "pil",
    "batch_size": None,
    "callback_on_batch_end": None,
    "callback_on_step_end": None,
}


def completed(options: Options | PriorOptions, kind: type[Any] = Options) -> Options:
    """`options` with defaults where nothing was given. Raises TypeError, as Python does, on words `kind` lacks."""
    known = kind.__annotations__
    unknown = options.keys() - known.keys()
    if unknown:
        raise TypeError(f"There is no argument {min(unknown)!r}; expected some of {', '.join(known)}.")
    return {**DEFAULTS, **options}
