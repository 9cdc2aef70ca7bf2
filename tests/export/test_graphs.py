"""The modules that become graphs against diffusers' own modules, pipelines' formulas and schedulers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UnCLIPScheduler
from torch import Tensor

from kandinsky22 import schedulers
from kandinsky22_export.graphs.base import Feeds
from kandinsky22_export.graphs.encoders import HintEncoder, ImageEncoder, MovqDecoder, MovqEncoder, TextEncoder
from kandinsky22_export.graphs.steps import ControlnetStep, DecoderStep, InpaintStep, PriorStep
from tests import tiny

BATCHES = [1, 3]
STEPS = 7


def table_feeds(config: dict[str, Any], i: int, shape: tuple[int, ...]) -> Feeds:
    """What the runtime passes for step `i` of a run with the scheduler `config`: arithmetic of `kandinsky22` alone."""
    table = schedulers.solve(config, STEPS)
    ranks, weight = table.thresholding.ranks(int(torch.tensor(shape[1:]).prod()))
    return {
        "x0_before": torch.zeros(shape),
        "timestep": torch.tensor([float(table.timesteps[i])]),
        "coefficients": torch.from_numpy(table.coefficients[i].copy()),
        "thresholding": torch.from_numpy(table.thresholding.array),
        "ranks": torch.from_numpy(ranks),
        "rank_weight": torch.from_numpy(weight),
    }


def guided(output: Tensor, scale: float | None) -> Tensor:
    """Guidance as in diffusers' prior pipeline: unconditional first."""
    if scale is None:
        return output
    unconditional, conditional = output.chunk(2)
    return unconditional + scale * (conditional - unconditional)


def weights(scale: float | None) -> Tensor:
    return torch.ones(1) if scale is None else torch.tensor([1 - scale, scale])


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("scale", [None, 4.0])
def test_prior_step_is_a_step_of_diffusers(tiny_parts: tiny.Parts, batch: int, scale: float | None) -> None:
    scheduler = UnCLIPScheduler(clip_sample=True, clip_sample_range=1.0, prediction_type="sample")
    scheduler.set_timesteps(STEPS)
    branches = 1 if scale is None else 2
    latents = torch.randn(batch, tiny.EMBEDDING)
    embeds = torch.randn(branches * batch, tiny.EMBEDDING)
    hidden = torch.randn(branches * batch, tiny.TOKENS, tiny.EMBEDDING)
    mask = torch.arange(tiny.TOKENS) < torch.randint(2, 70, (branches * batch, 1))
    i = 2
    output = tiny_parts.prior(
        torch.cat([latents] * branches), scheduler.timesteps[i], embeds, hidden, mask
    ).predicted_image_embedding
    expected = scheduler.step(
        guided(output, scale),
        scheduler.timesteps[i],
        latents,
        prev_timestep=scheduler.timesteps[i + 1],
        generator=torch.Generator().manual_seed(5),
    )
    feeds = table_feeds({**scheduler.config, "_class_name": "UnCLIPScheduler"}, i, latents.shape)
    del feeds["ranks"], feeds["rank_weight"]
    following, clean = PriorStep(tiny_parts.prior)(
        latents=latents,
        noise=torch.randn(latents.shape, generator=torch.Generator().manual_seed(5)),
        guidance=weights(scale),
        text_embeds=embeds.unflatten(0, (branches, batch)),
        text_hidden=hidden.unflatten(0, (branches, batch)),
        text_mask=mask.unflatten(0, (branches, batch)),
        **feeds,
    )
    assert (clean.abs() == 1).any()  # something was clipped
    torch.testing.assert_close(clean, expected.pred_original_sample, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(following, expected.prev_sample, rtol=1e-5, atol=1e-5)


SCHEDULERS = [
    DDPMScheduler(**tiny.PUBLISHED),
    DDPMScheduler(**tiny.PUBLISHED | {"sample_max_value": 1.2}),
    DDPMScheduler(**tiny.PUBLISHED | {"thresholding": False, "clip_sample_range": 0.7}),
    DDPMScheduler(**tiny.PUBLISHED | {"thresholding": False, "clip_sample": False}),
    DDPMScheduler(**tiny.DDPM, thresholding=True, sample_max_value=None, dynamic_thresholding_ratio=0.9),
    DDIMScheduler(**tiny.DDPM, thresholding=True, sample_max_value=2.0),
    DDIMScheduler(**tiny.DDPM | {"prediction_type": "v_prediction"}, clip_sample=False),
]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: f"{type(s).__name__}-{s.config.thresholding}")
def test_decoder_step_is_a_step_of_diffusers(
    tiny_parts: tiny.Parts, scheduler: Any, scale: float | None, batch: int
) -> None:
    scheduler.set_timesteps(STEPS)
    branches = 1 if scale is None else 2
    latents = 2 * torch.randn(batch, 4, 6, 10)
    embeds = torch.randn(branches * batch, tiny.EMBEDDING)
    i = 3
    output = tiny_parts.unet(
        torch.cat([latents] * branches), scheduler.timesteps[i], None, added_cond_kwargs={"image_embeds": embeds}
    ).sample
    expected = stepped(scheduler, output, i, latents, scale)
    following, clean = DecoderStep(tiny_parts.unet, ranks=40)(
        latents=latents,
        noise=torch.randn(latents.shape, generator=torch.Generator().manual_seed(5)),
        guidance=weights(scale),
        image_embeds=embeds.unflatten(0, (branches, batch)),
        **table_feeds({**scheduler.config, "_class_name": type(scheduler).__name__}, i, latents.shape),
    )
    torch.testing.assert_close(clean, expected.pred_original_sample, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(following, expected.prev_sample, rtol=1e-4, atol=1e-4)


def stepped(scheduler: Any, output: Tensor, i: int, latents: Tensor, scale: float | None) -> Any:
    """Guidance and the scheduler's step over a UNet's output, as in diffusers' decoder pipelines."""
    noise_prediction, variance = output.split(4, dim=1)
    noise_prediction = guided(noise_prediction, scale)
    if scheduler.config.get("variance_type") == "learned_range":
        noise_prediction = torch.cat([noise_prediction, variance[-len(latents) :]], dim=1)  # the conditional half's
    return scheduler.step(noise_prediction, scheduler.timesteps[i], latents, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("scheduler", [SCHEDULERS[0], SCHEDULERS[-2]], ids=lambda s: type(s).__name__)
def test_hint_encoder_and_controlnet_step_are_a_step_of_diffusers(
    tiny_parts: tiny.Parts, scheduler: Any, scale: float | None, batch: int
) -> None:
    scheduler.set_timesteps(STEPS)
    branches = 1 if scale is None else 2
    latents, hint = 2 * torch.randn(batch, 4, 6, 10), torch.rand(batch, 3, 48, 80)
    embeds = torch.randn(branches * batch, tiny.EMBEDDING)
    i = 3
    unet = copy.deepcopy(tiny_parts.unet_controlnet)
    conditioning = {"image_embeds": embeds, "hint": torch.cat([hint] * branches)}
    output = unet(torch.cat([latents] * branches), scheduler.timesteps[i], None, added_cond_kwargs=conditioning).sample
    expected = stepped(scheduler, output, i, latents, scale)
    hint_latents = HintEncoder(unet)(hint.permute(0, 2, 3, 1))
    following, clean = ControlnetStep(unet, ranks=40)(
        latents=latents,
        noise=torch.randn(latents.shape, generator=torch.Generator().manual_seed(5)),
        guidance=weights(scale),
        image_embeds=embeds.unflatten(0, (branches, batch)),
        hint_latents=hint_latents,
        **table_feeds({**scheduler.config, "_class_name": type(scheduler).__name__}, i, latents.shape),
    )
    torch.testing.assert_close(clean, expected.pred_original_sample, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(following, expected.prev_sample, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("scale", [None, 3.0])
@pytest.mark.parametrize("scheduler", [SCHEDULERS[0], SCHEDULERS[-2]], ids=lambda s: type(s).__name__)
def test_inpaint_step_is_a_step_of_diffusers(
    tiny_parts: tiny.Parts, scheduler: Any, scale: float | None, batch: int
) -> None:
    scheduler.set_timesteps(STEPS)
    branches = 1 if scale is None else 2
    latents, known, known_noise = (2 * torch.randn(3, batch, 4, 6, 10)).unbind()
    mask = (torch.rand(batch, 1, 6, 10) < 0.5).float()
    embeds = torch.randn(branches * batch, tiny.EMBEDDING)
    i = 3
    seen = torch.cat([torch.cat([each] * branches) for each in (latents, known * mask, mask)], dim=1)
    output = tiny_parts.unet_inpaint(
        seen, scheduler.timesteps[i], None, added_cond_kwargs={"image_embeds": embeds}
    ).sample
    expected = stepped(scheduler, output, i, latents, scale)
    noised = scheduler.add_noise(known, known_noise, scheduler.timesteps[i + 1].reshape(1))
    kept = scheduler.alphas_cumprod[scheduler.timesteps[i + 1]]
    following, clean = InpaintStep(tiny_parts.unet_inpaint, ranks=40)(
        latents=latents,
        noise=torch.randn(latents.shape, generator=torch.Generator().manual_seed(5)),
        guidance=weights(scale),
        image_embeds=embeds.unflatten(0, (branches, batch)),
        mask=mask,
        known=known,
        known_noise=known_noise,
        known_scales=torch.stack([kept, 1 - kept]).sqrt(),
        **table_feeds({**scheduler.config, "_class_name": type(scheduler).__name__}, i, latents.shape),
    )
    torch.testing.assert_close(clean, expected.pred_original_sample, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(following, mask * noised + (1 - mask) * expected.prev_sample, rtol=1e-4, atol=1e-4)
    assert torch.equal(following[mask.expand_as(following) == 1], noised[mask.expand_as(noised) == 1])


def test_a_network_without_learned_variance_has_none() -> None:
    parts = tiny.parts(learned_variance=False)
    graph = DecoderStep(parts.unet, ranks=10)
    feeds = graph.feeds({"B": 2, "G": 1, "h": 4, "w": 4}, seed=0)
    feeds["coefficients"][6:] = torch.tensor([-1.0, -1.0, 1.0])
    quiet = graph(**feeds | {"noise": torch.zeros(2, 4, 4, 4)})[0]
    noisy = graph(**feeds)[0]
    torch.testing.assert_close(noisy - quiet, torch.exp(torch.tensor(-0.5)) * feeds["noise"])


def test_state_is_carried_by_the_multistep_coefficient(tiny_parts: tiny.Parts) -> None:
    graph = PriorStep(tiny_parts.prior)
    feeds = graph.feeds({"B": 2, "G": 1}, seed=0)
    moved = graph(**feeds | {"x0_before": feeds["x0_before"] + 1})[0]
    torch.testing.assert_close(moved - graph(**feeds)[0], torch.full_like(moved, feeds["coefficients"][5].item()))
    assert graph.state == {"latents": "latents_next", "x0_before": "x0"}


@pytest.mark.parametrize("sizes", [{"B": 1, "h": 5, "w": 3}, {"B": 2, "h": 4, "w": 8}])
@pytest.mark.parametrize("channels", [(32, 64), (32, 32, 64, 64)])
def test_movq_decoder_is_the_pipelines_post_processing(channels: tuple[int, ...], sizes: dict[str, int]) -> None:
    parts = tiny.parts(movq_channels=channels)
    latents = torch.randn(sizes["B"], 4, sizes["h"], sizes["w"])
    image = parts.movq.decode(latents, force_not_quantize=True)["sample"]
    expected = (image * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    graph = MovqDecoder(parts.movq)
    result = graph(latents)
    scale = 2 ** (len(channels) - 1)
    assert result.shape == (sizes["B"], scale * sizes["h"], scale * sizes["w"], 3)
    assert graph.outputs[0].shape == ("B", f"{scale}*h", f"{scale}*w", 3)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("sizes", [{"B": 1, "h": 5, "w": 3}, {"B": 2, "h": 4, "w": 8}])
@pytest.mark.parametrize("channels", [(32, 64), (32, 32, 64, 64)])
def test_movq_encoder_is_what_image_to_image_starts_from(channels: tuple[int, ...], sizes: dict[str, int]) -> None:
    parts = tiny.parts(movq_channels=channels)
    scale = 2 ** (len(channels) - 1)
    image = torch.rand(sizes["B"], scale * sizes["h"], scale * sizes["w"], 3)
    expected = parts.movq.encode(image.permute(0, 3, 1, 2) * 2 - 1)["latents"]
    graph = MovqEncoder(parts.movq)
    result = graph(image)
    assert result.shape == (sizes["B"], 4, sizes["h"], sizes["w"])
    assert graph.inputs[0].shape == ("B", f"{scale}*h", f"{scale}*w", 3)
    torch.testing.assert_close(result, expected)


def test_image_encoder_gives_what_the_prior_pipeline_mixes(tiny_parts: tiny.Parts) -> None:
    pixels = torch.randn(3, 3, 32, 32)
    expected = tiny_parts.image_encoder(pixels)["image_embeds"]
    torch.testing.assert_close(ImageEncoder(tiny_parts.image_encoder)(pixels), expected)


def test_text_encoder_gives_what_the_prior_pipeline_reads(tiny_parts: tiny.Parts) -> None:
    ids = tiny_parts.tokenizer(["a red circle", ""], padding="max_length", return_tensors="pt").input_ids
    expected = tiny_parts.text_encoder(ids)
    embeds, hidden = TextEncoder(tiny_parts.text_encoder)(ids)
    torch.testing.assert_close(embeds, expected.text_embeds)
    torch.testing.assert_close(hidden, expected.last_hidden_state)


def test_feeds_are_repeatable_and_of_the_declared_shapes(tiny_parts: tiny.Parts) -> None:
    unet = copy.deepcopy(tiny_parts.unet_controlnet)
    graphs = (
        TextEncoder(tiny_parts.text_encoder),
        ImageEncoder(tiny_parts.image_encoder),
        PriorStep(tiny_parts.prior),
        DecoderStep(tiny_parts.unet, 9),
        HintEncoder(unet),
        ControlnetStep(unet, 9),
        InpaintStep(tiny_parts.unet_inpaint, 9),
        MovqEncoder(copy.deepcopy(tiny_parts.movq)),
    )
    for graph in graphs:
        for sizes in (graph.example, *graph.checks):
            feeds, again = graph.feeds(sizes, seed=1), graph.feeds(sizes, seed=1)
            values = {**sizes, **{f"8*{side}": 8 * sizes[side] for side in ("h", "w") if side in sizes}}
            for spec in graph.inputs:
                assert feeds[spec.name].shape == tuple(values[d] if isinstance(d, str) else d for d in spec.shape)
                assert str(feeds[spec.name].dtype) == f"torch.{spec.dtype}"
                assert torch.equal(feeds[spec.name], again[spec.name])
        assert all(sizes["B"] != graph.example["B"] for sizes in graph.checks)
        assert {sizes["B"] > 1 for sizes in graph.checks} == {True, False}


def test_half_precision_keeps_the_update_in_float32(tiny_parts: tiny.Parts) -> None:
    half = tiny.parts().unet.half()
    graph, reference = DecoderStep(half, 40), DecoderStep(tiny_parts.unet, 40)
    feeds = graph.feeds({"B": 2, "G": 2, "h": 4, "w": 6}, seed=3)
    feeds["coefficients"][1] = feeds["coefficients"][4] = 0  # the network's share
    feeds["coefficients"][6:8] = -1.0  # and that of its variance
    for result, expected in zip(graph(**feeds), reference(**feeds), strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, rtol=0, atol=0)
