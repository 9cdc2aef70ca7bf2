"""What a bundle in floating point is made into by painting with it: quantised graphs, and shallow steps."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from kandinsky22.bundle.manifest import Manifest
from kandinsky22_export.progress import OnProgress
from kandinsky22_export.quantise.bundle import quantise_bundle
from kandinsky22_export.quantise.calibration import Calibration
from kandinsky22_export.quantise.formats import FORMATS
from kandinsky22_export.quantise.recording import Keep, record, spread_over
from kandinsky22_export.resuming import Saved
from kandinsky22_export.shallow.bundle import MOST, Chosen, add_shallow_steps, hand_out_features, keep_pairs
from kandinsky22_export.versions import versions_of

PACKAGES = ("kandinsky22", "ml_dtypes", "numpy", "onnx", "onnxruntime", "openvino", "torch")
"""Packages that paint and calibrate."""

QUANTISED, SHALLOW = "quantised", "shallow"
"""What states of real runs are wanted for."""


def refine(
    folder: Path,
    manifest: Manifest,
    precision: str,
    calibration: Calibration,
    note: OnProgress,
    *,
    shallow: bool,
    saved: Saved | None = None,
) -> Manifest:
    """Refine the bundle in `folder`; its manifest, without records of the new files.

    Where shallow steps are cut is chosen in floating point; they are cut from the graphs that are run, so that they
    compute what their decoders do, quantised or not. What takes long is taken from `saved`, where an export before has
    left it there. Raises as `quantise_bundle`, `hand_out_features` and `add_shallow_steps`, and BundleError where
    the bundle paints nothing.
    """
    saved = saved or Saved()
    saved.begin(_key(manifest, precision, calibration, shallow))
    wanted: dict[str, Keep] = {}
    if precision in FORMATS:
        wanted[QUANTISED] = spread_over(calibration)
    else:
        calibration = dataclasses.replace(calibration, prompts=calibration.prompts[:MOST])
    if shallow:
        wanted[SHALLOW] = keep_pairs
    fed = record(folder, calibration, functools.partial(note, "calibration"), wanted, saved)
    chosen: dict[str, Chosen] = {}
    if shallow:
        manifest, chosen = hand_out_features(folder, manifest, fed[SHALLOW], note)
    if precision in FORMATS:
        manifest = quantise_bundle(folder, manifest, FORMATS[precision], fed[QUANTISED], note, saved)
    return add_shallow_steps(folder, manifest, chosen, note)


def _key(manifest: Manifest, precision: str, calibration: Calibration, shallow: bool) -> dict[str, object]:
    """What is found by painting depends on, of JSON, by what it is.

    Of the manifest not its name, where it comes from, or how near torch was: its files are known by their SHA-256.
    """
    unchecked = {name: dataclasses.replace(each, checks=()) for name, each in manifest.components.items()}
    return {
        "weights": {name: record.sha256 for name, record in manifest.files.items()},
        "bundle": dataclasses.replace(manifest, name="", source={}, components=unchecked, files={}).to_json(),
        "prompts": list(calibration.prompts),
        "seed": calibration.seed,
        "samples": calibration.samples,
        "precision": precision,
        "shallow": shallow,
        "versions": versions_of(PACKAGES),
    }
