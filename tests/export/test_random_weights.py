"""The published architecture without its files."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from transformers import PreTrainedModel

from kandinsky22_export import random_weights
from kandinsky22_export.architectures import published
from kandinsky22_export.architectures.kandinsky_2_2 import KINDS
from kandinsky22_export.architectures.validate import require_fit
from tests import tiny

PUBLISHED = published.ARCHITECTURES["kandinsky-2.2-all"]
UNET = 1_253_057_288
HINT = 358_100  # eight convolutions
COUNTS = {
    "unet": UNET,
    "movq": 67_832_495,
    "prior": 1_026_225_920,
    "text_encoder": 694_659_840,
    # 48 layers of attention, MLP and two norms; patches, class, places, two norms, projection
    "image_encoder": 48 * (4 * (1664**2 + 1664) + (2 * 1664 * 8192 + 8192 + 1664) + 4 * 1664)
    + (3 * 14**2 + 1 + 257 + 4 + 1280) * 1664,
    "unet_controlnet": UNET + HINT + 4 * 384 * 9,
    "unet_inpaint": UNET + 5 * 384 * 9,
}


@pytest.fixture
def small_architecture(monkeypatch: pytest.MonkeyPatch, tiny_parts: tiny.Parts) -> str:
    names = tuple(PUBLISHED)
    configs: dict[str, Any] = {name: getattr(tiny_parts, name).config for name in names}
    configs |= {name: configs[name].to_dict() for name in ("text_encoder", "image_encoder")}
    small = {
        name: {key: value for key, value in config.items() if not key.startswith("_")}
        for name, config in configs.items()
    }
    monkeypatch.setitem(published.ARCHITECTURES, "small", small)
    return "small"


@pytest.mark.parametrize("name", KINDS)
def test_published_sizes_have_the_published_numbers_of_parameters(name: str) -> None:
    kind, config = KINDS[name], PUBLISHED[name]
    with init_empty_weights():
        is_clip = issubclass(kind.cls, PreTrainedModel)
        network = kind.cls(kind.cls.config_class(**config)) if is_clip else kind.cls(**config)
    assert sum(parameter.numel() for parameter in network.parameters()) == COUNTS[name]


def test_a_seed_gives_the_same_weights_and_another_gives_others(small_architecture: str) -> None:
    first, again, other = (random_weights.random_checkpoint(small_architecture, seed) for seed in (3, 3, 4))
    for name, network in first.networks.items():
        state, same, different = (c.networks[name].load().state_dict() for c in (first, again, other))
        assert all(torch.equal(state[key], same[key]) for key in state)
        assert any(not torch.equal(state[key], different[key]) for key in state)
        assert network.load().training is False
    assert first.zero_image is not None
    assert first.zero_image.shape == (1, published.EMBEDDING)


def test_text_to_image_alone_has_the_same_weights_as_with_the_other_tasks() -> None:
    alone, together = (random_weights.random_checkpoint(f"kandinsky-2.2{which}", 0) for which in ("", "-all"))
    assert alone.networks.keys() == {"unet", "movq", "prior", "text_encoder"}
    assert together.networks.keys() == set(KINDS)
    assert alone.schedulers.keys() == {"decoder", "prior"}
    assert together.schedulers.keys() == {"decoder", "controlnet", "inpaint", "prior"}
    assert alone.image_processor is None
    assert together.image_processor is not None
    assert (together.image_processor.size, together.image_processor.crop) == (224, 224)
    movqs = [checkpoint.networks["movq"].load().state_dict() for checkpoint in (alone, together)]
    assert all(torch.equal(value, movqs[1][key]) for key, value in movqs[0].items())


def test_random_weights_fit_as_those_of_repositories_must(small_architecture: str) -> None:
    for architecture in ("kandinsky-2.2-all", small_architecture):
        checkpoint = random_weights.random_checkpoint(architecture, 0)
        require_fit({name: network.config for name, network in checkpoint.networks.items()}, checkpoint.schedulers)


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
