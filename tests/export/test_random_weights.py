"""The published architecture without its files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from transformers import PreTrainedModel

from kandinsky22_export import random_weights
from kandinsky22_export.checkpoints import KINDS
from tests import tiny

PUBLISHED = random_weights.ARCHITECTURES["kandinsky-2.2"]
COUNTS = {"unet": 1_253_057_288, "movq": 67_832_495, "prior": 1_026_225_920, "text_encoder": 694_659_840}


@pytest.fixture
def small_architecture(monkeypatch: pytest.MonkeyPatch, tiny_parts: tiny.Parts) -> str:
    names = ("unet", "movq", "prior", "text_encoder")
    configs: dict[str, Any] = {name: getattr(tiny_parts, name).config for name in names}
    configs["text_encoder"] = configs["text_encoder"].to_dict()
    small = {
        name: {key: value for key, value in config.items() if not key.startswith("_")}
        for name, config in configs.items()
    }
    monkeypatch.setitem(random_weights.ARCHITECTURES, "small", small)
    return "small"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.name in PUBLISHED], ids=lambda kind: kind.name)
def test_published_sizes_have_the_published_numbers_of_parameters(kind: Any) -> None:
    config = PUBLISHED[kind.name]
    with init_empty_weights():
        is_clip = issubclass(kind.cls, PreTrainedModel)
        network = kind.cls(kind.cls.config_class(**config)) if is_clip else kind.cls(**config)
    assert sum(parameter.numel() for parameter in network.parameters()) == COUNTS[kind.name]


def test_a_seed_gives_the_same_weights_and_another_gives_others(small_architecture: str) -> None:
    first, again, other = (random_weights.random_checkpoint(small_architecture, seed) for seed in (3, 3, 4))
    for name, network in first.networks.items():
        state, same, different = (c.networks[name].load().state_dict() for c in (first, again, other))
        assert all(torch.equal(state[key], same[key]) for key in state)
        assert any(not torch.equal(state[key], different[key]) for key in state)
        assert network.load().training is False
    assert first.zero_image is not None
    assert first.zero_image.shape == (1, random_weights.EMBEDDING)


def test_activations_stay_in_reach_of_half_precision(small_architecture: str) -> None:
    checkpoint = random_weights.random_checkpoint(small_architecture, 0)
    unet: Any = checkpoint.networks["unet"].load()
    embeds = torch.randn(2, tiny.EMBEDDING)
    output = unet(torch.randn(2, 4, 8, 8), 500, None, added_cond_kwargs={"image_embeds": embeds}).sample
    assert 0.1 < output.std() < 10
    prior: Any = checkpoint.networks["prior"].load()
    assert (prior.clip_std == 1).all()
    assert (prior.causal_attention_mask[0].triu(1) < -9999).sum() == 81 * 80 / 2  # buffers are no parameters


def test_every_text_has_tokens() -> None:
    tokenizer = random_weights.byte_tokenizer()
    ids = tokenizer("A cat, кот, 猫!").input_ids
    assert (ids[0], ids[-1]) == (49406, 49407)
    assert all(number < 512 for number in ids[1:-1])
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == "acat,кот,猫!"
