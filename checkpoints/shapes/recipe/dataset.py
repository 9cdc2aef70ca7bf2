"""Drawings as the diffusion models see them: latents and image embeddings, computed once and kept on disk."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPVisionModelWithProjection

from recipe import clip, drawing, loop, movq

PARTS, PART = 256, 64


@dataclass(frozen=True)
class Dataset:
    """The drawings: row i of every tensor but `zero` is of drawing i.

    `scenes` int64 (n, 5); `wobbles` float32 (n, 10); `latents` float32 (n, 4, 16, 16); `embeds` float32 (n, 96);
    `zero` (96,), the embedding of no picture.
    """

    scenes: Tensor
    wobbles: Tensor
    latents: Tensor
    embeds: Tensor
    zero: Tensor


@torch.no_grad()
def load(work: Path, prior: Path, decoder: Path) -> Dataset:
    """Read the data set, after computing what of it is not on disk yet."""
    scenes, wobbles = (torch.cat(parts) for parts in zip(*map(_scenes_and_wobbles, range(PARTS)), strict=True))
    model = VQModel.from_pretrained(decoder / "movq")
    latents = encoded(model, work / "dataset", PARTS, _pictures)
    vision = CLIPVisionModelWithProjection.from_pretrained(prior / "image_encoder")
    path = work / "embeds.safetensors"
    if not path.exists():
        parts = [clip.embed_pictures(vision, _pictures(i)) for i in tqdm(range(PARTS), desc="embeds", mininterval=5)]
        _save({"embeds": torch.cat(parts)}, path)
    zero = vision(torch.zeros(1, 3, clip.VISION_SIZE, clip.VISION_SIZE)).image_embeds[0]
    return Dataset(scenes, wobbles, latents, load_file(path)["embeds"], zero)


@torch.no_grad()
def encoded(model: VQModel, folder: Path, parts: int, pictures_of: Callable[[int], Tensor]) -> Tensor:
    """Latents of the pictures of parts 0 to `parts`, each kept in a file, so that a killed run goes on where it was."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:04}.safetensors" for index in range(parts)]
    for index, path in enumerate(tqdm(paths, desc=f"latents of {folder.name}", mininterval=5.0)):
        if not path.exists():
            _save({"latents": movq.encode(model, pictures_of(index)).half().contiguous()}, path)
    return torch.cat([load_file(path)["latents"] for path in paths]).float()


def _pictures(index: int) -> Tensor:
    """The drawings of part `index`, the same at each call."""
    return drawing.draw(*_scenes_and_wobbles(index))


def _scenes_and_wobbles(index: int) -> tuple[Tensor, Tensor]:
    generator = loop.generator_for("data", index)
    return drawing.sample_scenes(PART, generator), drawing.sample_wobbles(PART, generator)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.rename(path)
