"""A component as diffusers runs it: the peer that ours is measured beside."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, UnCLIPScheduler

from benchmarks.ceilings import DTYPES
from kandinsky22.bundle.manifest import Role
from kandinsky22.measure.timing import Size
from kandinsky22_export.checkpoints import open_checkpoint
from kandinsky22_export.random_weights import random_checkpoint


class Peer:
    """A component as diffusers runs it: the calls of its Kandinsky 2.2 pipelines, with random or loaded weights."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.role = Role(spec["role"])
        self.device = spec.get("device", "cpu")
        self.dtype = DTYPES[spec["precision"]]
        loaded, self.scheduler = network(spec)
        loaded = loaded.to(self.dtype).to(self.device).eval()
        if spec.get("channels_last"):
            loaded = loaded.to(memory_format=torch.channels_last)
        self.network: Any = loaded
        self.call: Callable[..., Any] = loaded.decode if self.role is Role.MOVQ_DECODER else loaded
        if spec.get("compile"):
            self.call = torch.compile(self.call, mode="reduce-overhead" if self.device == "cuda" else None)
        self.inputs: tuple[Any, ...] = ()

    def prepare(self, size: Size) -> None:
        """See Subject."""
        config = self.network.config
        torch.manual_seed(0)
        rows = size.batch * (2 if size.guided else 1)

        def noise(*shape: int) -> Any:
            return torch.randn(shape).to(self.dtype).to(self.device)

        if self.role is Role.TEXT_ENCODER:
            ids = torch.randint(1, config.vocab_size - 1, (rows, config.max_position_embeddings))
            self.inputs = (ids.to(self.device),)
        elif self.role is Role.PRIOR:
            tokens, wide = config.num_embeddings, config.embedding_dim
            mask = torch.ones(rows, tokens, dtype=torch.bool, device=self.device)
            self.inputs = (noise(size.batch, wide), noise(rows, wide), noise(rows, tokens, wide), mask)
        elif self.role is Role.DECODER:
            side = (size.height // 8, size.width // 8)
            channels = config.in_channels
            self.inputs = (noise(size.batch, channels, *side), noise(rows, config.encoder_hid_dim))
        else:
            self.inputs = (noise(size.batch, config.latent_channels, size.height // 8, size.width // 8),)
        if self.scheduler is not None:
            self.scheduler.set_timesteps(50)

    def run(self) -> float:
        """See Subject."""
        with torch.inference_mode():
            if self.device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            getattr(self, f"_{self.role}")(*self.inputs)
            if self.device == "cuda":
                torch.cuda.synchronize()
            return time.perf_counter() - started

    def _text_encoder(self, ids: Any) -> None:
        output = self.call(ids)
        assert output.text_embeds.shape[0] == len(ids)

    def _prior(self, latents: Any, embeds: Any, hidden: Any, mask: Any) -> None:
        branches = len(embeds) // len(latents)
        t = self.scheduler.timesteps[20]
        output = self.call(
            torch.cat([latents] * branches),
            timestep=t,
            proj_embedding=embeds,
            encoder_hidden_states=hidden,
            attention_mask=mask,
        ).predicted_image_embedding
        self.scheduler.step(self._guided(output, branches), timestep=t, sample=latents, prev_timestep=t - 20)

    def _decoder(self, latents: Any, embeds: Any) -> None:
        branches, channels = len(embeds) // len(latents), latents.shape[1]
        t = self.scheduler.timesteps[20]
        output = self.call(
            sample=torch.cat([latents] * branches),
            timestep=t,
            encoder_hidden_states=None,
            added_cond_kwargs={"image_embeds": embeds},
            return_dict=False,
        )[0]
        predicted, variance = output.split(channels, dim=1)
        output = torch.cat([self._guided(predicted, branches), variance.chunk(branches)[-1]], dim=1)
        self.scheduler.step(output, t, latents)

    def _movq_decoder(self, latents: Any) -> None:
        image = self.call(latents, force_not_quantize=True)["sample"]
        image = (image * 0.5 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).float().numpy()
        assert (image * 255).round().astype("uint8").shape[-1] == 3

    @staticmethod
    def _guided(output: Any, branches: int, scale: float = 4.0) -> Any:
        if branches == 1:
            return output
        away, towards = output.chunk(2)
        return away + scale * (towards - away)


NETWORKS = {
    Role.TEXT_ENCODER: "text_encoder",
    Role.PRIOR: "prior",
    Role.DECODER: "unet",
    Role.MOVQ_DECODER: "movq",
}
"""What checkpoints call them."""


def network(spec: dict[str, Any]) -> tuple[Any, Any]:
    """The torch network of a component, and diffusers' scheduler for it, or None."""
    role = Role(spec["role"])
    if spec.get("checkpoint"):
        checkpoint = open_checkpoint(spec["checkpoint"], None, None, None)
    else:
        checkpoint = random_checkpoint("kandinsky-2.2", 0)
    network = checkpoint.networks[NETWORKS[role]].load()
    kind = {Role.PRIOR: UnCLIPScheduler, Role.DECODER: DDPMScheduler}.get(role)
    if kind is None:
        return network, None
    return network, kind.from_config(checkpoint.schedulers[str(role)])


def version() -> str:
    """Of what runs it."""
    return f"diffusers {diffusers.__version__}, torch {torch.__version__}"
