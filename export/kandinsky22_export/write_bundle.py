"""Checkpoint -> bundle: graphs, constants, tokenizer and manifest, in a folder that is whole or absent."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kandinsky22.bundle import reading
from kandinsky22.bundle.manifest import Component, Limits, Manifest
from kandinsky22.errors import InputError
from kandinsky22_export import parallel
from kandinsky22_export.architectures import validate
from kandinsky22_export.architectures.components import NETWORKS, Constants, build_graph, embed_zeros
from kandinsky22_export.architectures.facts import geometry_of, limits_of
from kandinsky22_export.architectures.published import ARCHITECTURES
from kandinsky22_export.checkpoints import Checkpoint, open_checkpoint
from kandinsky22_export.graphs.base import Graph
from kandinsky22_export.progress import OnProgress, OnStage
from kandinsky22_export.quantise.calibration import Calibration, require_painters
from kandinsky22_export.random_weights import random_checkpoint
from kandinsky22_export.records import finish
from kandinsky22_export.replacing import replacing
from kandinsky22_export.resuming import Saved, resuming
from kandinsky22_export.tokenizer import write_tokenizer
from kandinsky22_export.tracing.comparison import BOUNDS
from kandinsky22_export.tracing.export_graph import export_graph
from kandinsky22_export.tracing.translations import OPSET
from kandinsky22_export.versions import versions_of

QUANTISED = {"int8": "fp16", "fp8": "fp16"}
"""Precisions that are quantised, with that of what stays in floating point."""

PRECISIONS = (*BOUNDS, *QUANTISED)

PACKAGES = ("kandinsky22", "torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")
"""Packages whose versions the manifest tells."""


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
    shallow: bool = False,
    force: bool = False,
    jobs: int = 1,
    calibration: Calibration | None = None,
    note: OnProgress = lambda component, stage: None,
) -> Manifest:
    """Export the checkpoint `source` (a folder or a Hub id) to the bundle `destination` and return its manifest.

    `prior`, `controlnet` and `inpaint` are further folders or Hub ids, see `open_checkpoint`; `revision` is of
    `source` on the Hub, `variant` of all weights' files. With `random_weights` (a seed) there is no
    source: the weights of `architecture` are drawn. `precision` is "fp32", "fp16", or "int8" or "fp8": exported
    in fp16, then quantised on what `calibration` says, see `kandinsky22_export.quantise`. `max_size` is the longest
    side in pixels that dynamic thresholding will be exact for. `components` picks some of those there are. `shallow`
    adds steps of decoders that run a UNet's top level alone, see `kandinsky22_export.shallow`.
    `force` replaces a bundle. `jobs` components are exported at a time: above 1 in processes of their own, with the
    memory of all of them, and a script then needs `if __name__ == "__main__"`. `note(component, stage)` is told what is
    happening. Raises a KandinskyError, after which no bundle has been written and an old one is as it was. What was
    calibrated until then is kept, and the same call goes on from it, see `kandinsky22_export.resuming`.
    """
    if precision not in PRECISIONS:
        raise InputError(f"The precision is {precision!r}; it is one of {', '.join(PRECISIONS)}.")
    if calibration is not None and precision not in QUANTISED and not shallow:
        raise InputError(
            f"A calibration is for precision {', '.join(QUANTISED)} and for shallow steps, not for {precision} alone; "
            "leave it out."
        )
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
    painting = precision in QUANTISED or shallow
    if painting:
        require_painters(chosen)
    keeping = resuming(destination) if painting else contextlib.nullcontext(Saved())
    with keeping as saved, replacing(destination, force) as folder:
        for name in chosen:
            note(name, "fetching")
            checkpoint.networks[NETWORKS[name]].fetch()
        _require_same_movqs(checkpoint, note)
        limits = limits_of(checkpoint, max_size)
        exporting = ComponentExport(opening, folder / "onnx", QUANTISED.get(precision, precision), limits.ranks)
        manifest = _write(checkpoint, chosen, destination.name, exporting, limits, jobs, folder, note)
        if painting:
            from kandinsky22_export.refine import refine  # the pipeline, which others do without

            del checkpoint  # its networks take as much memory as the bundle
            asked = calibration or Calibration()
            refined = refine(folder, manifest, precision, asked, note, shallow=shallow, saved=saved)
            manifest = finish(refined, folder, note)
        return manifest


def _choose(checkpoint: Checkpoint, components: Sequence[str] | None) -> list[str]:
    """The components to export, in order. Raises InputError where one is unknown or its network is not there."""
    available = [name for name, network in NETWORKS.items() if network in checkpoint.networks]
    for name in components or ():
        if name not in NETWORKS:
            raise InputError(f"There is no component {name!r}; known: {', '.join(NETWORKS)}.")
        if name not in available:
            raise InputError(f"The checkpoint has no network for {name}; it has those of {', '.join(available)}.")
    return [name for name in available if components is None or name in components]


def _require_same_movqs(checkpoint: Checkpoint, note: OnProgress) -> None:
    """Refuse decoders that came with another MoVQ than the bundle's, before the long work."""
    for other, network in checkpoint.movqs.items():
        note("movq", "comparing")
        validate.require_same_weights(checkpoint.networks["movq"].load(), other, network.load())


@dataclass(frozen=True)
class ComponentExport:
    """What the export of any component needs to know, in this process or another: `opening()` gives the checkpoint."""

    opening: Callable[[], Checkpoint]
    folder: Path
    precision: str
    ranks: int | None

    def run(self, name: str, on_stage: OnStage) -> tuple[Component, Constants]:
        """Export a component; with it come the constants that its network knows."""
        constants: Constants = {}

        def build() -> Graph:
            graph, known = build_graph(name, self.opening().networks, self.ranks)
            constants.update(known)
            return graph

        return export_graph(build, self.folder, self.precision, on_stage), constants


def _write(
    checkpoint: Checkpoint,
    chosen: list[str],
    name: str,
    exporting: ComponentExport,
    limits: Limits,
    jobs: int,
    folder: Path,
    note: OnProgress,
) -> Manifest:
    exporting.folder.mkdir()
    text = write_tokenizer(checkpoint, folder)
    constants: Constants = {}
    if "image_encoder" not in chosen:
        note("constants", "computing the zero-image embedding")
        constants = _zero_image(checkpoint)
    components: dict[str, Component] = {}
    for component, (exported, known) in _exported(exporting, chosen, jobs, note):
        components[component] = exported
        constants |= known
    if constants:
        # In order: of several jobs, another may be the first to end the next time.
        np.savez(folder / reading.CONSTANTS, **{name: constants[name] for name in sorted(constants)})
    manifest = Manifest(
        name=name,
        precision=exporting.precision,
        opset=OPSET,
        source=checkpoint.source | {"versions": versions_of(PACKAGES)},
        components={component: components[component] for component in chosen},
        files={},
        schedulers=checkpoint.schedulers,
        text=text,
        geometry=geometry_of(checkpoint),
        limits=limits,
        image_processor=checkpoint.image_processor,
    )
    return finish(manifest, folder, note)


def _exported(
    exporting: ComponentExport, chosen: list[str], jobs: int, note: OnProgress
) -> Iterator[tuple[str, tuple[Component, Constants]]]:
    """The components and the constants that they bring, one after the other or `jobs` at a time."""
    if jobs == 1:
        for name in chosen:
            yield name, exporting.run(name, functools.partial(note, name))
        return
    # The last ones take longest: they begin, so that no process works alone at the end.
    tasks = {name: functools.partial(exporting.run, name) for name in reversed(chosen)}
    yield from parallel.run(tasks, jobs, note)


def _zero_image(checkpoint: Checkpoint) -> Constants:
    """The constants that the image encoder gives, where its graph is not exported; none without a prior."""
    if checkpoint.zero_image is not None:
        return {"zero_image_embeds": checkpoint.zero_image.numpy()}
    if "image_encoder" not in checkpoint.networks:
        return {}
    return embed_zeros(checkpoint.networks["image_encoder"].load())
