"""Plans, chosen: the one that belongs to this bundle, this TensorRT and this GPU, or a sentence why none does.

A plan is code for one TensorRT version and certain GPUs, and deserialising it runs it. So `verified_plan` hands it out
only where every word of its record fits. docs/tensorrt.md describes the folder; `build` writes it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kandinsky22.backends.cuda.gpu import Device
from kandinsky22.backends.tensorrt.library import Flavour, rtx_targets
from kandinsky22.backends.tensorrt.profile import Profile
from kandinsky22.backends.tensorrt.records import PlanRecord, from_json
from kandinsky22.bundle.bundle import Bundle
from kandinsky22.bundle.contents import PLANS
from kandinsky22.errors import BundleError
from kandinsky22.files import open_regular, read_regular
from kandinsky22.schema import MOST_BYTES, SchemaError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A plan that fits: where its record lies, and the record."""

    path: Path
    record: PlanRecord

    @property
    def rows(self) -> int:
        """How many rows (texts, pictures) it takes at once, where its inputs are rows."""
        return min(largest[0] for _, _, largest in self.record.shapes.values())


def onnx_hashes(bundle: Bundle, name: str) -> dict[str, str]:
    """SHA-256 of the files of a component, external data included, as the manifest has them."""
    return {file: bundle.manifest.files[file].sha256 for file in bundle.component(name).files}


def plan_folder(bundle: Bundle, flavour: Flavour, device: Device | None, profile: Profile) -> Path:
    """Where plans of this flavour, GPU (None: RTX) and profile lie: `tensorrt/rtx-1.7.1.116-384-1024-2048-b1`."""
    target = "rtx" if device is None else re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")
    return bundle.path / PLANS / f"{target}-{flavour.version}-{profile}"


def read_record(path: Path) -> PlanRecord:
    """The record in a file. Raises BundleError where it cannot be read, or names a plan outside of its folder."""
    try:
        return from_json(read_regular(path, MOST_BYTES))
    except SchemaError as error:
        raise BundleError(f"{path} is not the record of a plan ({error})") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror})") from error


def verified_plan(
    bundle: Bundle,
    component: str,
    flavour: Flavour,
    device: Device,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> tuple[bytes, Plan]:
    """The bytes of the plan that `choose_plan` gives, after every check: those whose SHA-256 was compared.

    Raises BundleError where there is none; the sentence says what differs and which command mends it.
    """
    plan = choose_plan(bundle, component, flavour, device, shapes)
    try:
        return _read_plan(plan, bundle, flavour), plan
    except BundleError:
        if read_record(plan.path) == plan.record:
            raise
    # A build has replaced the plan between the reading of its record and of its bytes.
    return verified_plan(bundle, component, flavour, device, shapes)


def choose_plan(
    bundle: Bundle,
    component: str,
    flavour: Flavour,
    device: Device,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Plan:
    """The plan of a component for this TensorRT, this GPU and inputs of `shapes`, by name. Reads records, no plans.

    It is the one for the narrowest range that takes the inputs. Where none takes as many rows, and the component's
    inputs are nothing but rows, it is the one that takes most of them at once. The widest where no shapes are given.

    Raises BundleError where there is none; the sentence says what differs and which command mends it.
    """
    if shapes is None:
        return fitting_plans(bundle, component, flavour, device)[-1]
    try:
        return fitting_plans(bundle, component, flavour, device, shapes)[0]
    except BundleError:
        if not _is_rows(bundle, component):
            raise
    one = {name: (1, *shape[1:]) for name, shape in shapes.items()}
    return max(fitting_plans(bundle, component, flavour, device, one), key=lambda plan: plan.rows)


def fitting_plans(
    bundle: Bundle,
    component: str,
    flavour: Flavour,
    device: Device,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> list[Plan]:
    """All plans of a component for this TensorRT, this GPU and inputs of `shapes`, the narrowest first.

    Raises BundleError where there is none, with a sentence about the one that comes closest. Reads records, no plans.
    """
    bundle.component(component)
    fitting, refused = [], []
    for path in sorted((bundle.path / PLANS).glob(f"*/{component}.json")):
        try:
            record = read_record(path)
        except BundleError as error:
            refused.append(([str(error)], _command(bundle, flavour)))
            continue
        if record.component != component or record.flavour != flavour.name:
            continue
        differences, mend = _differences(record, bundle, flavour, device, shapes)
        if differences:
            refused.append(([f"The plan of {path} cannot be used", *differences], mend))
            log.debug("The plan of %s is not used: %s", path, "; ".join(differences))
        else:
            fitting.append(Plan(path, record))
    if fitting:
        return sorted(fitting, key=lambda plan: plan.record.profile.width)
    if refused:
        differences, mend = min(refused, key=lambda each: len(each[0]))
        raise BundleError(f"{': '.join(differences[:2])}{''.join('; ' + each for each in differences[2:])}. {mend}")
    raise BundleError(f"{bundle.path} has no plan of {component} for {flavour.name}. {_command(bundle, flavour)}")


def refusal(bundle: Bundle, component: str, flavour: Flavour, device: Device) -> str | None:
    """Why a component has no plan that can be used here, as far as records tell; None where it has. Reads no plan."""
    try:
        choose_plan(bundle, component, flavour, device)
    except BundleError as error:
        return str(error)
    return None


def _is_rows(bundle: Bundle, component: str) -> bool:
    """Whether all inputs of a component are rows, so that it can be run on a part of them."""
    return all(spec.shape[:1] == ("B",) for spec in bundle.component(component).inputs)


def _differences(
    record: PlanRecord,
    bundle: Bundle,
    flavour: Flavour,
    device: Device,
    shapes: Mapping[str, Sequence[int]] | None,
) -> tuple[list[str], str]:
    """What keeps a plan from being used here, as clauses of a sentence, and the sentence that mends it."""
    found = []
    mend = _command(bundle, flavour, record.profile)
    if record.version != flavour.version:
        found.append(f"it was built by {flavour.name} {record.version}, this is {flavour.version}")
    if record.device is not None and record.device != device:
        found.append(f"it was built for the GPU {record.device}, this is {device}")
    capability = "{}.{}".format(*device.compute_capability)
    if record.device is None and capability not in record.targets:
        found.append(f"it was built for the compute capabilities {', '.join(record.targets)}, this is {device}")
        mend = (
            _command(bundle, flavour, record.profile, f" --target {capability}")
            if capability in rtx_targets(flavour.module, turing=True)
            else "TensorRT for RTX does not run on this GPU; use the flavour tensorrt."
        )
    if record.onnx != onnx_hashes(bundle, record.component):
        found.append("it was built from another ONNX graph (its SHA-256 is not the manifest's)")
    if set(record.shapes) != {spec.name for spec in bundle.component(record.component).inputs}:
        found.append(f"it takes {', '.join(record.shapes)}, other inputs than the graph")
    if shapes is not None and (misfit := record.misfit(shapes)) is not None:
        found.append(misfit)
        mend = f"Ask for another size or fewer pictures at once, or build for these. {_command(bundle, flavour)}"
    return found, mend


def _command(bundle: Bundle, flavour: Flavour, profile: Profile | None = None, more: str = "") -> str:
    sizes = "--min … --max … --batch …" if profile is None else profile.arguments()
    return f"Build it: kandinsky22 build {bundle.path} --flavour {flavour.name} {sizes}{more}"


def _read_plan(chosen: Plan, bundle: Bundle, flavour: Flavour) -> bytes:
    """The bytes of a plan that are what was built."""
    record, path = chosen.record, chosen.path.parent / chosen.record.plan
    mend = _command(bundle, flavour, record.profile)
    try:
        with open_regular(path, sys.maxsize) as file:
            size = os.fstat(file.fileno()).st_size
            plan = file.read() if size == record.bytes else b""
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error.strerror}). {mend}") from error
    if size != record.bytes:
        raise BundleError(f"{path} has {size} bytes, its record says {record.bytes}. {mend}")
    if hashlib.sha256(plan).hexdigest() != record.sha256:
        raise BundleError(f"{path} is not the plan that was built (its SHA-256 differs). {mend}")
    return plan
