"""What a bundle in floating point is made into by painting with it: quantised graphs, and shallow steps."""

from __future__ import annotations

from pathlib import Path

from kandinsky22.bundle.manifest import Manifest
from kandinsky22_export.progress import OnProgress
from kandinsky22_export.quantise.bundle import quantise_bundle
from kandinsky22_export.quantise.calibration import Calibration
from kandinsky22_export.quantise.formats import FORMATS
from kandinsky22_export.records import finish
from kandinsky22_export.shallow.bundle import Chosen, add_shallow_steps, hand_out_features


def refine(
    folder: Path, manifest: Manifest, precision: str, calibration: Calibration, note: OnProgress, *, shallow: bool
) -> Manifest:
    """Refine the bundle in `folder`; its manifest, without records of the new files.

    Where shallow steps are cut is chosen in floating point; they are cut from the graphs that are run, so that they
    compute what their decoders do, quantised or not. Raises as `quantise_bundle` and `add_shallow_steps`.
    """
    chosen: dict[str, Chosen] = {}
    if shallow:
        manifest, chosen = hand_out_features(folder, manifest, calibration, note)
        manifest = finish(manifest, folder, note)  # it is opened again, to be quantised
    if precision in FORMATS:
        manifest = quantise_bundle(folder, manifest, FORMATS[precision], calibration, note)
    return add_shallow_steps(folder, manifest, chosen, note)
