"""A published architecture with random weights: real sizes and real speed without a download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn

from kandinsky22_export.architectures.configs import ProcessorConfig
from kandinsky22_export.architectures.kandinsky_2_2 import KINDS, UNETS, Kind
from kandinsky22_export.architectures.published import ARCHITECTURES, EMBEDDING, SCHEDULERS, TOKENS, VOCABULARY
from kandinsky22_export.architectures.validate import image_processor
from kandinsky22_export.checkpoints import Checkpoint, Network


def random_checkpoint(architecture: str, seed: int) -> Checkpoint:
    """The checkpoint of an architecture of ARCHITECTURES, with the same weights for the same seed.

    Where the image encoder is not there or not exported, the embedding of the zero image is random too.
    """
    configs = ARCHITECTURES[architecture]
    names = [name for name in KINDS if name in configs]
    networks = {name: _network(KINDS[name], configs[name], seed + i) for i, name in enumerate(names)}
    samplers = {purpose: SCHEDULERS["decoder"] for purpose, unet in UNETS.items() if unet in configs}
    samplers["prior"] = SCHEDULERS["prior"]
    processor = None
    if "image_encoder" in configs:
        side = configs["image_encoder"]["image_size"]
        processor = image_processor("random weights", ProcessorConfig(size=side, crop_size=side), side)
    zero_image = torch.randn(1, EMBEDDING, generator=torch.Generator().manual_seed(seed))
    source = {"architecture": architecture, "random_weights": seed}
    return Checkpoint(source, networks, samplers, byte_tokenizer, zero_image, processor)


def _network(kind: Kind, config: Mapping[str, Any], seed: int) -> Network:
    def load() -> nn.Module:
        # Parameters without memory first: torch's own initialisation of a billion of them takes minutes.
        with init_empty_weights():
            if issubclass(kind.cls, transformers.PreTrainedModel):
                network: nn.Module = kind.cls(kind.cls.config_class(**config))
            else:
                network = kind.cls(**config)
        fill(network, seed)
        return network.eval().requires_grad_(False)

    return Network(config, load)


def fill(network: nn.Module, seed: int) -> None:
    """Give every parameter of `network` float32 values: scales 1, biases 0, all else Gaussian.

    A variance of 1/fan-in keeps activations near 1, so that half precision neither overflows nor loses them.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        for name, empty in list(module._parameters.items()):
            if empty is None:
                continue
            values = torch.empty(empty.shape)
            if values.ndim > 1 and name != "clip_std":
                values.normal_(0, values[0].numel() ** -0.5, generator=generator)
            else:
                values.fill_(float(name != "bias"))
            module._parameters[name] = nn.Parameter(values)


def byte_tokenizer() -> transformers.CLIPTokenizer:
    """CLIP's tokenizer without merges: one token a byte, and the published numbers for the two special tokens."""
    characters = sorted(ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate([*characters, *(c + "</w>" for c in characters)])}
    vocabulary |= {"<|startoftext|>": VOCABULARY - 2, "<|endoftext|>": VOCABULARY - 1}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TOKENS)
