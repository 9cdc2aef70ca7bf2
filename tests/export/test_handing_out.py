"""A step graph that hands out the network's output, beside what feeds the next step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kandinsky22.arrays import Array
from kandinsky22.backends import Settings
from kandinsky22.backends.onnxruntime.cpu import OnnxRuntimeComponent
from kandinsky22_export.graphs.encoders import HintEncoder
from kandinsky22_export.graphs.steps import ControlnetStep, DecoderStep, InpaintStep, PriorStep, Step
from kandinsky22_export.tracing.export_graph import export_graph
from tests import tiny

MAKERS: dict[str, Callable[..., Step]] = {
    "prior": lambda parts, **options: PriorStep(parts.prior, **options),
    "decoder": lambda parts, **options: DecoderStep(parts.unet, 40, **options),
    "controlnet": lambda parts, **options: ControlnetStep(parts.unet_controlnet, 40, **options),
    "inpaint": lambda parts, **options: InpaintStep(parts.unet_inpaint, 40, **options),
}
SIZES = {"B": 3, "G": 2, "h": 4, "w": 6}


def made(name: str, parts: tiny.Parts, **options: Any) -> Step:
    return MAKERS[name](copy.deepcopy(parts), **options).eval()


def networks_own(name: str, parts: tiny.Parts, feeds: Mapping[str, Tensor]) -> Tensor:
    """What diffusers' module says for the feeds of a step, all branches after one another."""
    both = torch.cat([feeds["latents"]] * 2)
    if name == "prior":
        output: Tensor = parts.prior(
            both,
            feeds["timestep"],
            feeds["text_embeds"].flatten(0, 1),
            feeds["text_hidden"].flatten(0, 1),
            feeds["text_mask"].flatten(0, 1),
        ).predicted_image_embedding
        return output
    conditioning = {"image_embeds": feeds["image_embeds"].flatten(0, 1)}
    unet = {"decoder": parts.unet, "controlnet": parts.unet_controlnet, "inpaint": parts.unet_inpaint}[name]
    if name == "controlnet":
        conditioning["hint"] = torch.cat([feeds["hint"]] * 2)
    if name == "inpaint":
        masked = torch.cat([feeds["known"] * feeds["mask"], feeds["mask"]], dim=1)
        both = torch.cat([both, torch.cat([masked] * 2)], dim=1)
    sample: Tensor = unet(both, feeds["timestep"], None, added_cond_kwargs=conditioning).sample
    return sample


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_the_output_is_the_networks_own_guided_and_with_all_its_channels(name: str, learned: bool) -> None:
    parts = tiny.parts(learned_variance=learned)
    graph = made(name, parts, hand_out_model=True)
    feeds = graph.feeds(SIZES, seed=4)
    seen = dict(feeds)
    if name == "controlnet":
        hint = torch.rand(3, 3, 32, 48)
        seen["hint"] = hint
        feeds["hint_latents"] = HintEncoder(copy.deepcopy(parts.unet_controlnet))(hint.permute(0, 2, 3, 1))
    unconditional, conditional = networks_own(name, parts, seen).chunk(2)
    channels = feeds["latents"].shape[1]
    guided = unconditional - 4 * (unconditional - conditional)
    expected = torch.cat([guided[:, :channels], conditional[:, channels:]], dim=1)
    following, x0, model = graph(**feeds)
    torch.testing.assert_close(model, expected, rtol=1e-4, atol=1e-4)
    assert model.shape[1] == (2 * channels if learned and name != "prior" else channels)
    assert graph.outputs[2].resolve(SIZES) == model.shape
    plain = made(name, parts)
    assert [spec.name for spec in plain.outputs] == ["latents_next", "x0"]
    for ours, theirs in zip(plain(**feeds), (following, x0), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["prior", pytest.param("decoder", marks=pytest.mark.slow)])  # slow to trace
def test_a_loop_shows_it_and_goes_on_as_without_it(name: str, tmp_path: Path, drawn_parts: tiny.Parts) -> None:
    component = export_graph(lambda: made(name, drawn_parts, hand_out_model=True), tmp_path, "fp32", lambda _: None)
    assert [spec.name for spec in component.outputs] == ["latents_next", "x0", "model"]
    assert component.state == {"latents": "latents_next", "x0_before": "x0"}
    graph = made(name, drawn_parts, hand_out_model=True)
    feeds = graph.feeds(SIZES, seed=5)
    rows = [graph.feeds(SIZES, seed=seed) for seed in (6, 7, 8)]
    shown: list[Mapping[str, Array]] = []
    loaded = OnnxRuntimeComponent(name, tmp_path / f"{graph.name}.onnx", component, Settings("fp32", 1))
    state = loaded.loop(
        {name: feeds[name].numpy() for name in component.state},
        {name: [row[name].numpy() for row in rows] for name in component.per_step},
        {key: each.numpy() for key, each in feeds.items() if key not in {*component.state, *component.per_step}},
        lambda step, tensors: shown.append(dict(tensors)),
    )
    assert state.keys() == {"latents", "x0_before"}
    assert len(shown) == 3
    for row, tensors in zip(rows, shown, strict=True):
        following, x0, model = graph(**{**feeds, **{key: row[key] for key in component.per_step}})
        feeds |= {"latents": following, "x0_before": x0}
        for key, expected in (("latents", following), ("x0_before", x0), ("model", model)):
            np.testing.assert_allclose(tensors[key], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(state["latents"], shown[-1]["latents"])
