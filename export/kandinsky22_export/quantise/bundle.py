"""A bundle in floating point to a quantised one, in place."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from kandinsky22.bundle.manifest import DECODERS, Manifest, Role
from kandinsky22_export.progress import OnProgress
from kandinsky22_export.quantise.component import quantise_component
from kandinsky22_export.quantise.formats import NumberFormat
from kandinsky22_export.quantise.recording import Feeds
from kandinsky22_export.resuming import Saved

QUANTISED = DECODERS | {Role.PRIOR, Role.MOVQ_ENCODER, Role.MOVQ_DECODER}
"""The roles of components that are quantised: those that take a picture's time.

Encoders of texts and pictures run once, and what they say is what a picture is of.
"""


def quantise_bundle(
    folder: Path,
    manifest: Manifest,
    into: NumberFormat,
    fed: dict[str, list[Feeds]],
    note: OnProgress = lambda component, stage: None,
    saved: Saved | None = None,
) -> Manifest:
    """Quantise the components of the bundle in `folder`; its manifest, without the new files' records.

    `fed` is what components were fed in real runs, by their names; it is emptied on the way. What takes long is taken
    from `saved` where it is there, and kept in it. Raises ExportError where a quantised component computes something
    else.
    """
    saved = saved or Saved()
    components = dict(manifest.components)
    for name, component in components.items():
        if component.role in QUANTISED:
            told = functools.partial(note, f"{name} in {into.name}")
            components[name] = quantise_component(folder, name, component, fed.pop(name), into, told, saved)
    return dataclasses.replace(manifest, precision=into.name, components=components)
