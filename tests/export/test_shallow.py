"""Shallow steps: where decoders are cut, that what is left computes the same, and what diffusers' UNet makes of it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import UNet2DConditionModel
from onnx import TensorProto, helper

from kandinsky22 import ExportError, InputError
from kandinsky22.arrays import Array
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import DECODERS, FEATURES, SHALLOWS, Component, Role, TensorSpec
from kandinsky22_export.quantise.calibration import PAINTERS, PROMPTS, Calibration
from kandinsky22_export.quantise.session import session
from kandinsky22_export.refine import refine
from kandinsky22_export.shallow import bundle as shallow_bundles
from kandinsky22_export.shallow import choice, cuts
from kandinsky22_export.shallow.bundle import add_shallow_steps, hand_out_features
from kandinsky22_export.shallow.choice import Pair
from kandinsky22_export.write_bundle import export, finish

UNETS = {
    Role.DECODER: "decoder",
    Role.CONTROLNET_DECODER: "controlnet-depth",
    Role.INPAINT_DECODER: "inpaint",
}
DRAW = np.random.default_rng(7)


@contextmanager
def tapped(unet: Any, branch: int, given: torch.Tensor | None = None) -> Iterator[list[torch.Tensor]]:
    """What comes up into a residual block of diffusers' top level, 0 being the last; `given` takes its place."""
    blocks = unet.up_blocks[-1].resnets
    place = len(blocks) - 1 - branch
    below = blocks[place - 1] if place else unet.up_blocks[-2]
    seen: list[torch.Tensor] = []

    def hook(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output)
        return output if given is None else given

    handle = below.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def fed(component: Component, sizes: dict[str, int]) -> dict[str, Array]:
    """Inputs of a step, guided by 4."""
    feeds = {
        spec.name: DRAW.standard_normal(spec.resolve(sizes)).astype(np.float32)
        for spec in component.inputs
        if spec.dtype == "float32"
    }
    feeds |= {"timestep": np.array([500], np.float32), "ranks": np.array([3, 4]), "rank_weight": np.float32([0.5])}
    feeds |= {"coefficients": np.float32([1.1, -0.4, 0.6, 0.5, -0.2, 0.3, -3.0, -1.0, 1.0])}
    feeds |= {"thresholding": np.float32([1, 3.4e38, 1]), "guidance": np.float32([-3, 4])}
    if "mask" in feeds:
        feeds["mask"] = (feeds["mask"] > 0).astype(np.float32)
    return feeds


def diffusers_model(unet: Any, feeds: dict[str, Array]) -> Array:
    """What diffusers' UNet gives for the feeds of a step, guided, with the variance of the last branch."""
    torched = {name: torch.from_numpy(array) for name, array in feeds.items()}
    sample, more = torched["latents"], {"image_embeds": torched["image_embeds"].flatten(0, 1)}
    if "mask" in torched:
        sample = torch.cat([sample, torched["known"] * torched["mask"], torched["mask"]], dim=1)
    if "hint_latents" in torched:
        unet.add_embedding.input_hint_block = torch.nn.Identity()
        more["hint"] = torch.cat([torched["hint_latents"]] * 2)
    with torch.no_grad():
        output = unet(torch.cat([sample] * 2), torched["timestep"], None, added_cond_kwargs=more).sample
    away, towards = output.chunk(2)
    guided = away[:, :4] + 4 * (towards[:, :4] - away[:, :4])
    return np.asarray(torch.cat([guided, towards[:, 4:]], dim=1))


@pytest.fixture(scope="module")
def unets(shapes_checkpoint: Path) -> dict[Role, Any]:
    return {
        role: UNet2DConditionModel.from_pretrained(shapes_checkpoint / name / "unet").eval()
        for role, name in UNETS.items()
    }


@pytest.mark.parametrize("role", UNETS, ids=str)
@pytest.mark.parametrize("sizes", [{"B": 2, "G": 2, "h": 16, "w": 8}, {"B": 1, "G": 2, "h": 8, "w": 24}])
def test_features_are_what_comes_up_in_diffusers_unet(
    role: Role, sizes: dict[str, int], shallow_bundle: Path, unets: dict[Role, Any]
) -> None:
    manifest = Bundle(shallow_bundle).manifest
    component = manifest.components[manifest.name_of(role)]
    cut = manifest.components[manifest.name_of(SHALLOWS[role])].cut
    assert cut is not None
    feeds = fed(component, sizes)
    with tapped(unets[role], cut.branch) as seen:
        model = diffusers_model(unets[role], feeds)
    given = session(shallow_bundle / component.files[0]).run(["model", FEATURES], feeds)
    np.testing.assert_allclose(given[0], model, rtol=1e-3, atol=1e-3)
    expected = seen[0].unflatten(0, (2, -1)).numpy()
    assert given[1].shape == expected.shape == component.outputs[-1].resolve(sizes)
    np.testing.assert_allclose(given[1], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("role", UNETS, ids=str)
def test_a_shallow_step_is_diffusers_unet_with_other_features(
    role: Role, shallow_bundle: Path, unets: dict[Role, Any]
) -> None:
    manifest = Bundle(shallow_bundle).manifest
    component = manifest.components[manifest.name_of(SHALLOWS[role])]
    assert component.cut is not None
    feeds = fed(component, {"B": 2, "G": 2, "h": 16, "w": 8})
    with tapped(unets[role], component.cut.branch, torch.from_numpy(feeds[FEATURES]).flatten(0, 1)):
        model = diffusers_model(unets[role], feeds)
    (given,) = session(shallow_bundle / component.files[0]).run(["model"], feeds)
    np.testing.assert_allclose(given, model, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("role", UNETS, ids=str)
def test_with_its_own_features_it_is_the_whole_step_to_the_bit(role: Role, shallow_bundle: Path) -> None:
    assert_same_steps(shallow_bundle, role)


def assert_same_steps(folder: Path, role: Role) -> None:
    """All outputs of a step, against its shallow step given the features of the same."""
    manifest = Bundle(folder).manifest
    whole, shallow = (manifest.components[manifest.name_of(each)] for each in (role, SHALLOWS[role]))
    names = [spec.name for spec in shallow.outputs]
    assert names == ["latents_next", "x0", "model"]
    assert (shallow.state, shallow.scheduler) == (whole.state, whole.scheduler)
    feeds = fed(whole, {"B": 2, "G": 1, "h": 8, "w": 24}) | {"guidance": np.float32([1])}
    *expected, features = session(folder / whole.files[0]).run([*names, FEATURES], feeds)
    taken = {spec.name: (feeds | {FEATURES: features})[spec.name] for spec in shallow.inputs}
    for ours, theirs in zip(session(folder / shallow.files[0]).run(names, taken), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_shallow_step_has_its_own_few_weights(shallow_bundle: Path) -> None:
    manifest = Bundle(shallow_bundle).manifest
    for role, other in SHALLOWS.items():
        whole, shallow = (manifest.components[manifest.name_of(each)] for each in (role, other))
        sizes = [sum(manifest.files[file].bytes for file in each.files) for each in (whole, shallow)]
        assert sizes[1] < sizes[0] / 10
        weights = onnx.load(shallow_bundle / shallow.files[0]).graph.initializer
        assert shallow.parameters == sum(int(np.prod(each.dims)) for each in weights) < whole.parameters / 10
        modes = {(shallow_bundle / file).stat().st_mode for file in (*whole.files, *shallow.files)}
        assert len(modes) == 1, "some files cannot be read by others"


def test_what_is_not_asked_for_is_not_in_a_bundle(shapes_bundle: Path) -> None:
    manifest = Bundle(shapes_bundle).manifest
    assert not manifest.roles() & set(SHALLOWS.values())
    assert all(
        FEATURES not in {spec.name for spec in component.outputs}
        for component in manifest.components.values()
        if component.role in DECODERS
    )


# Quantised


def test_in_int8_it_is_still_the_whole_step_to_the_bit(shapes_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shapes_bundle, tmp_path / "shapes"))
    manifest = Bundle(folder).manifest
    painters = {name: component for name, component in manifest.components.items() if name in PAINTERS}
    manifest = finish(dataclasses.replace(manifest, components=painters), folder)
    calibration = Calibration(PROMPTS[:1], samples=3)
    finish(refine(folder, manifest, "int8", calibration, lambda *_: None, shallow=True), folder)
    assert_same_steps(folder, Role.DECODER)
    components = Bundle(folder).manifest.components
    whole, shallow = (components[name].quantisation for name in ("decoder_step", "decoder_step_shallow"))
    assert shallow is not None
    assert whole is not None
    assert 0 < shallow.layers < whole.layers
    assert shallow.kept.keys() <= whole.kept.keys()
    graph = onnx.load(folder / "onnx/decoder_step_shallow.onnx").graph
    layers = [node for node in graph.node if node.op_type in ("Conv", "MatMul")]
    assert shallow.layers + len(shallow.kept) == len(layers)
    assert json.loads((folder / "manifest.json").read_text())["precision"] == "int8"


# Where to cut


def test_branches_are_diffusers_residual_blocks_of_the_top_level(shallow_bundle: Path, unets: dict[Role, Any]) -> None:
    manifest = Bundle(shallow_bundle).manifest
    for role, unet in unets.items():
        component = manifest.components[manifest.name_of(role)]
        path = shallow_bundle / component.files[0]
        model = onnx.load(path, load_external_data=False)
        found = cuts.branches(model)
        assert len(found) == len(unet.up_blocks[-1].resnets)
        feeds = fed(component, {"B": 1, "G": 2, "h": 16, "w": 8})
        model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in found)
        file = path.with_name(f"branches-{role}.onnx")
        file.write_bytes(model.SerializeToString())
        try:
            given = session(file).run(found, feeds)
        finally:
            file.unlink()
        for branch, features in enumerate(given):
            with tapped(unet, branch) as seen:
                diffusers_model(unet, feeds)
            np.testing.assert_allclose(features, seen[0].numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("errors", "branch"),
    [((0.1, 0.1), 0), ((0.12, 0.1, 0.1), 0), ((0.126, 0.1), 1), ((0.5, 0.3, 0.124, 0.1), 2), ((0.1,), 0)],
)
def test_the_shallowest_branch_whose_error_is_near_the_least_is_chosen(
    errors: tuple[float, ...], branch: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    onnx.save(joined(), tmp_path / "step.onnx")
    names = [f"branch {i}" for i in range(len(errors))]
    monkeypatch.setattr(cuts, "branches", lambda model: names)
    monkeypatch.setattr(choice, "_features", lambda *_: [])
    monkeypatch.setattr(choice, "_error", lambda _, __, name, *___: errors[names.index(name)])
    found = choice.choose(tmp_path / "step.onnx", step(), [Pair({}, {})] * 5)
    assert found is not None
    name, cut = found
    assert (name, cut.branch, cut.errors, cut.states) == (names[branch], branch, errors, 5)


def test_errors_are_those_of_diffusers_unet_with_features_of_the_step_before(
    shallow_bundle: Path, unets: dict[Role, Any]
) -> None:
    manifest = Bundle(shallow_bundle).manifest
    component, unet = manifest.components["decoder_step"], unets[Role.DECODER]
    sizes = {"B": 2, "G": 2, "h": 8, "w": 8}
    before, now = fed(component, sizes), fed(component, sizes)
    found = choice.choose(shallow_bundle / component.files[0], component, [Pair(before, now)])
    assert found is not None
    whole = diffusers_model(unet, now)
    for branch, error in enumerate(found[1].errors):
        with tapped(unet, branch) as seen:
            diffusers_model(unet, before)
        with tapped(unet, branch, seen[0]):
            wrong = diffusers_model(unet, now) - whole
        assert error == pytest.approx(np.linalg.norm(wrong) / np.linalg.norm(whole), rel=1e-3)


def test_neighbours_of_a_run_are_kept() -> None:
    states: list[Any] = [{"step": np.array(step)} for step in range(20)]
    kept = choice.pairs_of(states)
    assert [int(each["step"]) for each in kept] == [3, 4, 9, 10, 14, 15]
    assert [(int(a["step"]), int(b["step"])) for a, b in choice.pairs(kept)] == [(3, 4), (9, 10), (14, 15)]


# Refusals


def step() -> Component:
    return Component(
        role=Role.DECODER,
        files=("onnx/step.onnx",),
        inputs=(TensorSpec("latents", "float32", ("B", 4, "h", "w")),),
        outputs=(TensorSpec("latents_next", "float32", ("B", 4, "h", "w")),),
        precision="fp32",
        parameters=0,
    )


def joined() -> onnx.ModelProto:
    """Two inputs that are joined before the only convolution, as latents and a hint are."""
    spec = helper.make_tensor_value_info
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [4, 8, 1, 1], [0.1] * 32)
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Concat", ["latents", "hint_latents"], ["both"], "join", axis=1),
                helper.make_node("Conv", ["both", "weight"], ["latents_next"], "conv"),
            ],
            "step",
            [spec(name, TensorProto.FLOAT, ["B", 4, "h", "w"]) for name in ("latents", "hint_latents")],
            [spec("latents_next", TensorProto.FLOAT, ["B", 4, "h", "w"])],
            [weight],
        )
    )


def test_a_network_without_branches_is_refused(
    shapes_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cuts.branches(joined()) == []
    monkeypatch.setattr(choice.cuts, "branches", lambda model: [])
    with pytest.raises(
        ExportError, match=r"^decoder_step has no branch at which a shallow step could be cut: .*--shal"
    ):
        hand_out_features(shapes_bundle, Bundle(shapes_bundle).manifest, {"decoder_step": []}, lambda *_: None)


def test_one_that_computes_something_else_is_refused(
    shallow_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(shallow_bundle, tmp_path / "shapes"))
    manifest = Bundle(folder).manifest
    decoder = manifest.components["decoder_step"]
    spec = decoder.outputs[-1]
    cut_off = cuts.cut_off

    def wrong(model: onnx.ModelProto, given: TensorSpec) -> None:
        cut_off(model, given)
        (node,) = (node for node in model.graph.node if node.name == "features_in/cast")
        node.input[0], scaled = "twice", node.input[0]
        model.graph.node.insert(4, helper.make_node("Add", [scaled, scaled], ["twice"], "twice"))

    monkeypatch.setattr(cuts, "cut_off", wrong)
    states = [fed(decoder, {"B": 1, "G": 2, "h": 8, "w": 8})]
    shallow = manifest.components["decoder_step_shallow"].cut
    assert shallow is not None
    assert spec.name == FEATURES
    chosen = {"decoder_step": shallow_bundles.Chosen(shallow, states)}
    message = (
        r"^The graph of decoder_step_shallow differs from the decoder that it is cut from: it is off by .* allowed"
    )
    with pytest.raises(ExportError, match=message):
        add_shallow_steps(folder, manifest, chosen, lambda *_: None)


def test_a_bundle_that_paints_nothing_has_none(shapes_checkpoint: Path, tmp_path: Path) -> None:
    message = (
        "Quantised graphs and shallow steps are made by painting, which needs text_encoder, prior_step, movq_decoder;"
    )
    with pytest.raises(ExportError, match=re.escape(message)):
        export(str(shapes_checkpoint / "decoder"), tmp_path / "none", components=["decoder_step"], shallow=True)
    assert not (tmp_path / "none").exists()


def test_a_calibration_without_its_use_is_refused(shapes_checkpoint: Path, tmp_path: Path) -> None:
    message = "A calibration is for precision int8, fp8 and for shallow steps, not for fp32 alone; leave it out."
    with pytest.raises(InputError, match=re.escape(message)):
        export(str(shapes_checkpoint / "decoder"), tmp_path / "none", calibration=Calibration())
