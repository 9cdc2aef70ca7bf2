"""The two CLIP towers, trained together: a caption and its picture get near embeddings (arXiv:2103.00020)."""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from recipe import captions, drawing, loop

WIDTH = 96
VISION_SIZE = 64
STEPS, BATCH = 2000, 96
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class Towers(nn.Module):
    """Both towers, and what only training needs: a temperature, and heads that read each attribute.

    The heads keep everything that a caption says linearly readable in both embeddings; contrast alone would keep only
    what tells the pictures of a batch apart.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        shared = {
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "projection_dim": WIDTH,
            "hidden_act": "gelu",
        }
        tokens = {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
        self.text = CLIPTextModelWithProjection(CLIPTextConfig(**shared, **tokens))
        self.vision = CLIPVisionModelWithProjection(CLIPVisionConfig(**shared, image_size=VISION_SIZE, patch_size=8))
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, len(values)) for values in drawing.ATTRIBUTES.values())

    def attribute_loss(self, embeds: Tensor, scenes: Tensor) -> tuple[Tensor, list[float]]:
        """Cross entropy of all attributes read from embeddings (n, WIDTH), and the share read right, one each."""
        logits = [head(embeds) for head in self.heads]
        right = [(rows.argmax(1) == scenes[:, i]).float().mean().item() for i, rows in enumerate(logits)]
        return sum((F.cross_entropy(rows, scenes[:, i]) for i, rows in enumerate(logits)), torch.zeros(())), right


def train(work: Path, prior: Path) -> Towers:
    """Train both towers and save `text_encoder`, `image_encoder` and `image_processor` in `prior`."""
    torch.manual_seed(loop.SEED)
    tokenizer = CLIPTokenizer.from_pretrained(prior / "tokenizer")
    towers = Towers(tokenizer)
    loop.train("clip", towers, lambda step, g: _loss_of(towers, tokenizer, step, g), STEPS, 1.5e-3, work, 0.99, 0.01)
    towers.text.save_pretrained(prior / "text_encoder")
    towers.vision.save_pretrained(prior / "image_encoder")
    size = {"height": VISION_SIZE, "width": VISION_SIZE}
    processor = CLIPImageProcessor(
        size={"shortest_edge": VISION_SIZE}, crop_size=size, image_mean=list(MEAN), image_std=list(STD)
    )
    processor.save_pretrained(prior / "image_processor")
    return towers


def _loss_of(
    towers: Towers, tokenizer: CLIPTokenizer, step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    scenes = drawing.sample_scenes(BATCH, generator)
    rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    texts = [captions.caption(tuple(scene), rng) for scene in scenes.tolist()]
    # Only as many tokens as the longest caption: padding changes nothing under the causal mask.
    tokens = tokenizer(texts, padding="longest", return_tensors="pt")
    text_embeds = towers.text(**tokens).text_embeds
    pictures = drawing.draw(scenes, drawing.sample_wobbles(BATCH, generator), VISION_SIZE)
    image_embeds = towers.vision(pixels_for(pictures)).image_embeds
    scale = towers.temperature.clamp(max=4.0).exp()
    logits = scale * F.normalize(text_embeds, dim=1) @ F.normalize(image_embeds, dim=1).T
    # Another picture of the same scene fits the caption as well: it is no counterexample.
    same = (scenes[:, None] == scenes[None]).all(2) & ~torch.eye(BATCH, dtype=torch.bool)
    logits = logits.masked_fill(same, -1e4)
    target = torch.arange(BATCH)
    contrast = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    seen, right = towers.attribute_loss(image_embeds, scenes)
    read, _ = towers.attribute_loss(text_embeds, scenes)
    # Keeps the embeddings at unit variance a value, which heads and projections alone would let grow.
    size = (image_embeds.square().mean() - 1) ** 2 + (text_embeds.square().mean() - 1) ** 2
    loss = contrast + seen + read + 0.1 * size
    return loss, {"contrast": contrast.item(), **dict(zip(drawing.ATTRIBUTES, right, strict=True))}


def pixels_for(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, 64, 64) in -1..1 as the image processor would hand them to the tower."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pictures * 0.5 + 0.5 - mean) / std


@torch.no_grad()
def embed_pictures(vision: CLIPVisionModelWithProjection, pictures: Tensor) -> Tensor:
    """Image embeddings (n, WIDTH) of pictures (n, 3, h, w) in -1..1 of any size."""
    small = F.interpolate(pictures, (VISION_SIZE, VISION_SIZE), mode="bicubic", antialias=True)
    return vision(pixels_for(small)).image_embeds
