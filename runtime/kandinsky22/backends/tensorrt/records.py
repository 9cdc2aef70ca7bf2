"""Records, which lie beside plans: what a plan was made from and for, and what it runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kandinsky22.backends.cuda.gpu import Device
from kandinsky22.backends.tensorrt.profile import Profile, Range

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Report:
    """What a plan runs: its layers by type and kind, and whether attention runs in fused kernels.

    `layers` counts the engine's layers by the type of their first output and their kind, {"Half": {"gemm": 12}};
    it is empty where TensorRT did not tell. `products` counts the graph's convolutions, matrix products and
    attentions, where nearly all of the arithmetic is, by type. `attention` counts the attentions among them, `fusable`
    those that a fused kernel exists for (16-bit, head size 16 to 256), and `fused` the fused kernels in the engine.
    """

    layers: dict[str, dict[str, int]]
    products: dict[str, int]
    attention: int
    fusable: int
    fused: int


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
