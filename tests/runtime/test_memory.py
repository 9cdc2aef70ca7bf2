"""The estimate of memory: how it grows, what it reads of the machine, and the refusal."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kandinsky22 import InputError, MemoryLimitError, Pipeline, memory
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import ATTENTION_IN_PARTS
from kandinsky22.components import Run
from kandinsky22.request.request import Request
from kandinsky22.request.resolve import resolve

from .handmade import ROLES

OPENVINO = memory.COSTS["openvino", "bf16"]
"""Grows evenly with the pixels."""


def published(name: str, size: int, **changes: Any) -> float:
    """GiB of one component at its published size, in half precision unless told."""
    parameters = {
        "text_encoder": 0.695e9,
        "prior_step": 1.026e9,
        "decoder_step": 1.283e9,
        "movq_decoder": 43.1e6,
    }[name]
    return _estimate({name: parameters}, (size // 8) ** 2, **changes) / memory.GIB


def _estimate(
    parameters: dict[str, float],
    latent_pixels: int,
    variants: tuple[str, ...] = (),
    cost: memory.Cost = OPENVINO,
    kept: tuple[str, ...] = (),
    stored: int = 2,
    quantised: bool = False,
    **changes: Any,
) -> float:
    """Bytes of components with so many parameters, each of `stored` bytes in its file."""
    quantisation = "int8" if quantised else None
    components = {
        name: SimpleNamespace(
            role=ROLES[name][0], parameters=count, variants=variants, files=(name,), quantisation=quantisation
        )
        for name, count in parameters.items()
    }
    files = {name: SimpleNamespace(bytes=stored * count) for name, count in parameters.items()}
    by_role = {component.role: name for name, component in components.items()}
    manifest: Any = SimpleNamespace(
        components=components, files=files, downscale=8, roles=by_role.keys, name_of=by_role.__getitem__
    )
    job = memory.Demand(list(parameters), (1, latent_pixels), **{"pictures": 1, "at_once": 1, **changes})
    return memory.estimate(manifest, job, cost, kept)


@pytest.mark.parametrize(
    ("name", "size", "backend", "precision", "measured", "stored"),
    [
        ("movq_decoder", 512, "onnxruntime", "fp32", 3.1, 2),
        ("movq_decoder", 1024, "onnxruntime", "fp32", 5.7, 2),
        ("movq_decoder", 1024, "openvino", "bf16", 2.3, 2),
        ("movq_decoder", 512, "openvino", "fp32", 1.0, 2),
        ("movq_decoder", 1024, "openvino", "fp32", 2.9, 2),
        ("movq_decoder", 2048, "openvino", "bf16", 11.0, 2),
        ("movq_decoder", 2048, "openvino", "fp32", 10.8, 2),
        ("text_encoder", 512, "openvino", "fp32", 3.85, 2),
        ("prior_step", 512, "openvino", "fp32", 5.9, 2),
        ("text_encoder", 512, "openvino", "bf16", 2.5, 2),
        ("prior_step", 512, "openvino", "bf16", 4.0, 2),
        ("decoder_step", 512, "openvino", "bf16", 4.9, 2),
        ("decoder_step", 512, "openvino", "bf16", 8.1, 4),
    ],
)
def test_the_estimate_is_near_what_was_measured(
    name: str, size: int, backend: str, precision: str, measured: float, stored: int
) -> None:
    """On the published architecture, in GiB at the peak of the process."""
    estimated = published(name, size, cost=memory.COSTS[backend, precision], stored=stored)
    assert measured / 1.6 < estimated < measured * 1.6


@pytest.mark.parametrize(("name", "measured"), [("prior_step", 2.18), ("decoder_step", 3.32), ("movq_decoder", 2.64)])
def test_the_estimate_of_a_quantised_component_is_near_what_was_measured(name: str, measured: float) -> None:
    """At 1024x1024 on OpenVINO, in GiB; without being quantised it takes more."""
    int8 = memory.COSTS["openvino", "int8"]
    estimated = published(name, 1024, cost=int8, stored=1, quantised=True)
    assert measured / 1.4 < estimated < measured * 1.4
    assert estimated < published(name, 1024, cost=int8, stored=1)


@pytest.mark.parametrize(("size", "measured"), [(384, 7.3), (512, 6.53), (768, 6.86), (1024, 5.33), (1536, 6.0)])
def test_the_estimate_knows_which_kernels_stay_in_the_file(size: int, measured: float) -> None:
    """The published UNet with guidance on OpenVINO in fp32, in GiB: not the larger, the more."""
    estimated = published("decoder_step", size, cost=memory.COSTS["openvino", "fp32"])
    assert measured / 1.15 < estimated < measured * 1.15


def test_kernels_stay_in_the_file_only_where_every_step_leaves_them_there() -> None:
    """At 1024x1024 the smallest maps are of 16x16 pixels: 512 in two branches, and too few in one."""
    fp32 = memory.COSTS["openvino", "fp32"]
    always, sometimes, never = (
        published("decoder_step", 1024, cost=fp32, branches=branches) for branches in ((2,), (1, 2), (1,))
    )
    activations = 2 * 128**2 * 384 * fp32.unet / memory.GIB
    assert sometimes - always == pytest.approx(0.374 * 1.283e9 * 4 / memory.GIB)
    assert sometimes - never == pytest.approx(activations / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("asked", "branches"),
    [({}, {2}), ({"guidance_scale": 1.0}, {1}), ({"guidance_interval": (0, 0.5)}, {1, 2})],
)
def test_a_task_tells_in_how_many_branches_it_denoises(
    asked: dict[str, Any], branches: set[int], handmade_bundle: Bundle
) -> None:
    request = Request.of("text2img", prompt="a", height=64, width=64, num_inference_steps=2, **asked)
    assert resolve(request, handmade_bundle.manifest).demand.branches == branches


def test_attention_that_is_written_out_grows_with_the_square_of_the_pixels() -> None:
    """On ONNX Runtime, 12 heads look from each of 64x64 places at each, twice over, at 1024 pixels a side."""
    runtime = memory.COSTS["onnxruntime", "fp32"]
    flat = dataclasses.replace(runtime, score=0)
    extra = published("decoder_step", 1024, cost=runtime) - published("decoder_step", 1024, cost=flat)
    assert extra == pytest.approx(2 * 12 * 64**4 * 4 / memory.GIB)


def test_attention_in_parts_does_not() -> None:
    runtime = memory.COSTS["onnxruntime", "fp32"]
    whole, parts = (
        published("movq_decoder", 1024, cost=runtime, variants=each) for each in ((), (ATTENTION_IN_PARTS,))
    )
    assert whole - parts == pytest.approx(128**4 * 4 / memory.GIB)


def test_the_estimate_grows_with_what_it_says() -> None:
    small = _estimate({"decoder_step": 1e9}, 64**2)
    assert _estimate({"decoder_step": 1e9}, 128**2) - small == pytest.approx(3 * (small - _weights(1e9)))
    assert _estimate({"decoder_step": 1e9}, 64**2, at_once=3) == _estimate({"decoder_step": 1e9}, 3 * 64**2)
    assert _estimate({"decoder_step": 1e9}, 64**2, branches=(1,)) == _estimate({"decoder_step": 1e9}, 64**2 // 2)
    both = {"prior_step": 2e9, "decoder_step": 1e9}
    assert _estimate(both, 64**2) == max(_weights(2e9), small)
    assert _estimate(both, 64**2, kept=("prior_step",)) == pytest.approx(small + 2e9 * (2 + OPENVINO.weight))


def test_what_takes_turns_with_a_decoder_is_held_beside_it() -> None:
    alone = _estimate({"prior_step": 2e8, "decoder_step": 1e9}, 64**2)
    both = _estimate({"prior_step": 2e8, "decoder_step": 1e9, "decoder_step_shallow": 1e8}, 64**2)
    assert both - alone == pytest.approx(alone - _weights(1e9) + 1e8 * (2 + OPENVINO.weight))
    forecast = _estimate({"prior_step": 2e8, "decoder_step": 1e9, "decoder_forecast": 0}, 64**2)
    assert forecast == alone


def _weights(parameters: float) -> float:
    return memory.BASE + parameters * (2 + OPENVINO.weight)


def test_small_pictures_go_through_movq_together() -> None:
    """Seven of 384x384 have just under 2²⁰ pixels, whatever the decoder's batch is; eight are twice four."""
    one, four, seven, eight = (published("movq_decoder", 384, pictures=count) for count in (1, 4, 7, 8))
    assert eight == four
    assert seven - _weights(43.1e6) / memory.GIB == pytest.approx(7 * (one - _weights(43.1e6) / memory.GIB))
    assert published("movq_decoder", 1024, pictures=2) == published("movq_decoder", 1024)


def test_what_earlier_tasks_have_left_is_freed_where_a_task_would_not_fit_beside_it(handmade_bundle: Bundle) -> None:
    quick = {"height": 128, "width": 128, "num_inference_steps": 2, "seed": 0}
    with Pipeline.load(handmade_bundle.path, "onnxruntime", threads=1, memory_limit=None) as pipe:
        manifest = pipe.bundle.manifest
        for name, component in manifest.components.items():
            manifest.components[name] = dataclasses.replace(component, parameters=10**7)
        embeds = pipe.embed("a", prior_num_inference_steps=2)
        assert pipe._components.loaded == {"text_encoder", "prior_step"}
        task = memory.Demand(("decoder_step", "movq_decoder"), (16, 16), 1, 1)
        cost = memory.COSTS["onnxruntime", "fp32"]
        alone = memory.estimate(manifest, task, cost, task.components)
        together = memory.estimate(manifest, task, cost, manifest.components)
        pipe._components.memory_limit = (alone + together) / 2
        pipe(image_embeds=embeds, **quick)  # type: ignore[arg-type]
        assert pipe._components.loaded == {"decoder_step", "movq_decoder"}
        pipe._components.memory_limit = alone - 1
        with pytest.raises(MemoryLimitError, match="1 at once of 128x128"):
            pipe(image_embeds=embeds, **quick)  # type: ignore[arg-type]


def test_the_prior_alone_is_checked_too(handmade_bundle: Bundle) -> None:
    pipe = Pipeline.load(handmade_bundle.path, "onnxruntime", threads=1, memory_limit=0.25)
    with pytest.raises(MemoryLimitError, match=r"^The prior would take .*; ask for low_memory, or set memory_limit\.$"):
        pipe.embed("a", prior_num_inference_steps=2)


def test_what_cannot_fit_is_refused_with_the_limit(handmade_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = {"height": 512, "width": 256, "num_inference_steps": 2, "prior_num_inference_steps": 2, "seed": 0}
    with Pipeline.load(handmade_bundle.path, "onnxruntime", threads=1, memory_limit=0.25) as pipe:
        with monkeypatch.context() as patch:
            patch.delattr(Run, "use")
            with pytest.raises(MemoryLimitError) as raised:
                pipe("a", num_images_per_prompt=2, **quick)
        assert str(raised.value) == (
            "2 at once of 256x512 would take about 0.5 GiB of memory and the limit is 0.2 GiB; "
            "ask for a smaller picture or a smaller batch_size or low_memory, or set memory_limit."
        )
    for limit in (None, 64, "auto"):
        with Pipeline.load(handmade_bundle.path, "onnxruntime", threads=1, memory_limit=limit) as pipe:  # type: ignore[arg-type]
            assert np.shape(pipe("a", output_type="np", **quick).images) == (1, 512, 256, 3)


@pytest.mark.parametrize("limit", [0, -1, float("nan"), "much", True])
def test_impossible_limits_are_refused(limit: Any, handmade_bundle: Bundle) -> None:
    with pytest.raises(InputError, match=r"memory_limit is .*; expected a number above 0\."):
        Pipeline.load(handmade_bundle.path, "onnxruntime", memory_limit=limit)


def test_the_machine_s_limit_is_what_it_has_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 7000)
    assert memory.limit("auto") == 7000
    assert memory.limit(2) == 2 << 30
    assert memory.limit(None) is None
