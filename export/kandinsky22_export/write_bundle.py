"""Checkpoint -> bundle: graphs, constants, tokenizer and manifest, in a folder that is whole or absent."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib.metadata
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from kandinsky22.bundle import bundle, checksums
from kandinsky22.bundle.manifest import Component, FileRecord, Geometry, Limits, Manifest, Text
from kandinsky22.errors import CheckpointError, ExportError, InputError
from kandinsky22.schedulers import schedule
from kandinsky22_export import parallel
from kandinsky22_export.architectures import validate
from kandinsky22_export.checkpoints import Checkpoint, open_checkpoint
from kandinsky22_export.graphs.base import Graph
from kandinsky22_export.graphs.encoders import HintEncoder, ImageEncoder, MovqDecoder, MovqEncoder, TextEncoder
from kandinsky22_export.graphs.steps import ControlnetStep, DecoderStep, InpaintStep, PriorStep
from kandinsky22_export.random_weights import ARCHITECTURES, random_checkpoint
from kandinsky22_export.tracing.export_graph import BOUNDS, export_graph
from kandinsky22_export.tracing.translations import OPSET

# Which network of the checkpoint each component is made of; the order is that of the export.
NETWORKS = {
    "text_encoder": "text_encoder",
    "image_encoder": "image_encoder",
    "prior_step": "prior",
    "decoder_step": "unet",
    "hint_encoder": "unet_controlnet",
    "decoder_step_controlnet": "unet_controlnet",
    "decoder_step_inpaint": "unet_inpaint",
    "movq_encoder": "movq",
    "movq_decoder": "movq",
}
# Texts of every kind that the tokenizer must turn into the same ids in the bundle as in transformers.
PROBES = (
    "",
    "a red circle on a blue background",
    "  A Photo\tof MANY\n spaces, it's 4k!!  ",
    "кот в космосе, 宇宙の猫, 🐱 naïve Ångström",
    "<|startoftext|> special <|endoftext|> tokens",
    "very long " * 60,
)

Note = Callable[[str, str], None]
Constants = dict[str, Any]  # float32 (1, E), by the names of constants.npz


def export(
    source: str | None,
    destination: str | Path,
    *,
    prior: str | None = None,
    controlnet: str | None = None,
    inpaint: str | None = None,
    precision: str = "fp32",
    architecture: str = "kandinsky-2.2",
    random_weights: int | None = None,
    revision: str | None = None,
    variant: str | None = None,
    max_size: int = 2048,
    components: Sequence[str] | None = None,
    force: bool = False,
    jobs: int = 1,
    note: Note = lambda component, stage: None,
) -> Manifest:
    """Export the checkpoint `source` (a folder or a Hub id) to the bundle `destination` and return its manifest.

    `prior`, `controlnet` and `inpaint` are further folders or Hub ids, see `open_checkpoint`; `revision` is of
    `source` on the Hub, `variant` of all weights' files. With `random_weights` (a seed) there is no
    source: the weights of `architecture` are drawn. `precision` is "fp32" or "fp16". `max_size` is
    the longest side in pixels that dynamic thresholding will be exact for. `components` picks some of those there are.
    `force` replaces a bundle. `jobs` components are exported at a time: above 1 in processes of their own, with the
    memory of all of them, and a script then needs `if __name__ == "__main__"`. `note(component, stage)` is told what is
    happening. Raises a KandinskyError, after which nothing has been written and an old bundle is as it was.
    """
    if precision not in BOUNDS:
        raise InputError(f"The precision is {precision!r}; it is one of {', '.join(BOUNDS)}.")
    if max_size < 64:
        raise InputError(f"The largest size is {max_size}; it is at least 64 pixels.")
    if jobs < 1:
        raise InputError(f"The number of jobs is {jobs}; it is at least 1.")
    destination = Path(os.path.abspath(destination))
    note("checkpoint", "reading")
    if random_weights is not None:
        if architecture not in ARCHITECTURES:
            raise InputError(f"There is no architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}.")
        opening = functools.partial(random_checkpoint, architecture, random_weights)
    elif source is not None:
        opening = functools.partial(open_checkpoint, source, prior, controlnet, inpaint, revision, variant)
    else:
        raise InputError("There is nothing to export: give a folder, a Hub id, or a seed for random weights.")
    checkpoint = opening()
    chosen = _choose(checkpoint, components)
    with _replacing(destination, force) as folder:
        for name in chosen:
            note(name, "fetching")
            checkpoint.networks[NETWORKS[name]].fetch()
        _require_same_movqs(checkpoint, note)
        work = Work(opening, folder / "onnx", precision, _limits(checkpoint, max_size))
        return _write(checkpoint, chosen, destination.name, work, jobs, folder, note)


def _choose(checkpoint: Checkpoint, components: Sequence[str] | None) -> list[str]:
    """The components to export, in order. Raises InputError where one is unknown or its network is not there."""
    available = [name for name, network in NETWORKS.items() if network in checkpoint.networks]
    for name in components or ():
        if name not in NETWORKS:
            raise InputError(f"There is no component {name!r}; known: {', '.join(NETWORKS)}.")
        if name not in available:
            raise InputError(f"The checkpoint has no network for {name}; it has those of {', '.join(available)}.")
    return [name for name in available if components is None or name in components]


def _require_same_movqs(checkpoint: Checkpoint, note: Note) -> None:
    """Refuse decoders that came with another MoVQ than the bundle's, before the long work."""
    for other, network in checkpoint.movqs.items():
        note("movq", "comparing")
        validate.require_same_weights(checkpoint.networks["movq"].load(), other, network.load())


@dataclass(frozen=True)
class Work:
    """What exporting a component needs to know, in this process or another: `opening()` gives the checkpoint."""

    opening: Callable[[], Checkpoint]
    folder: Path
    precision: str
    limits: Limits

    def component(self, name: str, note: Callable[[str], None]) -> tuple[Component, Constants]:
        """Export a component; with it come the constants that its network knows."""
        constants: Constants = {}
        build = functools.partial(_graph, self.opening(), name, self.limits, constants)
        return export_graph(build, self.folder, self.precision, note), constants


def _write(
    checkpoint: Checkpoint, chosen: list[str], name: str, work: Work, jobs: int, folder: Path, note: Note
) -> Manifest:
    work.folder.mkdir()
    text = _write_tokenizer(checkpoint, folder)
    constants: Constants = {}
    if "image_encoder" not in chosen:
        note("constants", "computing the zero-image embedding")
        constants = _zero_image(checkpoint)
    components: dict[str, Component] = {}
    for component, (exported, known) in _exported(work, chosen, jobs, note):
        components[component] = exported
        constants |= known
    if constants:
        np.savez(folder / bundle.CONSTANTS, **constants)
    note("manifest", "hashing")
    manifest = Manifest(
        name=name,
        precision=work.precision,
        opset=OPSET,
        source=checkpoint.source | {"versions": _versions()},
        components={component: components[component] for component in chosen},
        files=_records(folder),
        schedulers=checkpoint.schedulers,
        text=text,
        geometry=_geometry(checkpoint),
        limits=work.limits,
        image_processor=checkpoint.image_processor,
    )
    (folder / bundle.MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _exported(
    work: Work, chosen: list[str], jobs: int, note: Note
) -> Iterator[tuple[str, tuple[Component, Constants]]]:
    """The components and the constants that they bring, one after the other or `jobs` at a time."""
    if jobs == 1:
        for name in chosen:
            yield name, work.component(name, functools.partial(note, name))
        return
    # The last ones take longest: they begin, so that no process works alone at the end.
    tasks = {name: functools.partial(work.component, name) for name in reversed(chosen)}
    yield from parallel.run(tasks, jobs, note)


def _graph(checkpoint: Checkpoint, component: str, limits: Limits, constants: Constants) -> Graph:
    """The graph of a component. Loading the prior and the image encoder also gives what belongs to `constants`."""
    network: Any = checkpoint.networks[NETWORKS[component]].load()
    ranks = limits.ranks or 0  # where there is no decoder, nothing asks for them
    match component:
        case "text_encoder":
            return TextEncoder(network)
        case "image_encoder":
            constants |= _embed_zeros(network)
            return ImageEncoder(network)
        case "prior_step":
            constants["clip_mean"] = network.clip_mean.numpy().copy()
            constants["clip_std"] = network.clip_std.numpy().copy()
            return PriorStep(network)
        case "decoder_step":
            return DecoderStep(network, ranks)
        case "hint_encoder":
            return HintEncoder(network)
        case "decoder_step_controlnet":
            return ControlnetStep(network, ranks)
        case "decoder_step_inpaint":
            return InpaintStep(network, ranks)
        case "movq_encoder":
            return MovqEncoder(network)
        case _:
            return MovqDecoder(network)


def _zero_image(checkpoint: Checkpoint) -> Constants:
    """The constants that the image encoder gives, where its graph is not exported; none without a prior."""
    if checkpoint.zero_image is not None:
        return {"zero_image_embeds": checkpoint.zero_image.numpy()}
    if "image_encoder" not in checkpoint.networks:
        return {}
    return _embed_zeros(checkpoint.networks["image_encoder"].load())


@torch.no_grad()
def _embed_zeros(encoder: Any) -> Constants:
    """`zero_image_embeds` (1, E): what the image encoder makes of zeros, which is no black picture."""
    size = encoder.config.image_size
    return {"zero_image_embeds": encoder(torch.zeros(1, 3, size, size)).image_embeds.numpy()}


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> Text | None:
    """Write tokenizer.json without padding and truncation, which the runtime sets; the manifest's `text`.

    Raises CheckpointError where the file would give other ids than the checkpoint's tokenizer.
    """
    if checkpoint.tokenizer is None:
        return None
    tokenizer = checkpoint.tokenizer()
    length, padding = checkpoint.networks["prior"].config.get("num_embeddings", 77), tokenizer.pad_token_id
    if tokenizer.model_max_length != length or padding is None:
        raise CheckpointError(
            f"The tokenizer's model_max_length is {tokenizer.model_max_length} and its padding {padding};"
            f" the prior needs {length} and a padding token."
        )
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    plain.save(str(folder / bundle.TOKENIZER))
    plain.enable_truncation(length)
    plain.enable_padding(length=length, pad_id=padding)
    for probe in PROBES:
        wanted = tokenizer(probe, padding="max_length", max_length=length, truncation=True)
        found = plain.encode(probe)
        if (found.ids, found.attention_mask) != (wanted["input_ids"], wanted["attention_mask"]):
            raise CheckpointError(
                f"The tokenizer could not be converted: {probe!r} gives other ids than in transformers."
            )
    return Text(length, padding)


def _geometry(checkpoint: Checkpoint) -> Geometry:
    """What the runtime asks about shapes."""
    geometry: dict[str, Any] = {}
    networks = checkpoint.networks
    if "prior" in networks:
        geometry["embedding_dim"] = networks["prior"].config["embedding_dim"]
    if "image_encoder" in networks:
        geometry["image_size"] = networks["image_encoder"].config["image_size"]
    if "movq" in networks:
        movq = networks["movq"].config
        geometry["latent_channels"] = movq["latent_channels"]
        geometry["downscale"] = 2 ** (len(movq["block_out_channels"]) - 1)
    unet = next((networks[name].config for name in validate.UNETS.values() if name in networks), None)
    if unet is not None:  # the others are like it in this
        geometry["embedding_dim"] = unet["encoder_hid_dim"]
        geometry["learned_variance"] = unet["out_channels"] == 2 * geometry["latent_channels"]
        geometry["default_size"] = _trained_size(unet.get("sample_size"), geometry["downscale"])
    return Geometry(**geometry)


def _trained_size(latents: Any, downscale: int) -> int:
    """Pixels a side of the pictures that a UNet was trained at; 512, as published, where its config is silent."""
    return latents * downscale if isinstance(latents, int) else 512


def _limits(checkpoint: Checkpoint, max_size: int) -> Limits:
    """`max_size`, and how many of the largest |x0| its dynamic thresholding needs (None without a decoder)."""
    geometry = _geometry(checkpoint)
    if geometry.downscale is None or geometry.latent_channels is None:
        return Limits(max_size)
    side = math.ceil(max_size / geometry.downscale**2) * geometry.downscale
    values = geometry.latent_channels * side**2
    samplers = [checkpoint.schedulers[role] for role in validate.UNETS if role in checkpoint.schedulers]
    ratio = min(sampler.get("dynamic_thresholding_ratio", 0.995) for sampler in samplers)
    return Limits(max_size, schedule.ranks_needed(ratio, values))


def _versions() -> dict[str, str]:
    packages = ("kandinsky22", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")
    return {package: _version(package) for package in packages}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return "unknown"


def _records(folder: Path) -> dict[str, FileRecord]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileRecord(path.stat().st_size, checksums.sha256(path)) for path in files
    }


@contextlib.contextmanager
def _replacing(destination: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside `destination` that takes its place at the end, or is removed where that is not reached.

    Raises ExportError where the destination is taken or cannot be written.
    """
    if destination.exists() and not force:
        raise ExportError(f"{destination} exists: choose another place with -o, or replace it with --force.")
    if destination.exists() and not (destination / bundle.MANIFEST).is_file():
        raise ExportError(f"{destination} exists and is no bundle: it is not replaced.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".tmp", dir=destination.parent))
    except OSError as error:
        raise ExportError(f"{destination.parent} cannot be written: {error.strerror}.") from error
    try:
        yield folder
        folder.chmod(0o777 & ~_umask())  # mkdtemp keeps others out
        _swap(folder, destination)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        raise ExportError(f"{destination} could not be written: {reason}; nothing was kept.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _swap(folder: Path, destination: Path) -> None:
    """Put `folder` in `destination`'s place; an old bundle is removed only after that, and put back if it fails."""
    if not destination.exists():
        folder.rename(destination)
        return
    old = folder.with_name(folder.name + ".old")
    destination.rename(old)
    try:
        folder.rename(destination)
    except BaseException:
        old.rename(destination)
        raise
    shutil.rmtree(old)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
