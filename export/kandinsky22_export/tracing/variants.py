"""Rewrites of finished graphs: the same computation over the same external data, done in another way.

A graph is written once and costs seconds to minutes to trace; its variants are edited from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from kandinsky22.bundle.manifest import ATTENTION_IN_PARTS

QUERY_PARTS = 16
"""Into how many parts `attention_in_parts` splits the queries: 64 MiB of scores a part at 1024x1024, in float32."""

PARTS, AXIS, ZERO, ZEROS = (f"{ATTENTION_IN_PARTS}/{name}" for name in ("parts", "axis", "zero", "zeros"))
NUMBERS = {PARTS: [QUERY_PARTS], AXIS: [2], ZERO: [0], ZEROS: [0] * 6}
"""Constants of a variant: ZEROS is what is padded before the end of the third axis of four."""

Rewrite = Callable[[onnx.ModelProto], None]


def attention_in_parts(model: onnx.ModelProto) -> None:
    """Let all attention look at its queries in `QUERY_PARTS` parts, one after the other.

    MoVQ's one head of 512 looks from every latent pixel at every other: 2^28 scores at 1024x1024, 2^32 at 2048x2048.
    For heads that wide ONNX Runtime has no kernel that does without all of them at once; OpenVINO has, which is fast on
    AMX alone. Attention must have queries (B, heads, N, D), keys and values, and no mask.
    """
    nodes = [new for old in model.graph.node for new in (_in_parts(old) if old.op_type == "Attention" else (old,))]
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(numbers), name) for name, numbers in NUMBERS.items()
    )
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _in_parts(node: NodeProto) -> Iterator[NodeProto]:
    """The nodes that take the place of one Attention."""
    if len(node.input) != 3:
        raise ValueError(f"{node.name} has a mask or a cache, which cannot be split.")
    query, result = node.input[0], node.output[0]

    def make(kind: str, inputs: list[str], name: str, **attributes: Any) -> NodeProto:
        return helper.make_node(kind, inputs, [f"{result}/{name}"], f"{result}/{name}", **attributes)

    # Zeros fill the last part up; what they see is cut off again.
    yield make("Shape", [query], "pixels", start=2, end=3)
    yield make("Neg", [f"{result}/pixels"], "minus_pixels")
    yield make("Mod", [f"{result}/minus_pixels", PARTS], "missing")
    yield make("Concat", [ZEROS, f"{result}/missing", ZERO], "pads", axis=0)
    yield make("Pad", [query, f"{result}/pads"], "padded")
    queries, seen = ([f"{result}/{what}_{part}" for part in range(QUERY_PARTS)] for what in ("query", "seen"))
    yield helper.make_node("Split", [f"{result}/padded"], queries, f"{result}/split", axis=2, num_outputs=QUERY_PARTS)
    for part in range(QUERY_PARTS):
        attention = NodeProto()
        attention.CopyFrom(node)
        attention.name = attention.output[0] = seen[part]
        attention.input[0] = queries[part]
        yield attention
    yield make("Concat", seen, "seen", axis=2)
    yield helper.make_node("Slice", [f"{result}/seen", ZERO, f"{result}/pixels", AXIS], [result], f"{result}/cut")


VARIANTS: Mapping[str, Rewrite] = {ATTENTION_IN_PARTS: attention_in_parts}
"""The rewrites by the names of the bundle's variants."""
