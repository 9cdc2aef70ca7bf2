"""Plans of real exports, by TensorRT for RTX: the trained checkpoint, dynamic and static."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kandinsky22.backends.tensorrt import build as plans
from kandinsky22.backends.tensorrt import choice, library
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import FEATURES, SHALLOWS
from kandinsky22_export import export
from kandinsky22_export.architectures.components import NETWORKS
from tests.runtime.plan_bundles import GPU

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed: no plan is built for real")
DYNAMIC, STATIC = Profile(64, 128, 256, 4), Profile(128, 128, 128, 1)


LIKE_THE_DECODER = ["decoder_step_controlnet", "decoder_step_inpaint"]
"""They differ from `decoder_step` by an input: their plans are for `make test-slow`, as those of one size are."""


@pytest.mark.parametrize(
    ("profile", "components"),
    [
        pytest.param(DYNAMIC, [name for name in NETWORKS if name not in LIKE_THE_DECODER], id="dynamic"),
        pytest.param(DYNAMIC, LIKE_THE_DECODER, id="dynamic-others", marks=pytest.mark.slow),
        pytest.param(STATIC, list(NETWORKS), id="static", marks=pytest.mark.slow),
    ],
)
def test_components_of_the_trained_checkpoint_become_plans(
    bundle_copy: Path, profile: Profile, components: list[str]
) -> None:
    bundle, rtx = Bundle(bundle_copy), library.flavour("tensorrt-rtx")
    records = plans.build(bundle, rtx, profile, components=components, progress=False)
    assert [record.component for record in records] == components
    for record in records:
        assert choice.verified_plan(bundle, record.component, rtx, GPU)[1].record == record
        assert set(record.shapes) == {spec.name for spec in bundle.component(record.component).inputs}
        has_network = "forecast" not in record.component
        assert set(record.report.products) == ({"Float"} if has_network else set())
        assert record.warnings == ()
        # The hint's encoder is convolutions alone.
        assert bool(record.report.attention) == (has_network and record.component != "hint_encoder")
        for name in {"image", "hint"} & set(record.shapes):
            smallest, _, largest = record.shapes[name]
            assert smallest[1:] == (profile.minimum, profile.minimum, 3)
            assert largest[1:] == (profile.maximum, profile.maximum, 3)


def test_shallow_steps_of_every_decoder_become_plans(shallow_bundle: Path, tmp_path: Path) -> None:
    """Features have as many pictures, branches and latents in the plan as all else."""
    bundle = Bundle(Path(shutil.copytree(shallow_bundle, tmp_path / "shallow")))
    names, rtx = [bundle.manifest.name_of(role) for role in SHALLOWS.values()], library.flavour("tensorrt-rtx")
    for record in plans.build(bundle, rtx, DYNAMIC, components=names, progress=False):
        assert choice.verified_plan(bundle, record.component, rtx, GPU)[1].record == record
        smallest, _, largest = record.shapes[FEATURES]
        assert (smallest[:2], smallest[3:]) == ((1, 1), (8, 8))
        assert (largest[:2], largest[3:]) == ((2, 4), (32, 32))
        assert set(record.report.products) <= {"Float"}
        assert record.warnings == ()


@pytest.mark.slow
def test_in_fp16_all_attention_is_fused_and_no_product_is_in_fp32(shapes_checkpoint: Path, tmp_path: Path) -> None:
    others = {"controlnet": str(shapes_checkpoint / "controlnet-depth"), "inpaint": str(shapes_checkpoint / "inpaint")}
    export(str(shapes_checkpoint / "decoder"), tmp_path / "fp16", precision="fp16", **others)
    bundle = Bundle(tmp_path / "fp16")
    for record in plans.build(bundle, library.flavour("tensorrt-rtx"), DYNAMIC, progress=False):
        report = record.report
        assert report.fused == report.fusable == report.attention, record.component
        assert bool(report.attention) == (record.component != "hint_encoder")
        assert set(report.products) == {"Half"}, record.component
        assert not {"gemm", "correlation"} & set(report.layers["Float"]), record.component
        assert record.warnings == ()
