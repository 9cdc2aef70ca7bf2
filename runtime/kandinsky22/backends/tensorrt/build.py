"""Plans, built: ONNX graphs compiled by TensorRT, each beside a record of all that it was made from and for.

A build replaces both at once or not at all. docs/tensorrt.md describes the folder; `choice` reads it.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kandinsky22.backends.cuda import gpu
from kandinsky22.backends.tensorrt import library
from kandinsky22.backends.tensorrt.builder import Built, Options, build_plan
from kandinsky22.backends.tensorrt.choice import onnx_hashes, plan_folder, read_record
from kandinsky22.backends.tensorrt.library import Flavour, rtx_targets
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.backends.tensorrt.records import PlanRecord, Report
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.checksums import sha256
from kandinsky22.bundle.contents import LOCK, TIMING_CACHE, leftovers
from kandinsky22.errors import BackendError, BundleError, InputError
from kandinsky22.files import NewFile, kind_of, locked, new_file, read_file, write_file
from kandinsky22.machine import available_memory

log = logging.getLogger(__name__)

DEFAULTS = Options()

MIB = 1 << 20
BUILD_MEMORY = (512 * MIB, 3.2)
"""Memory that a build takes: bytes, and a multiple of the weights. Measured: docs/tensorrt.md."""

PLAN_SLACK = 512 * MIB
"""Bytes by which a plan may differ from its weights, for kernels; and a quarter of the weights."""


def flavour_to_build(name: str) -> Flavour:
    """The flavour `name`; for "auto" the first that is installed and can build on this machine, TensorRT first.

    TensorRT builds on the GPU that a plan is for, so without a GPU TensorRT for RTX goes before it. Raises BackendError
    where the flavour, or either, is not installed.
    """
    found = library.flavours()
    if name != "auto" or len(found) < len(library.MODULES):
        return library.flavour(name)
    try:
        device = gpu.gpu()
    except BackendError as error:
        log.info("Plans are built for cards elsewhere: %s", error)
        return next(each for each in found if not each.needs_gpu)
    log.info("Plans are built for %s", device)
    return found[0]


def build(
    bundle: Bundle,
    flavour: Flavour,
    profile: Profile,
    *,
    components: Sequence[str] | None = None,
    options: Options = DEFAULTS,
    device: gpu.Device | None = None,
    progress: bool = True,
    force: bool = False,
    rebuild: bool = False,
) -> list[PlanRecord]:
    """Build the plans of a bundle's components (all of them by default), and return their records.

    Plans that are there and are what would be built are kept, so that a build that was stopped goes on where it was;
    `rebuild` builds them again. `device` is the GPU that a TensorRT plan is for, this machine's by default;
    TensorRT for RTX needs none. `force` builds in less memory than a build is known to take.

    Raises InputError for sizes that are no picture's, BundleError for components that the bundle lacks, files that
    were altered, a folder that cannot be written or in which another build runs, BackendError where there is no GPU,
    too little memory, or TensorRT fails. Whatever happens, what was there can be loaded as before.
    """
    profile.check(bundle)
    names = list(bundle.manifest.components if components is None else components)
    if flavour.needs_gpu:
        if options.targets:
            raise InputError("TensorRT builds for the GPU that is here; targets are for the flavour tensorrt-rtx.")
        device = device or _gpu_to_build_on()
    else:
        device = None
        _check_targets(flavour, options)
    recipes = {name: _recipe(bundle, name, flavour, device, profile, options) for name in names}
    folder = plan_folder(bundle, flavour, device, profile)
    records = []
    with _writing(folder, names):
        for name in names:
            record = None if rebuild else _finished(folder, recipes[name])
            if record is not None and progress:
                tqdm.write(f"{name}: there already", file=sys.stderr)
            if record is None:
                record = _build_one(bundle, flavour, options, recipes[name], folder, progress=progress, force=force)
            records.append(record)
    return records


def _gpu_to_build_on() -> gpu.Device:
    try:
        return gpu.gpu()
    except BackendError as error:
        raise BackendError(
            f"{error} TensorRT builds only on the GPU that a plan is for: build there, "
            f"or for GeForce and RTX cards with --flavour tensorrt-rtx, which needs none."
        ) from error


def _check_targets(flavour: Flavour, options: Options) -> None:
    """Raise InputError for a compute capability that TensorRT for RTX cannot build for."""
    possible = rtx_targets(flavour.module, turing=True)
    for target in options.targets:
        if target not in possible:
            raise InputError(f"There is no target {target!r}; choose of {', '.join(possible)}.")


def _recipe(
    bundle: Bundle, name: str, flavour: Flavour, device: gpu.Device | None, profile: Profile, options: Options
) -> dict[str, Any]:
    """The fields of a record that are known before building: where they are equal, so is the plan."""
    component = bundle.component(name)
    targets = () if flavour.needs_gpu else options.targets or rtx_targets(flavour.module)
    return {
        "component": name,
        "flavour": flavour.name,
        "version": flavour.version,
        "device": device,
        "targets": targets,
        "profile": profile,
        "shapes": {spec.name: profile.shapes(spec, component, bundle.manifest.downscale) for spec in component.inputs},
        "onnx": onnx_hashes(bundle, name),
        "settings": {
            "strongly_typed": True,
            "tf32": False,
            "portable": not flavour.needs_gpu and not options.targets,
            "user_allocation": not flavour.needs_gpu,
            "allow_unfused": options.allow_unfused,
        },
    }


def _finished(folder: Path, recipe: Mapping[str, Any]) -> PlanRecord | None:
    """The record of a plan that is there, whole, and made by this recipe; or None."""
    try:
        record = read_record(folder / f"{recipe['component']}.json")
    except BundleError:
        return None
    if any(getattr(record, key) != value for key, value in recipe.items()):
        return None
    plan = folder / record.plan
    if not plan.exists() or plan.stat().st_size != record.bytes or sha256(plan) != record.sha256:
        return None
    return record


def _build_one(
    bundle: Bundle,
    flavour: Flavour,
    options: Options,
    recipe: dict[str, Any],
    folder: Path,
    *,
    progress: bool,
    force: bool,
) -> PlanRecord:
    """Build a plan and write it, then the record that names it: that is the moment at which it takes effect."""
    name = recipe["component"]
    component = bundle.component(name)
    weights = sum(bundle.manifest.files[file].bytes for file in component.files)
    if not force:
        _require_memory(name, weights)
    _require_disk(folder, weights)
    with new_file(folder, f"{name}.plan") as file:
        built = _compile(bundle, flavour, options, recipe, folder, file, progress=progress)
        record = PlanRecord(
            **recipe,
            plan=f"{name}-{file.sha256[:16]}.plan",
            bytes=file.bytes,
            sha256=file.sha256,
            weight_bytes=weights,
            seconds=round(built.seconds, 2),
            peak_memory=built.peak_memory,
            report=built.report,
            warnings=_warnings(file.bytes, weights, component.precision, built.report),
        )
        _require("a file", folder / record.plan)
        file.commit(record.plan)
    write_file(folder / f"{name}.json", record.to_json().encode())
    log.info("Plan of %s built by %s in %.1f s: %s", name, flavour.name, built.seconds, folder / record.plan)
    _sweep(folder)
    return record


def _compile(
    bundle: Bundle,
    flavour: Flavour,
    options: Options,
    recipe: Mapping[str, Any],
    folder: Path,
    file: NewFile,
    *,
    progress: bool,
) -> Built:
    """Let TensorRT build a plan into `file`, with a progress bar and a timing cache."""
    name, cache = recipe["component"], folder / TIMING_CACHE
    with tqdm(desc=name, total=0, unit="step", disable=None if progress else True, leave=False) as bar:

        def on_progress(phase: str, done: int, known: int) -> None:
            bar.total = known
            bar.set_postfix_str(phase[:40], refresh=False)
            bar.update(done - bar.n)

        timings = read_file(cache) if cache.exists() else b""
        with bundle.reading(name) as graph:
            built = build_plan(
                flavour, graph, bundle.component(name), recipe["shapes"], options, file.write, timings, on_progress
            )
    if built.timing_cache:
        write_file(cache, built.timing_cache)
    return built


def _warnings(size: int, weights: int, precision: str, report: Report) -> tuple[str, ...]:
    """What a finished plan makes one doubt."""
    found = []
    if abs(size - weights) > PLAN_SLACK + weights // 4:
        found.append(f"The plan has {size / MIB:.0f} MiB and its weights {weights / MIB:.0f}; expected about as much.")
    if report.layers and report.fused < report.fusable:
        found.append(f"Only {report.fused} of {report.fusable} attentions run in fused kernels.")
    if precision != "fp32" and report.fusable < report.attention:
        found.append(
            f"{report.attention - report.fusable} of {report.attention} attentions have heads of a size that no fused "
            f"kernel takes: their scores fill memory, by the fourth power of a picture's side."
        )
    if precision != "fp32" and "Float" in report.products:
        found.append(
            f"{report.products['Float']} of its products are computed in fp32, although the graph is {precision}."
        )
    return tuple(found)


def _require_memory(name: str, weights: int) -> None:
    base, multiple = BUILD_MEMORY
    needed, available = base + int(multiple * weights), available_memory()
    if available is not None and available < needed:
        raise BackendError(
            f"Building {name} takes about {needed / MIB:.0f} MiB of memory, {available / MIB:.0f} MiB are available; "
            f"close something, or try it with --force."
        )


def _require_disk(folder: Path, weights: int) -> None:
    needed, free = weights + weights // 4 + 64 * MIB, shutil.disk_usage(folder).free
    if free < needed:
        raise BundleError(
            f"{folder} has room for {free / MIB:.0f} MiB, a plan takes about {needed / MIB:.0f}; make room."
        )


@contextlib.contextmanager
def _writing(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Make a folder of plans, keep other builds out of its bundle, and clear away what stopped builds left in it.

    Raises BundleError before anything is written where what a build reads and writes is a link, or something else that
    no build has made.
    """
    try:
        _require("a folder", folder.parent, folder)
        _require("a file", folder.parent / LOCK, folder / TIMING_CACHE, *(folder / f"{name}.json" for name in names))
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / LOCK) as alone:
            if not alone:
                raise BundleError(f"Another build runs in {folder.parent}; wait for it to end.")
            _sweep(folder)
            try:
                yield
            finally:
                _sweep(folder)
    except OSError as error:
        raise BundleError(f"{folder} cannot be written ({error}); mend that, and build again.") from error


def _require(kind: str, *paths: Path) -> None:
    """Raise BundleError where something else than a file, or a folder, has one of the names."""
    for path in paths:
        if (found := kind_of(path)) not in ("", kind):
            raise BundleError(f"{path} is {found}, expected {kind} of a build; move it away, and build again.")


def _sweep(folder: Path) -> None:
    """Remove what stopped builds left, and nothing else."""
    for path in leftovers(folder):
        path.unlink()
