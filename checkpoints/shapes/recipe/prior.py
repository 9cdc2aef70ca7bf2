"""The prior: from a caption to the embedding of a picture that it describes (unCLIP, arXiv:2204.06125)."""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import PriorTransformer, UnCLIPScheduler
from torch import Tensor
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from recipe import captions, loop
from recipe.dataset import Dataset

STEPS, BATCH, PEAK_RATE = 1000, 96, 2e-3
DROPPED_SHARE = 0.1


def train(data: Dataset, work: Path, prior: Path) -> None:
    """Train and save `prior` and `scheduler` in the folder `prior`."""
    torch.manual_seed(loop.SEED)
    tokenizer = CLIPTokenizer.from_pretrained(prior / "tokenizer")
    text = CLIPTextModelWithProjection.from_pretrained(prior / "text_encoder").eval()
    model = PriorTransformer(
        num_attention_heads=4,
        attention_head_dim=24,
        num_layers=4,
        embedding_dim=data.embeds.shape[1],
        num_embeddings=tokenizer.model_max_length,
        additional_embeddings=4,
    )
    # The model works on normalised embeddings, and undoes it itself after the last step.
    model.clip_mean.data = data.embeds.mean(0, keepdim=True)
    model.clip_std.data = data.embeds.std(0, keepdim=True)
    for parameter in (model.clip_mean, model.clip_std):
        parameter.requires_grad_(False)
    levels = UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0)

    def loss_of(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return _loss_of(model, levels, tokenizer, text, data, generator)

    loop.train("prior", model, loss_of, STEPS, PEAK_RATE, work, 0.995)
    model.save_pretrained(prior / "prior")
    levels.save_pretrained(prior / "scheduler")


def _loss_of(
    model: PriorTransformer,
    levels: UnCLIPScheduler,
    tokenizer: CLIPTokenizer,
    text: CLIPTextModelWithProjection,
    data: Dataset,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    rows = torch.randint(len(data.embeds), (BATCH,), generator=generator)
    clean = (data.embeds[rows] - model.clip_mean) / model.clip_std
    span = levels.config.num_train_timesteps / BATCH
    times = ((torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) * span).long()
    noise = torch.randn(clean.shape, generator=generator)
    conditions = _conditions(tokenizer, text, data.scenes[rows], generator)
    guess = model(levels.add_noise(clean, noise, times), times, **conditions).predicted_image_embedding
    loss = F.mse_loss(guess, clean)
    return loss, {"mse": loss.item()}


@torch.no_grad()
def _conditions(
    tokenizer: CLIPTokenizer, text: CLIPTextModelWithProjection, scenes: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """What the prior reads of captions, a tenth of them empty: guidance leads away from the empty one."""
    rng = random.Random(int(torch.randint(2**31, (1,), generator=generator)))
    texts = ["" if rng.random() < DROPPED_SHARE else captions.caption(tuple(s), rng) for s in scenes.tolist()]
    tokens = tokenizer(texts, padding="longest", return_tensors="pt")
    output = text(**tokens)
    # The prior masks padding, so its hidden states need not be computed.
    missing = tokenizer.model_max_length - tokens.input_ids.shape[1]
    return {
        "proj_embedding": output.text_embeds,
        "encoder_hidden_states": F.pad(output.last_hidden_state, (0, 0, 0, missing)),
        "attention_mask": F.pad(tokens.attention_mask, (0, missing)).bool(),
    }
