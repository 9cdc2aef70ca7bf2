"""Text to image embeddings: CLIP's text encoder, then the diffusion prior (unCLIP, arXiv:2204.06125)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kandinsky22.arrays import Array, Embeddings, Floats
from kandinsky22.backends import OnStep
from kandinsky22.batching import parts
from kandinsky22.bundle.manifest import Role
from kandinsky22.components import Run, finite
from kandinsky22.conditioning.tokenizer import Tokenizer
from kandinsky22.noise import Generator
from kandinsky22.sampling.guidance import guidance_weights
from kandinsky22.schedulers.schedule import Schedule

if TYPE_CHECKING:
    from kandinsky22.request.job import PriorRun


def encode_text(
    run: Run, tokenizer: Tokenizer, texts: Sequence[str], at_once: int | None = None
) -> dict[str, dict[str, Array]]:
    """Encode each distinct text once, `at_once` of them in one run (None: all).

    Returns by text what the prior is conditioned on: `text_embeds` (E,), `text_hidden` (T, H) and `text_mask` (T,).
    """
    different = list(dict.fromkeys(texts))
    ids, mask = tokenizer(different)
    name = run.bundle.manifest.name_of(Role.TEXT_ENCODER)
    with run.use(name) as text_encoder:
        results = [text_encoder.run({"input_ids": ids[part]}) for part in parts(len(ids), at_once)]
    outputs: dict[str, Array] = {
        output: finite(name, np.concatenate([each[output] for each in results])) for output in results[0]
    }
    outputs["text_mask"] = mask
    return {text: {output: rows[i] for output, rows in outputs.items()} for i, text in enumerate(different)}


def embed(
    run: Run,
    tokenizer: Tokenizer,
    asked: PriorRun,
    of: slice,
    generators: Sequence[Generator],
    *,
    at_once: int | None = None,
    begin: Floats | None = None,
    on_step: OnStep | None = None,
) -> Embeddings:
    """The image embeddings of some of the pictures of a run of the prior, as KandinskyV22PriorPipeline computes them.

    With negative prompts the batch is doubled: the second half are the embeddings of the negative prompts themselves,
    and both halves are guided away from the negative prompt. Without them, the negative embedding is that of the
    all-zero image, a constant of the checkpoint, and guidance leads away from the empty prompt.

    Args:
        run: The call's use of the components.
        tokenizer: Of the bundle.
        asked: The run of the prior, for all pictures of the job.
        of: Which of the pictures.
        generators: One for each picture of the job; picture i draws its noise from `generators[i]` alone.
        at_once: Pictures that are denoised in one run; None: all.
        begin: Embeddings (n, E) of all pictures that are mixed with the first noise, as in
            KandinskyV22PriorEmb2EmbPipeline; None: the run begins with noise.
        on_step: Called after each step.
    """
    guided = asked.guidance_scale > 1
    prompts, negatives = asked.prompts[of], None if asked.negatives is None else asked.negatives[of]
    away = negatives if negatives is not None else ("",) * len(prompts)
    texts = encode_text(run, tokenizer, [*prompts, *(away if guided else negatives or ())], at_once)
    embeds = []
    name = run.bundle.manifest.name_of(Role.PRIOR)
    with run.use(name) as prior_step:
        for part in parts(len(prompts), at_once):
            rows = [*prompts[part], *(negatives[part] if negatives is not None else ())]
            copies = len(rows) // len(prompts[part])
            branches = [[*away[part]] * copies, rows] if guided else [rows]
            place = slice((of.start or 0) + part.start, (of.start or 0) + part.start + len(prompts[part]))
            noise = _noise(generators[place], copies, run.bundle.manifest.geometry.embedding_dim)
            latents = _first_latents(asked, place, copies, noise, begin)
            nothing = np.zeros_like(latents)
            state = prior_step.loop(
                {"latents": latents, "x0_before": nothing},
                asked.schedule.per_step(functools.partial(next, noise), nothing),
                {
                    **_stacked(texts, branches),
                    "guidance": guidance_weights(asked.guidance_scale),
                    "thresholding": asked.schedule.thresholding.array,
                },
                on_step,
            )
            embeds.append(np.stack(np.split(finite(name, state["latents"]), copies)))
    constants = run.bundle.constants()
    results: Floats = np.concatenate(embeds, axis=1) * constants["clip_std"] + constants["clip_mean"]
    if negatives is None:
        return Embeddings(results[0], np.repeat(constants["zero_image_embeds"], len(prompts), axis=0))
    return Embeddings(results[0], results[1])


def _first_latents(asked: PriorRun, place: slice, copies: int, drawn: Iterator[Floats], begin: Floats | None) -> Floats:
    """First latents (copies · pictures, E) of the pictures in the slice `place`."""
    noise = next(drawn) if asked.noise is None else np.concatenate(asked.noise[:, place])
    if begin is None:
        return noise
    signal, rest = asked.schedule.scales[0]
    latents: Floats = signal * np.concatenate([begin[place]] * copies) + rest * noise
    return latents


def _noise(generators: Sequence[Generator], copies: int, width: int) -> Iterator[Floats]:
    """Noise (copies · pictures, E) without end. A picture's copies are one draw, as in a call for it alone."""
    while True:
        yield np.concatenate(list(np.stack([each.randn((copies, width)) for each in generators], axis=1)))


def _stacked(texts: Mapping[str, Mapping[str, Array]], branches: Sequence[Sequence[str]]) -> dict[str, Array]:
    """What `prior_step` is conditioned on by the texts of its branches (G, B)."""
    return {
        name: np.stack([np.stack([texts[text][name] for text in branch]) for branch in branches])
        for name in ("text_embeds", "text_hidden", "text_mask")
    }


def pass_over(schedule: Schedule, generators: Sequence[Generator], width: int, *, first: bool) -> None:
    """Draw the noise of a run for one prompt a picture and throw it away, so that the next draw is the one behind it.

    `first` says whether the run draws the noise that it begins with.
    """
    for generator in generators:
        for _ in range(int(first) + int(schedule.noisy.sum())):
            generator.randn((1, width))
