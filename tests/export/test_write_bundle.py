"""The bundle as a whole: what the files compute, what the manifest says, and that it is whole or absent."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.pipelines.kandinsky2_2.pipeline_kandinsky2_2_inpainting import prepare_mask
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import CLIPTokenizer

from kandinsky22 import schedulers
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.manifest import Component, Geometry, ImageProcessor, Limits, Manifest, Text
from kandinsky22.errors import CheckpointError, ExportError, InputError, KandinskyError
from kandinsky22.schedulers import schedule
from kandinsky22_export import export, replacing, write_bundle
from kandinsky22_export.architectures import components
from kandinsky22_export.graphs import rewrites
from kandinsky22_export.graphs.base import Graph
from kandinsky22_export.random_weights import random_checkpoint
from tests import tiny

PROMPTS = ["", "A red circle!", "cirre  red,\n\tit's 日本 🐱 <|endoftext|> x", "many words " * 50]


def run(bundle: Path, component: str, **feeds: torch.Tensor) -> list[torch.Tensor]:
    session = onnxruntime.InferenceSession(bundle / "onnx" / f"{component}.onnx")
    return [torch.from_numpy(out) for out in session.run(None, {key: value.numpy() for key, value in feeds.items()})]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def altered_movq(source: Path, destination: Path) -> Iterator[dict[str, torch.Tensor]]:
    """Copy a repository, and write the weights of its MoVQ as they are altered."""
    shutil.copytree(source, destination)
    path = destination / "movq" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    yield weights
    save_file(weights, path, metadata={"format": "pt"})


EMBEDDING = 96
SIZES = pytest.mark.parametrize(("batch", "height", "width", "scale"), [(1, 8, 16, 4.0), (4, 16, 8, None)])
"""Latent sizes that were neither traced nor checked."""


def denoise(
    bundle: Path,
    component: str,
    scheduler: Any,
    conditioning: list[torch.Tensor],
    start: torch.Tensor,
    scale: float | None,
    constants: dict[str, torch.Tensor] | None = None,
    per_step: Callable[[int], dict[str, torch.Tensor]] = lambda i: {},
) -> np.ndarray[Any, Any]:
    """Three steps through a bundle's files and the post-processing, with noise of the seed 1: pictures.

    `conditioning` is the negative embeddings and the embeddings.
    """
    table = schedulers.solve({**scheduler.config, "_class_name": "DDPMScheduler"}, 3)
    ranks, weight = table.thresholding.ranks(start[0].numel())
    generator = torch.Generator().manual_seed(1)
    state = {"latents": start, "x0_before": torch.zeros_like(start)}
    for i, timestep in enumerate(table.timesteps):
        noise = torch.randn(start.shape, generator=generator) if table.noisy[i] else torch.zeros(start.shape)
        following, clean, _ = run(
            bundle,
            component,
            **state,
            timestep=torch.tensor([float(timestep)]),
            coefficients=torch.from_numpy(table.coefficients[i].copy()),
            noise=noise,
            guidance=torch.ones(1) if scale is None else torch.tensor([1 - scale, scale]),
            thresholding=torch.from_numpy(table.thresholding.array),
            ranks=torch.from_numpy(ranks),
            rank_weight=torch.from_numpy(weight),
            image_embeds=torch.stack(conditioning[-1:] if scale is None else conditioning),
            **(constants or {}),
            **per_step(i),
        )
        state = {"latents": following, "x0_before": clean}
    (image,) = run(bundle, "movq_decoder", latents=state["latents"])
    assert image.shape == (len(start), 8 * start.shape[2], 8 * start.shape[3], 3)
    return image.numpy()


def diffusers_pictures(
    pipeline: Any, conditioning: list[torch.Tensor], start: torch.Tensor, scale: float | None, **inputs: Any
) -> np.ndarray[Any, Any]:
    """The same three steps by one of diffusers' decoder pipelines."""
    pipeline.set_progress_bar_config(disable=True)
    negative, embeds = conditioning
    images: np.ndarray[Any, Any] = pipeline(
        image_embeds=embeds,
        negative_image_embeds=negative,
        height=8 * start.shape[2],
        width=8 * start.shape[3],
        num_inference_steps=3,
        guidance_scale=scale or 1.0,
        latents=start,
        generator=torch.Generator().manual_seed(1),
        output_type="np",
        **inputs,
    ).images
    return images


@pytest.fixture
def published(shapes_parts: tiny.Parts) -> tiny.Parts:
    """The modules with the published decoder's scheduler: a learned variance and dynamic thresholding."""
    return dataclasses.replace(shapes_parts, scheduler=DDPMScheduler(**tiny.PUBLISHED))


@SIZES
def test_the_decoders_files_are_diffusers_pipeline(
    shapes_bundle: Path, published: tiny.Parts, batch: int, height: int, width: int, scale: float | None
) -> None:
    conditioning, start = [*torch.randn(2, batch, EMBEDDING)], torch.randn(batch, 4, height, width)
    expected = diffusers_pictures(published.decoder_pipeline(), conditioning, start, scale)
    result = denoise(shapes_bundle, "decoder_step", published.scheduler, conditioning, start, scale)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


@SIZES
def test_the_controlnets_files_are_diffusers_pipeline(
    shapes_bundle: Path, published: tiny.Parts, batch: int, height: int, width: int, scale: float | None
) -> None:
    conditioning, start = [*torch.randn(2, batch, EMBEDDING)], torch.randn(batch, 4, height, width)
    hint = torch.rand(batch, 3, 8 * height, 8 * width)
    expected = diffusers_pictures(published.controlnet_pipeline(), conditioning, start, scale, hint=hint)
    (hint_latents,) = run(shapes_bundle, "hint_encoder", hint=hint.permute(0, 2, 3, 1).contiguous())
    constants = {"hint_latents": hint_latents}
    result = denoise(
        shapes_bundle, "decoder_step_controlnet", published.scheduler, conditioning, start, scale, constants
    )
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


@SIZES
def test_the_inpainting_files_are_diffusers_pipeline(
    shapes_bundle: Path, published: tiny.Parts, batch: int, height: int, width: int, scale: float | None
) -> None:
    conditioning, start = [*torch.randn(2, batch, EMBEDDING)], torch.randn(batch, 4, height, width)
    image = torch.rand(1, 3, 8 * height, 8 * width).repeat(batch, 1, 1, 1)
    repaint = (torch.arange(8 * width) < 4 * width).float().repeat(batch, 1, 8 * height, 1)
    scheduler = published.scheduler
    expected = diffusers_pictures(
        published.inpaint_pipeline(), conditioning, start, scale, image=image * 2 - 1, mask_image=repaint.clone()
    )
    (known,) = run(shapes_bundle, "movq_encoder", image=image.permute(0, 2, 3, 1).contiguous())
    mask = prepare_mask(functional.interpolate(1 - repaint, known.shape[-2:]))
    assert 0 < mask.mean() < 0.5
    following = [*scheduler.timesteps[1:], None]

    def per_step(i: int) -> dict[str, torch.Tensor]:
        kept = torch.tensor(1.0) if following[i] is None else scheduler.alphas_cumprod[following[i]]
        return {"known_scales": torch.stack([kept, 1 - kept]).sqrt()}

    constants = {"mask": mask, "known": known, "known_noise": start}
    result = denoise(shapes_bundle, "decoder_step_inpaint", scheduler, conditioning, start, scale, constants, per_step)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


def test_pictures_are_embedded_as_in_diffusers(shapes_bundle: Path, shapes_parts: tiny.Parts) -> None:
    pixels = torch.randn(4, 3, 64, 64)
    (embeds,) = run(shapes_bundle, "image_encoder", pixel_values=pixels)
    torch.testing.assert_close(embeds, shapes_parts.image_encoder(pixels).image_embeds, rtol=1e-5, atol=1e-5)


def test_text_becomes_what_diffusers_makes_of_it(shapes_bundle: Path, shapes_parts: tiny.Parts) -> None:
    embeds, hidden, mask = shapes_parts.prior_pipeline()._encode_prompt(PROMPTS, "cpu", 1, False)
    text = Bundle(shapes_bundle).manifest.text
    tokenizer = Tokenizer.from_file(str(shapes_bundle / "tokenizer.json"))
    assert text is not None
    assert tokenizer.padding is None
    assert tokenizer.truncation is None
    tokenizer.enable_truncation(text.max_length)
    tokenizer.enable_padding(length=text.max_length, pad_id=text.pad_token_id)
    encoded = tokenizer.encode_batch(PROMPTS)
    result = run(shapes_bundle, "text_encoder", input_ids=torch.tensor([e.ids for e in encoded]))
    assert torch.equal(torch.tensor([e.attention_mask for e in encoded]).bool(), mask)
    torch.testing.assert_close(result[0], embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result[1], hidden, rtol=1e-5, atol=1e-5)


def test_constants_are_diffusers_own(shapes_bundle: Path, shapes_parts: tiny.Parts) -> None:
    constants = np.load(shapes_bundle / "constants.npz")
    zero = shapes_parts.prior_pipeline().get_zero_embed(1).detach()
    shapes = dict.fromkeys(("zero_image_embeds", "clip_mean", "clip_std"), (1, EMBEDDING))
    shapes |= {"preview_weight": (4, 3), "preview_bias": (3,)}
    assert {name: constants[name].shape for name in constants.files} == shapes
    assert {constants[name].dtype for name in constants.files} == {np.dtype(np.float32)}
    np.testing.assert_allclose(constants["zero_image_embeds"], zero, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(constants["clip_mean"], shapes_parts.prior.clip_mean.detach())
    np.testing.assert_array_equal(constants["clip_std"], shapes_parts.prior.clip_std.detach())


def test_the_manifest(shapes_bundle: Path, shapes_manifest: Manifest, shapes_parts: tiny.Parts) -> None:
    assert (shapes_manifest.name, shapes_manifest.precision, shapes_manifest.opset) == ("shapes", "fp32", 23)
    assert list(shapes_manifest.components) == list(components.NETWORKS)
    assert shapes_manifest.schedulers.keys() == {"prior", "decoder", "controlnet", "inpaint"}
    assert shapes_manifest.schedulers["decoder"]["_class_name"] == "DDPMScheduler"
    assert shapes_manifest.schedulers["prior"]["_class_name"] == "UnCLIPScheduler"
    assert shapes_manifest.text == Text(max_length=77, pad_token_id=shapes_parts.tokenizer.pad_token_id)
    assert shapes_manifest.geometry == Geometry(
        embedding_dim=EMBEDDING,
        latent_channels=4,
        downscale=8,
        learned_variance=True,
        default_size=128,
        image_size=64,
    )
    assert shapes_manifest.image_processor == ImageProcessor(
        size=64,
        crop=64,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        resample="bicubic",
    )
    assert shapes_manifest.limits == Limits(max_size=2048, ranks=1312)
    assert shapes_manifest.source["versions"]["torch"] == torch.__version__
    assert shapes_manifest.components["prior_step"].parameters == shapes_parts.prior.num_parameters()
    counts = [shapes_manifest.components[name].parameters for name in ("hint_encoder", "decoder_step_controlnet")]
    unet = copy.deepcopy(shapes_parts.unet_controlnet)
    rewrites.fold_upsampling(unet)
    assert sum(counts) == unet.num_parameters()
    for component in shapes_manifest.components.values():
        assert len(component.checks) == 2 * (1 + len(component.variants))
        assert all(0 < check.error <= check.bound == 1e-4 for check in component.checks)
        session = onnxruntime.InferenceSession(shapes_bundle / component.files[0])
        for specs, found in ((component.inputs, session.get_inputs()), (component.outputs, session.get_outputs())):
            assert [(spec.name, list(spec.shape)) for spec in specs] == [(value.name, value.shape) for value in found]
    assert set(shapes_manifest.files) | {"manifest.json"} == set(files(shapes_bundle))


def test_half_precision(tmp_path: Path, tiny_checkpoint: Path) -> None:
    manifest = export(
        str(tiny_checkpoint / "controlnet"),
        tmp_path / "half",
        precision="fp16",
        components=["prior_step", "hint_encoder"],
    )
    assert len(manifest.components) == 2
    for component in manifest.components.values():
        assert component.precision == "fp16"
        assert all(1e-5 < check.error <= check.bound for check in component.checks)
        weights = manifest.files[component.files[1]].bytes
        # The smallest tensors are in the graph's own file.
        assert 1.9 * component.parameters <= weights < 2.5 * component.parameters


@pytest.mark.usefixtures("no_tracing")
class TestWhole:
    """What is written where, without the tracing."""

    def test_a_decoder_alone(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        shutil.copytree(tiny_checkpoint / "decoder", tmp_path / "decoder")
        (tmp_path / "decoder" / "README.md").unlink()
        manifest = export(str(tmp_path / "decoder"), tmp_path / "out")
        assert list(manifest.components) == ["decoder_step", "decoder_forecast", "movq_encoder", "movq_decoder"]
        assert manifest.text is None
        assert manifest.image_processor is None
        assert manifest.geometry.embedding_dim == tiny.EMBEDDING
        assert "tokenizer.json" not in files(tmp_path / "out")
        assert set(Bundle(tmp_path / "out").constants()) == {"preview_weight", "preview_bias"}

    @pytest.mark.parametrize(
        ("role", "steps"),
        [
            ("controlnet", ["hint_encoder", "decoder_step_controlnet", "decoder_forecast_controlnet"]),
            ("inpaint", ["decoder_step_inpaint", "decoder_forecast_inpaint"]),
        ],
    )
    def test_a_decoder_of_another_task_alone(
        self, tmp_path: Path, tiny_checkpoint: Path, role: str, steps: list[str]
    ) -> None:
        manifest = export(str(tiny_checkpoint / role), tmp_path / "out")
        prior = ["text_encoder", "image_encoder", "prior_step"]
        assert list(manifest.components) == [*prior, *steps, "movq_encoder", "movq_decoder"]
        assert manifest.schedulers.keys() == manifest.source.keys() - {"versions"} == {role, "prior"}
        assert manifest.geometry.latent_channels == 4
        assert manifest.geometry.learned_variance is True
        assert manifest.limits.ranks == 1312
        Bundle(tmp_path / "out")

    def test_the_decoder_with_the_lowest_quantile_fixes_the_ranks(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        shutil.copytree(tiny_checkpoint / "inpaint", tmp_path / "inpaint")
        config = tmp_path / "inpaint" / "scheduler" / "scheduler_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dynamic_thresholding_ratio": 0.9}))
        manifest = export(str(tiny_checkpoint / "decoder"), tmp_path / "out", inpaint=str(tmp_path / "inpaint"))
        assert manifest.limits.ranks == schedule.ranks_needed(0.9, 4 * 256**2) > 1312

    def test_a_decoder_with_another_movq_is_refused(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        with altered_movq(tiny_checkpoint / "inpaint", tmp_path / "inpaint") as weights:
            weights["encoder.conv_in.weight"][0, 0, 0, 0] += 0.1
        with pytest.raises(CheckpointError, match=r"inpaint has other weights .*\(encoder\.conv_in\.weight differs\)"):
            export(str(tiny_checkpoint / "decoder"), tmp_path / "out", inpaint=str(tmp_path / "inpaint"))
        assert not (tmp_path / "out").exists()

    def test_a_movq_that_was_rounded_is_no_other(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        with altered_movq(tiny_checkpoint / "inpaint", tmp_path / "inpaint") as weights:
            weights.update({key: value.half() for key, value in weights.items()})
        manifest = export(str(tiny_checkpoint / "decoder"), tmp_path / "out", inpaint=str(tmp_path / "inpaint"))
        assert "decoder_step_inpaint" in manifest.components

    def test_a_prior_alone(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        manifest = export(str(tiny_checkpoint / "prior"), tmp_path / "out")
        assert list(manifest.components) == ["text_encoder", "image_encoder", "prior_step"]
        assert manifest.geometry == Geometry(embedding_dim=tiny.EMBEDDING, image_size=32)
        assert manifest.limits.ranks is None
        assert {"tokenizer.json", "constants.npz"} < set(files(tmp_path / "out"))

    def test_hashes_are_those_of_the_files(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        export(str(tiny_checkpoint / "decoder"), tmp_path / "out")
        Bundle(tmp_path / "out").constants()
        path = tmp_path / "out" / "constants.npz"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(KandinskyError, match=r"constants\.npz"):
            Bundle(tmp_path / "out").constants()

    @pytest.mark.parametrize(("size", "ranks"), [(64, 3), (1024, 329), (2048, 1312)])
    def test_the_largest_size_fixes_the_ranks(
        self, tmp_path: Path, tiny_checkpoint: Path, size: int, ranks: int
    ) -> None:
        manifest = export(str(tiny_checkpoint / "decoder"), tmp_path / "out", max_size=size)
        assert manifest.limits == Limits(size, ranks)

    def test_old_tokenizer_files_give_the_same_ids(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        """Published repositories ship vocab.json and merges.txt, and no tokenizer.json."""
        shutil.copytree(tiny_checkpoint / "prior", tmp_path / "prior")
        folder = tmp_path / "prior" / "tokenizer"
        original = CLIPTokenizer.from_pretrained(folder)
        original.backend_tokenizer.model.save(str(folder))
        (folder / "tokenizer.json").unlink()
        export(str(tmp_path / "prior"), tmp_path / "out")
        tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
        for prompt in PROMPTS:
            assert tokenizer.encode(prompt).ids == original(prompt).input_ids

    def test_a_tokenizer_of_another_length_is_refused(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        shutil.copytree(tiny_checkpoint / "prior", tmp_path / "prior")
        config = tmp_path / "prior" / "tokenizer" / "tokenizer_config.json"
        config.write_text(config.read_text().replace("77", "64"))
        with pytest.raises(CheckpointError, match=r"model_max_length is 64 .* the prior needs 77"):
            export(str(tmp_path / "prior"), tmp_path / "out")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"precision": "int4"}, "The precision is 'int4'; it is one of fp32, fp16, int8, fp8."),
            ({"max_size": 10}, "at least 64"),
            ({"components": ["unet"]}, "There is no component 'unet'; known: text_encoder"),
            ({"source": None}, "There is nothing to export"),
            ({"random_weights": 0, "architecture": "sdxl"}, "There is no architecture 'sdxl'; known: kandinsky-2.2."),
        ],
    )
    def test_mistaken_arguments(
        self, tmp_path: Path, tiny_checkpoint: Path, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            export(**{"source": str(tiny_checkpoint / "decoder"), "destination": tmp_path / "out"} | options)
        assert not list(tmp_path.iterdir())

    def test_a_component_that_the_checkpoint_has_not(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        with pytest.raises(InputError, match="no network for movq_decoder; it has those of text_encoder, im"):
            export(str(tiny_checkpoint / "prior"), tmp_path / "out", components=["movq_decoder"])

    def test_an_existing_bundle_is_kept_unless_forced(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        source, destination = str(tiny_checkpoint / "decoder"), tmp_path / "engines" / "out"
        export(source, destination, components=["movq_decoder"])
        before = files(destination)
        with pytest.raises(ExportError, match="exists: choose another place with -o, or replace it with --force"):
            export(source, destination)
        assert files(destination) == before
        export(source, destination, force=True)
        assert "onnx/decoder_step.onnx" in files(destination)
        assert [path.name for path in destination.parent.iterdir()] == ["out"]
        assert destination.stat().st_mode & 0o777 == 0o777 & ~replacing.umask()

    def test_what_is_no_bundle_is_not_replaced(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        (tmp_path / "letters").write_text("dear")
        with pytest.raises(ExportError, match="is no bundle: it is not replaced"):
            export(str(tiny_checkpoint / "decoder"), tmp_path, force=True)
        with pytest.raises(ExportError, match="is no bundle: it is not replaced"):
            export(str(tiny_checkpoint / "decoder"), tmp_path / "letters", force=True)
        assert files(tmp_path) == {"letters": b"dear"}

    def test_a_destination_that_cannot_be_written(self, tmp_path: Path, tiny_checkpoint: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ExportError, match="cannot be written: "):
            export(str(tiny_checkpoint / "decoder"), tmp_path / "file" / "out")

    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize(
        ("error", "raised", "message"),
        [
            (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ExportError, "could not be written: the disk is full"),
            (OSError(errno.EIO, os.strerror(errno.EIO)), ExportError, "Input/output error; nothing of it was kept"),
            (ExportError("It differs."), ExportError, "It differs."),
            (KeyboardInterrupt(), KeyboardInterrupt, None),
        ],
        ids=["full disk", "broken disk", "excess", "Ctrl-C"],
    )
    def test_a_failure_in_the_middle_leaves_what_was_there(
        self,
        tmp_path: Path,
        tiny_checkpoint: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
        raised: type[BaseException],
        message: str | None,
        force: bool,
    ) -> None:
        source, destination = str(tiny_checkpoint / "decoder"), tmp_path / "engines" / "out"
        if force:
            export(source, destination)
        before = files(tmp_path)
        stand_in = write_bundle.export_graph

        def fail_at_the_end(
            build: Callable[[], Graph], folder: Path, precision: str, note: Callable[[str], None]
        ) -> Component:
            component = stand_in(build, folder, precision, note)
            if component.files[0] == "onnx/movq_decoder.onnx":
                assert files(destination) == {Path(k).name: v for k, v in before.items()} or force
                raise error
            return component

        monkeypatch.setattr(write_bundle, "export_graph", fail_at_the_end)
        with pytest.raises(raised, match=message):
            export(source, destination, force=force)
        assert files(tmp_path) == before

    def test_the_old_bundle_comes_back_where_the_new_one_cannot_take_its_place(
        self, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, destination = str(tiny_checkpoint / "decoder"), tmp_path / "out"
        export(source, destination, components=["movq_decoder"])
        before = files(tmp_path)
        rename = Path.rename

        def fail_for_the_new_one(path: Path, target: Path) -> Path:
            if path.suffix == ".tmp":
                raise OSError(errno.EACCES, "Permission denied")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
        with pytest.raises(ExportError, match="Permission denied"):
            export(source, destination, force=True)
        assert files(tmp_path) == before


def test_published_scheduler_is_the_default_of_random_weights() -> None:
    config = random_checkpoint("kandinsky-2.2", 0).schedulers["decoder"]
    scheduler = DDPMScheduler.from_config(config)
    assert {key: scheduler.config[key] for key in config if key != "_class_name"} == {
        key: value for key, value in config.items() if key != "_class_name"
    }
