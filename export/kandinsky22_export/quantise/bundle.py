"""A bundle in floating point to one in int8, in place."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from kandinsky22.bundle.manifest import STEP_ROLES, Manifest, Role
from kandinsky22_export.progress import OnProgress
from kandinsky22_export.quantise.calibration import Calibration
from kandinsky22_export.quantise.component import quantise_component
from kandinsky22_export.quantise.recording import record, require

QUANTISED = STEP_ROLES | {Role.MOVQ_ENCODER, Role.MOVQ_DECODER}
"""The roles of components that become int8: those that take a picture's time. Encoders of texts and pictures run once,
and what they say is what a picture is of."""


def quantise_bundle(folder: Path, manifest: Manifest, calibration: Calibration, note: OnProgress) -> Manifest:
    """Quantise the components of the bundle in `folder`; its manifest, without the new files' records.

    Raises ExportError where it lacks what it needs to paint, or a component in int8 computes something else.
    """
    require(manifest)
    fed = record(folder, calibration, functools.partial(note, "calibration"))
    components = {
        name: quantise_component(folder, name, component, fed.pop(name), functools.partial(note, name))
        if component.role in QUANTISED
        else component
        for name, component in manifest.components.items()
    }
    return dataclasses.replace(manifest, precision="int8", components=components)
