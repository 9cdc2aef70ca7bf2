"""Drawings as the diffusion models see them: latents and image embeddings, computed once and kept on disk."""

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
    """`scenes` int64 (n, 5); `latents` float32 (n, 4, 16, 16); `embeds` float32 (n, 96); `zero` (96,), no picture's."""

    scenes: Tensor
    latents: Tensor
    embeds: Tensor
    zero: Tensor


@torch.no_grad()
def load(work: Path, prior: Path, decoder: Path) -> Dataset:
    """Read the data set, after computing what of it is not on disk yet."""
    scenes, latents = load_latents(work, decoder)
    vision = CLIPVisionModelWithProjection.from_pretrained(prior / "image_encoder")
    path = work / "embeds.safetensors"
    if not path.exists():
        parts = [clip.embed_pictures(vision, _pictures(i)[1]) for i in tqdm(range(PARTS), desc="embeds", mininterval=5)]
        _save({"embeds": torch.cat(parts)}, path)
    zero = vision(torch.zeros(1, 3, clip.VISION_SIZE, clip.VISION_SIZE)).image_embeds[0]
    return Dataset(scenes, latents, load_file(path)["embeds"], zero)


@torch.no_grad()
def load_latents(work: Path, decoder: Path) -> tuple[Tensor, Tensor]:
    """Scenes and latents of all drawings, encoded part by part, so that a killed run goes on where it was."""
    model = VQModel.from_pretrained(decoder / "movq")
    parts = work / "dataset"
    parts.mkdir(parents=True, exist_ok=True)
    for index in tqdm(range(PARTS), desc="latents", mininterval=5.0):
        path = parts / f"{index:04}.safetensors"
        if not path.exists():
            scenes, pictures = _pictures(index)
            _save({"scenes": scenes, "latents": movq.encode(model, pictures).half().contiguous()}, path)
    files = [load_file(parts / f"{index:04}.safetensors") for index in range(PARTS)]
    return torch.cat([file["scenes"] for file in files]), torch.cat([file["latents"] for file in files]).float()


def _pictures(index: int) -> tuple[Tensor, Tensor]:
    """Scenes and drawings of part `index`, the same at each call."""
    generator = loop.generator_for("data", index)
    scenes = drawing.sample_scenes(PART, generator)
    return scenes, drawing.draw(scenes, drawing.sample_wobbles(PART, generator))


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.rename(path)
