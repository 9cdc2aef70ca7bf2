"""Records, which lie beside plans: what a plan was made from and for, and what it runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from kandinsky22 import schema
from kandinsky22.backends.cuda.gpu import Device
from kandinsky22.backends.tensorrt.profile import Profile, Range
from kandinsky22.schema import SchemaError

FORMAT_VERSION = 1

Count = Annotated[int, schema.between(0, 2**63 - 1)]
Sha256 = Annotated[str, schema.matching("[0-9a-f]{64}", "a SHA-256 in hexadecimal")]
PlanName = Annotated[str, schema.matching(r"[\w-]+\.plan", "the name of a plan in its folder")]
Ranges = Annotated[
    dict[str, Range],
    schema.NOT_EMPTY,
    schema.Rule(
        "shapes of as many sides, the smallest, the tuned and the largest",
        lambda shapes: all(len({len(shape) for shape in each}) == 1 for each in shapes.values()),
    ),
]


@dataclass(frozen=True)
class Report:
    """What a plan runs: its layers by type and kind, and whether attention runs in fused kernels.

    `layers` counts the engine's layers by the type of their first output and their kind, {"Half": {"gemm": 12}};
    it is empty where TensorRT did not tell. `products` counts the graph's convolutions, matrix products and
    attentions, where nearly all of the arithmetic is, by type. `attention` counts the attentions among them, `fusable`
    those that a fused kernel exists for (16-bit, head size 16 to 256), and `fused` the fused kernels in the engine.
    `operands` counts the engine's products by the type of what they multiply, {"Int8": 71}; `floating` names those of a
    quantised graph that multiply something else.
    """

    layers: dict[str, dict[str, Count]]
    products: dict[str, Count]
    attention: Count
    fusable: Count
    fused: Count
    operands: dict[str, Count] = field(default_factory=dict)
    floating: tuple[str, ...] = ()


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
    shapes: Ranges
    onnx: dict[str, str]
    settings: dict[str, Any]
    plan: PlanName
    bytes: Count
    sha256: Sha256
    weight_bytes: Count
    seconds: Annotated[float, schema.between(0, 1e9)]
    peak_memory: Count
    report: Report
    warnings: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The record as indented JSON with a checksum of its own, ended by a newline."""
        data = dataclasses.asdict(self)
        return json.dumps({**data, "checksum": _checksum(data)}, indent=2) + "\n"

    def misfit(self, shapes: Mapping[str, Sequence[int]]) -> str | None:
        """Why inputs of these shapes cannot be fed to this plan, or None where they can."""
        for name, shape in shapes.items():
            if name not in self.shapes:
                return f"it does not take {name}"
            smallest, _, largest = self.shapes[name]
            if len(shape) != len(smallest) or not all(
                low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
            ):
                return f"it takes {name} from {smallest} to {largest}, not {tuple(shape)}"
        return None


def from_json(text: bytes) -> PlanRecord:
    """The record that `PlanRecord.to_json` wrote, in UTF-8. Raises SchemaError where the text is something else."""
    data = schema.parse(text)
    if not isinstance(data, dict):
        raise schema.mismatch("", data, "an object")
    version = data.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise SchemaError(f"it has format {schema.shown(version)}, this kandinsky22 reads {FORMAT_VERSION}")
    if data.pop("checksum", None) != _checksum(data):
        raise SchemaError("its checksum differs")
    return schema.read(PlanRecord, data)


def _checksum(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
