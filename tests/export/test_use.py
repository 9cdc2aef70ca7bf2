"""What is exported can be verified from the manifest alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kandinsky22 import backends
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.cli.verify import table
from kandinsky22.measure import inputs, verify

PICTURES = (
    "image_encoder",
    "hint_encoder",
    "decoder_step_controlnet",
    "decoder_step_inpaint",
    "decoder_forecast_inpaint",
    "movq_encoder",
)
SMALL = Profile(64, 64, 128, 2)


def test_openvino_computes_what_onnxruntime_does(shapes_bundle: Path) -> None:
    checks = verify.verify(
        Bundle(shapes_bundle),
        backends.get("openvino"),
        settings=backends.Settings("fp32"),
        profile=SMALL,
        components=PICTURES,
        places=("min", "max"),
    )
    assert {check.component for check in checks} == set(PICTURES)
    assert all(check.good for check in checks), table(checks)
    shapes = {(check.component, check.place): check.shapes for check in checks}
    assert shapes["movq_encoder", "min"] == {"image": (1, 64, 64, 3)}
    assert shapes["hint_encoder", "max"] == {"hint": (2, 128, 128, 3)}
    assert shapes["image_encoder", "max"] == {"pixel_values": (4, 3, 64, 64)}
    assert shapes["decoder_step_controlnet", "max"]["hint_latents"] == (2, 4, 16, 16)
    assert shapes["decoder_step_inpaint", "max"]["mask"] == (2, 1, 16, 16)


def test_the_inputs_are_in_their_ranges(shapes_bundle: Path) -> None:
    bundle = Bundle(shapes_bundle)
    shapes = {
        spec.name: spec.resolve({"B": 2, "G": 2, "h": 8, "w": 8})
        for name in PICTURES
        for spec in bundle.component(name).inputs
    }
    drawn = {name: inputs.feeds(bundle, name, shapes, 0) for name in PICTURES}
    for name, key in (("movq_encoder", "image"), ("hint_encoder", "hint")):
        picture = drawn[name][key]
        assert picture.dtype == "float32"
        assert 0 <= picture.min() < 0.1
        assert 0.9 < picture.max() <= 1
    inpaint = drawn["decoder_step_inpaint"]
    assert set(inpaint["mask"].flat) == {0, 1}
    assert (inpaint["known_scales"] ** 2).sum() == pytest.approx(1)
    for name, feeds in drawn.items():
        for spec in bundle.component(name).inputs:
            assert (feeds[spec.name].shape, feeds[spec.name].dtype) == (shapes[spec.name], spec.dtype)
