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
from kandinsky22.rows import Pictures, Rows
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
    rows: Mapping[int, int],
    pictures: Pictures,
    *,
    at_once: int | None = None,
    begin: Floats | None = None,
    on_step: OnStep | None = None,
) -> dict[int, Embeddings]:
    """The image embeddings of some of the pictures of a run of the prior, as KandinskyV22PriorPipeline computes them.

    With negative prompts the batch is doubled: the second half are the embeddings of the negative prompts themselves,
    and both halves are guided away from the negative prompt. Without them, the negative embedding is that of the
    all-zero image, a constant of the checkpoint, and guidance leads away from the empty prompt.

    Args:
        run: The call's use of the components.
        tokenizer: Of the bundle.
        asked: The run of the prior.
        rows: The row of `asked` of each picture, by the picture's place in the call.
        pictures: Of the call; each draws its noise from its own generator alone.
        at_once: Pictures that are denoised in one run; None: all.
        begin: Embeddings (n, E) of all rows of `asked` that are mixed with the first noise, as in
            KandinskyV22PriorEmb2EmbPipeline; None: the run begins with noise.
        on_step: Called after each step.

    Returns:
        Embeddings (1, E) by place of those pictures that stay.
    """
    found: dict[int, Embeddings] = pictures.hold({})
    name = run.bundle.manifest.name_of(Role.PRIOR)
    texts = encode_text(run, tokenizer, _texts(asked, list(rows.values())), at_once) if rows else {}
    guidance = guidance_weights(asked.guidance_scale)
    with run.use(name) as prior_step:
        for part in parts(len(rows), at_once):
            places = pictures.staying(list(rows)[part])
            if places:
                fed = _begin(run, asked, [rows[place] for place in places], pictures, places, texts, begin)
                fed.loop(prior_step, slice(0, asked.steps), guidance, on_step)
                found.update(_results(run, fed, finite(name, fed.state["latents"])))
    return found


def _texts(asked: PriorRun, of: Sequence[int]) -> list[str]:
    """The texts that the rows `of` what was asked are led towards and, where they are, away from."""
    prompts = [asked.prompts[row] for row in of]
    if asked.negatives is not None:
        return [*prompts, *(asked.negatives[row] for row in of)]
    return [*prompts, ""] if asked.guidance_scale > 1 else prompts


def _begin(
    run: Run,
    asked: PriorRun,
    of: Sequence[int],
    pictures: Pictures,
    places: Sequence[int],
    texts: Mapping[str, Mapping[str, Array]],
    begin: Floats | None,
) -> Rows:
    """What a run begins with, for the rows `of` what was asked, whose pictures are at `places`."""
    prompts = [asked.prompts[row] for row in of]
    negatives = None if asked.negatives is None else [asked.negatives[row] for row in of]
    copies = 1 if negatives is None else 2
    towards = [*prompts, *(negatives or ())]
    away = [""] * len(prompts) if negatives is None else negatives * copies
    generators = [pictures.generators[place] for place in places]
    noise = _noise(generators, copies, run.bundle.manifest.geometry.embedding_dim)
    latents = next(noise) if asked.noise is None else np.concatenate(asked.noise[:, of])
    if begin is not None:
        signal, rest = asked.schedule.scales[0]
        latents = signal * np.concatenate([begin[of]] * copies) + rest * latents
    nothing = np.zeros_like(latents)
    return Rows(
        pictures,
        places,
        run.bundle.component(run.bundle.manifest.name_of(Role.PRIOR)).inputs,
        {"latents": latents, "x0_before": nothing},
        asked.schedule.per_step(functools.partial(next, noise), nothing),
        {
            **_stacked(texts, [away, towards] if asked.guidance_scale > 1 else [towards]),
            "thresholding": asked.schedule.thresholding.array,
        },
    )


def _results(run: Run, fed: Rows, latents: Floats) -> dict[int, Embeddings]:
    """The embeddings (1, E) that a finished run means, by place."""
    constants = run.bundle.constants()
    results: Floats = np.stack(np.split(latents, fed.copies)) * constants["clip_std"] + constants["clip_mean"]
    found = {}
    for row, place in enumerate(fed.places):
        away = results[1, row : row + 1] if fed.copies == 2 else constants["zero_image_embeds"]
        found[place] = Embeddings(results[0, row : row + 1], away)
    return found


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
