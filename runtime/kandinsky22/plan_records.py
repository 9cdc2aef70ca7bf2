"""What a plan is for, and what it was made from: profiles, and the records that lie beside plans."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kandinsky22.bundle import Bundle, Component, TensorSpec, pictures_at_once
from kandinsky22.errors import InputError
from kandinsky22.plan_builder import Range, Report
from kandinsky22.trt import Device

FORMAT_VERSION = 1
GUIDANCE_BRANCHES = 2
MAX_BATCH = 64


@dataclass(frozen=True)
class Profile:
    """Pictures that plans are built for: sides in pixels, each on its own, and pictures at once from 1 to `batch`.

    Plans are static in their sizes where `minimum` is `maximum`, and tuned for one picture of `optimum` squared.
    """

    minimum: int
    optimum: int
    maximum: int
    batch: int = 1

    def __str__(self) -> str:
        sides = (self.minimum, self.optimum, self.maximum)
        return "-".join(str(side) for side in dict.fromkeys(sides)) + f"-b{self.batch}"

    @property
    def width(self) -> tuple[int, int, int]:
        """How much it covers, for comparisons: the range of its sides, then pictures at once, then the largest side."""
        return self.maximum - self.minimum, self.batch, self.maximum

    def arguments(self) -> str:
        """This profile as arguments of `kandinsky22 build`."""
        if self.minimum == self.maximum:
            return f"--static {self.minimum} --batch {self.batch}"
        return f"--min {self.minimum} --opt {self.optimum} --max {self.maximum} --batch {self.batch}"

    def check(self, bundle: Bundle) -> None:
        """Raise InputError where no picture has these sizes, or the bundle was exported for smaller ones."""
        block = bundle.manifest.downscale**2
        largest = bundle.manifest.limits["max_size"]
        sides = (self.minimum, self.optimum, self.maximum)
        if any(side < block or side % block for side in sides) or list(sides) != sorted(sides):
            raise InputError(
                f"The sizes are {', '.join(map(str, sides))}; expected multiples of {block}, the smallest first."
            )
        if self.maximum > largest:
            raise InputError(
                f"The largest size is {self.maximum}, the bundle was exported for {largest}; "
                f"choose a smaller --max, or export with a larger --max-size."
            )
        if not 1 <= self.batch <= MAX_BATCH:
            raise InputError(f"The batch is {self.batch}; expected 1 to {MAX_BATCH}.")

    def shapes(self, spec: TensorSpec, component: Component, pixels: int) -> Range:
        """Smallest, tuned and largest shape of an input of a component, with so many `pixels` a latent, a side.

        Raises BundleError where the input has a symbolic dimension that is not made of B, G, h and w.
        """
        latent = [side // pixels for side in (self.minimum, self.optimum, self.maximum)]
        batches = (1, 1, self._batch(component))
        branches = (1, GUIDANCE_BRANCHES, GUIDANCE_BRANCHES)
        values = [
            {"B": batch, "G": branch, "h": side, "w": side}
            for batch, branch, side in zip(batches, branches, latent, strict=True)
        ]
        smallest, tuned, largest = (spec.resolve(each) for each in values)
        return smallest, tuned, largest

    def _batch(self, component: Component) -> int:
        """Rows of a component at once.

        What works on text alone, or on small pictures of one size, sees two of them for every picture: a prompt and a
        negative prompt. What turns whole pictures into latents or back is never given more than PIXELS_AT_ONCE; a
        larger bound would cost memory for nothing.
        """
        dimensions = {d for spec in (*component.inputs, *component.outputs) for d in spec.shape if isinstance(d, str)}
        if dimensions <= {"B", "G"}:
            return 2 * self.batch
        if not component.state and any("*" in dimension for dimension in dimensions):
            return min(self.batch, pictures_at_once(self.maximum**2))
        return self.batch


def default_profile(bundle: Bundle) -> Profile:
    """384 to 2048 pixels, tuned for 1024, one picture at once.

    Less where the bundle was exported for less, or its UNet was trained on less than the published 512.
    """
    trained = bundle.manifest.default_size
    largest = bundle.manifest.limits["max_size"]
    return Profile(min(384, trained, largest), min(1024 if trained >= 512 else trained, largest), largest)


@dataclass(frozen=True)
class PlanRecord:
    """All that a plan was made from and for, and what came of it. Stored as JSON beside the plan.

    `device` is the GPU of a TensorRT plan; `targets` are the compute capabilities ("8.6") of a TensorRT for RTX
    plan. `shapes` are the ranges of every input, `onnx` the SHA-256 of the graph and its weights by file, `plan` the
    file name of the plan. Sizes and memory are bytes; `peak_memory` is the builder's resident memory at its highest.
    """

    component: str
    flavour: str
    version: str
    device: Device | None
    targets: tuple[str, ...]
    profile: Profile
    shapes: dict[str, Range]
    onnx: dict[str, str]
    settings: dict[str, Any]
    plan: str
    bytes: int
    sha256: str
    weight_bytes: int
    seconds: float
    peak_memory: int
    report: Report
    warnings: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The record as indented JSON with a checksum of its own, ended by a newline."""
        data = dataclasses.asdict(self)
        return json.dumps({**data, "checksum": _checksum(data)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> PlanRecord:
        """Read what `to_json` wrote. Raises ValueError, KeyError or TypeError where it is something else."""
        data = json.loads(text)
        if data["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {data['format_version']}, this kandinsky22 reads {FORMAT_VERSION}")
        if data.pop("checksum") != _checksum(data):
            raise ValueError("its checksum differs")
        device = data["device"]
        parts: dict[str, Any] = {
            "device": device and Device(device["name"], tuple(device["compute_capability"])),
            "targets": tuple(data["targets"]),
            "profile": Profile(**data["profile"]),
            "shapes": {name: _range(value) for name, value in data["shapes"].items()},
            "report": Report(**data["report"]),
            "warnings": tuple(data["warnings"]),
        }
        return PlanRecord(**(data | parts))

    def misfit(self, shapes: Mapping[str, Sequence[int]]) -> str | None:
        """Why inputs of these shapes cannot be fed to this plan, or None where they can."""
        for name, shape in shapes.items():
            smallest, _, largest = self.shapes[name]
            if len(shape) != len(smallest) or not all(
                low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
            ):
                return f"it takes {name} from {smallest} to {largest}, not {tuple(shape)}"
        return None


def _checksum(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _range(value: Sequence[Sequence[int]]) -> Range:
    smallest, tuned, largest = (tuple(shape) for shape in value)
    return smallest, tuned, largest
