"""Text to image embeddings: CLIP's text encoder, then the diffusion prior (unCLIP, arXiv:2204.06125)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from kandinsky22.arrays import Array, Floats
from kandinsky22.backends import OnStep
from kandinsky22.noise import Generator
from kandinsky22.schedulers import Table
from kandinsky22.stages import Stages
from kandinsky22.text import Tokenizer


@dataclass(frozen=True)
class Embeddings:
    """Image embeddings (n, E) float32 of n pictures, and those (n, E) that guidance leads away from."""

    image_embeds: Floats
    negative_image_embeds: Floats


@dataclass(frozen=True)
class Beginning:
    """Where a run of the prior begins: with `noise`, or with embeddings `embeds` (n, E) of pictures that are noised.

    `noise` (n, E), or (2n, E) with negative prompts, replaces what would be drawn. With `embeds`, `scales` (2,) say how
    much of them and of the noise there is, as in KandinskyV22PriorEmb2EmbPipeline.
    """

    noise: Floats | None = None
    embeds: Floats | None = None
    scales: Floats | None = None

    def latents(self, draw: Callable[[], Floats], copies: int) -> Floats:
        """The first latents (copies · n, E); with negative prompts there are two copies of each picture."""
        noise = draw() if self.noise is None else self.noise
        if self.embeds is None or self.scales is None:
            return noise
        latents: Floats = self.scales[0] * np.concatenate([self.embeds] * copies) + self.scales[1] * noise
        return latents


def encode_text(stages: Stages, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, dict[str, Array]]:
    """Encode every different text once.

    Returns by text what `prior_step` is conditioned on: `text_embeds` (E,), `text_hidden` (T, H) and `text_mask` (T,).
    """
    different = list(dict.fromkeys(texts))
    ids, mask = tokenizer(different)
    with stages.use("text_encoder") as text_encoder:
        outputs = text_encoder.run({"input_ids": ids})
    outputs["text_mask"] = mask
    return {text: {name: rows[i] for name, rows in outputs.items()} for i, text in enumerate(different)}


def embed(
    stages: Stages,
    tokenizer: Tokenizer,
    table: Table,
    prompts: Sequence[str],
    negative_prompts: Sequence[str] | None,
    generators: Sequence[Generator],
    *,
    guidance_scale: float,
    beginning: Beginning | None = None,
    on_step: OnStep | None = None,
) -> Embeddings:
    """The image embeddings of `prompts`, one a picture, as KandinskyV22PriorPipeline computes them.

    With `negative_prompts` (one a picture) the batch is doubled: the second half are the embeddings of the negative
    prompts themselves, and both halves are guided away from the negative prompt. With None the negative embedding is
    that of the all-zero image, a constant of the checkpoint, and guidance leads away from the empty prompt.

    `beginning` says where the run begins, if not with the noise of `generators`.

    Picture i draws its noise from `generators[i]` alone. Guidance is off at a scale of 1 or below.
    """
    rows = [*prompts, *(negative_prompts or ())]
    away_from = [*negative_prompts, *negative_prompts] if negative_prompts is not None else [""] * len(rows)
    guided = guidance_scale > 1
    branches = [away_from, rows] if guided else [rows]
    texts = encode_text(stages, tokenizer, [text for branch in branches for text in branch])
    conditioning = {
        name: np.stack([np.stack([texts[text][name] for text in branch]) for branch in branches])
        for name in ("text_embeds", "text_hidden", "text_mask")
    }
    width = stages.bundle.manifest.geometry["embedding_dim"]
    copies = len(rows) // len(prompts)

    def draw() -> Floats:
        """Noise (rows, E). A picture's prompt and negative prompt are one draw, as in a call for it alone."""
        return np.concatenate(list(np.stack([g.randn((copies, width)) for g in generators], axis=1)))

    latents = draw() if beginning is None else beginning.latents(draw, copies)
    nothing = np.zeros_like(latents)
    with stages.use("prior_step") as prior_step:
        state = prior_step.loop(
            {"latents": latents, "x0_before": nothing},
            {
                "timestep": table.timesteps.astype(np.float32)[:, None],
                "row": table.rows,
                "noise": [draw() if noisy else nothing for noisy in table.noisy],
            },
            {
                **conditioning,
                "guidance": guidance_weights(guidance_scale),
                "limits": table.limits.array,
            },
            on_step,
        )
    constants = stages.bundle.constants()
    embeds: Floats = state["latents"] * constants["clip_std"] + constants["clip_mean"]
    if negative_prompts is None:
        return Embeddings(embeds, np.repeat(constants["zero_image_embeds"], len(embeds), axis=0))
    return Embeddings(*np.split(embeds, 2))


def pass_over(table: Table, generators: Sequence[Generator], width: int, *, first: bool) -> None:
    """Draw the noise of a run for one prompt a picture, and throw it away: what comes next is drawn from there.

    `first` says whether the run draws what it begins with.
    """
    for generator in generators:
        for _ in range(int(first) + int(table.noisy.sum())):
            generator.randn((1, width))


def guidance_weights(scale: float) -> Floats:
    """Weights of the branches (arXiv:2207.12598): unconditional, conditional; the conditional alone at 1 or below."""
    return np.array([1 - scale, scale] if scale > 1 else [1], np.float32)
