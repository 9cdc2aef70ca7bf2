"""Plans of real exports, by TensorRT for RTX: the trained checkpoint, all components, dynamic and static."""

from __future__ import annotations

from pathlib import Path

import pytest

from kandinsky22 import plans
from kandinsky22.bundle import Bundle
from kandinsky22_export import export
from tests.runtime.plan_bundles import GPU

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed: no plan is built for real")
DYNAMIC, STATIC = plans.Profile(64, 128, 256, 4), plans.Profile(128, 128, 128, 1)


@pytest.mark.parametrize("profile", [DYNAMIC, STATIC], ids=str)
def test_every_component_of_the_trained_checkpoint_becomes_a_plan(bundle_copy: Path, profile: plans.Profile) -> None:
    bundle, rtx = Bundle(bundle_copy), plans.flavour("tensorrt-rtx")
    records = plans.build(bundle, rtx, profile, progress=False)
    assert [record.component for record in records] == list(bundle.manifest.components)
    for record in records:
        assert plans.verified_plan(bundle, record.component, rtx, GPU)[1] == record
        assert set(record.shapes) == {spec.name for spec in bundle.component(record.component).inputs}
        assert set(record.report.products) == {"Float"}
        assert record.warnings == ()
    assert {record.component for record in records if record.report.attention} == (
        set(bundle.manifest.components) - {"hint_encoder"}  # which is convolutions alone
    )


@pytest.mark.slow
def test_in_fp16_all_attention_is_fused_and_no_product_is_in_fp32(shapes_checkpoint: Path, tmp_path: Path) -> None:
    export(str(shapes_checkpoint / "decoder"), tmp_path / "fp16", precision="fp16")
    bundle = Bundle(tmp_path / "fp16")
    for record in plans.build(bundle, plans.flavour("tensorrt-rtx"), DYNAMIC, progress=False):
        report = record.report
        assert report.fused == report.fusable == report.attention > 0, record.component
        assert set(report.products) == {"Half"}, record.component
        assert not {"gemm", "correlation"} & set(report.layers["Float"]), record.component
        assert record.warnings == ()
