"""Layers of a graph that can be quantised: convolutions and products with weights of their own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx

KINDS = {"Conv": 0, "MatMul": 1}
"""Kinds of nodes that are quantised, with the axis of their weights that counts output channels.

`Gemm` stays: in these networks it sees a vector a picture (embeddings of timesteps, images, texts), which costs next to
nothing and on which everything else depends.
"""


@dataclass(frozen=True)
class Layer:
    """A convolution or product: `activation` and `weight` are names of tensors, `shape` is the weight's."""

    name: str
    kind: str
    activation: str
    weight: str
    shape: tuple[int, ...]

    @property
    def axis(self) -> int:
        """The axis of the weight that counts output channels."""
        return KINDS[self.kind]

    @property
    def parameters(self) -> int:
        """Numbers in the weight."""
        count = 1
        for size in self.shape:
            count *= size
        return count


def find_layers(model: onnx.ModelProto, kinds: Collection[str] = tuple(KINDS)) -> list[Layer]:
    """All layers of these kinds, in the graph's order. The weights themselves are not needed.

    A weight that several nodes share is left out, and so is one that anything else reads.
    """
    graph = model.graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    users: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            users[name] = users.get(name, 0) + 1
    return [
        Layer(node.name, node.op_type, node.input[0], node.input[1], shapes[node.input[1]])
        for node in graph.node
        if node.op_type in kinds and node.input[1] in shapes and users[node.input[1]] == 1
    ]
