"""Text to image embeddings: CLIP's text encoder, then the diffusion prior (unCLIP, arXiv:2204.06125)."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kandinsky22.arrays import Array, Embeddings, Floats
from kandinsky22.backends import OnStep
from kandinsky22.batching import parts
from kandinsky22.components import Components
from kandinsky22.conditioning.tokenizer import Tokenizer
from kandinsky22.noise import Generator
from kandinsky22.sampling.guidance import guidance_weights
from kandinsky22.schedulers.schedule import Schedule


@dataclass(frozen=True)
class InitialLatents:
    """Where a run of the prior begins: with `noise`, or with embeddings `embeds` (n, E) of pictures that are noised.

    `noise` (copies, n, E) replaces what would be drawn; with negative prompts there are two copies of each picture.
    With `embeds`, `scales` (2,) say how much of them and of the noise there is, as in KandinskyV22PriorEmb2EmbPipeline.
    """

    noise: Floats | None = None
    embeds: Floats | None = None
    scales: Floats | None = None

    def part(self, of: slice) -> InitialLatents:
        """Where some of the pictures begin."""
        noise = None if self.noise is None else self.noise[:, of]
        return InitialLatents(noise, None if self.embeds is None else self.embeds[of], self.scales)

    def latents(self, part: slice, copies: int, drawn: Iterator[Floats]) -> Floats:
        """The first latents (copies · pictures, E) of a part of the pictures."""
        noise = next(drawn) if self.noise is None else np.concatenate(self.noise[:, part])
        if self.embeds is None or self.scales is None:
            return noise
        latents: Floats = self.scales[0] * np.concatenate([self.embeds[part]] * copies) + self.scales[1] * noise
        return latents


def encode_text(
    components: Components, tokenizer: Tokenizer, texts: Sequence[str], at_once: int | None = None
) -> dict[str, dict[str, Array]]:
    """Encode every different text once, `at_once` of them in one run (None: all).

    Returns by text what `prior_step` is conditioned on: `text_embeds` (E,), `text_hidden` (T, H) and `text_mask` (T,).
    """
    different = list(dict.fromkeys(texts))
    ids, mask = tokenizer(different)
    with components.use("text_encoder") as text_encoder:
        runs = [text_encoder.run({"input_ids": ids[part]}) for part in parts(len(ids), at_once)]
    outputs = {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
    outputs["text_mask"] = mask
    return {text: {name: rows[i] for name, rows in outputs.items()} for i, text in enumerate(different)}


def embed(
    components: Components,
    tokenizer: Tokenizer,
    table: Schedule,
    prompts: Sequence[str],
    negative_prompts: Sequence[str] | None,
    generators: Sequence[Generator],
    *,
    guidance_scale: float,
    at_once: int | None = None,
    beginning: InitialLatents = InitialLatents(),
    on_step: OnStep | None = None,
) -> Embeddings:
    """The image embeddings of `prompts`, one a picture, as KandinskyV22PriorPipeline computes them.

    With `negative_prompts` (one a picture) the batch is doubled: the second half are the embeddings of the negative
    prompts themselves, and both halves are guided away from the negative prompt. With None the negative embedding is
    that of the all-zero image, a constant of the checkpoint, and guidance leads away from the empty prompt.

    Picture i draws its noise from `generators[i]` alone. Guidance is off at a scale of 1 or below. `at_once` pictures
    are denoised in one run (None: all). `beginning` says where the run begins, if not with the noise of `generators`.
    """
    guided = guidance_scale > 1
    away_from = negative_prompts if negative_prompts is not None else [""] * len(prompts)
    texts = encode_text(components, tokenizer, [*prompts, *(away_from if guided else negative_prompts or ())], at_once)
    embeds = []
    with components.use("prior_step") as prior_step:
        for part in parts(len(prompts), at_once):
            rows = [*prompts[part], *(negative_prompts[part] if negative_prompts is not None else ())]
            copies = len(rows) // len(prompts[part])
            branches = [[*away_from[part]] * copies, rows] if guided else [rows]
            noise = _noise(generators[part], copies, components.bundle.manifest.geometry["embedding_dim"])
            latents = beginning.latents(part, copies, noise)
            nothing = np.zeros_like(latents)
            state = prior_step.loop(
                {"latents": latents, "x0_before": nothing},
                table.per_step(functools.partial(next, noise), nothing),
                {
                    **_stacked(texts, branches),
                    "guidance": guidance_weights(guidance_scale),
                    "thresholding": table.thresholding.array,
                },
                on_step,
            )
            embeds.append(np.stack(np.split(state["latents"], copies)))
    constants = components.bundle.constants()
    results: Floats = np.concatenate(embeds, axis=1) * constants["clip_std"] + constants["clip_mean"]
    if negative_prompts is None:
        return Embeddings(results[0], np.repeat(constants["zero_image_embeds"], len(prompts), axis=0))
    return Embeddings(results[0], results[1])


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


def pass_over(table: Schedule, generators: Sequence[Generator], width: int, *, first: bool) -> None:
    """Draw the noise of a run for one prompt a picture, and throw it away: what comes next is drawn from there.

    `first` says whether the run draws what it begins with.
    """
    for generator in generators:
        for _ in range(int(first) + int(table.noisy.sum())):
            generator.randn((1, width))
