"""A variant computes what its graph does, with its queries in parts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from kandinsky22_export.tracing import variants


def attention(inputs: tuple[str, ...] = ("query", "key", "value"), **attributes: object) -> onnx.ModelProto:
    node = helper.make_node("Attention", inputs, ["result"], "attention", **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["B", 2, "N", 3]) for name in (*inputs, "result")]
    graph = helper.make_graph([node], "attention", values[:-1], values[-1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.mark.parametrize("pixels", [1, 15, 16, 28, 64, 77])
@pytest.mark.parametrize("attributes", [{}, {"scale": 0.3}])
def test_attention_in_parts(pixels: int, attributes: dict[str, float]) -> None:
    """Also where the pixels do not divide into the parts, or are fewer than them."""
    model = attention(**attributes)
    feeds = dict(
        zip(("query", "key", "value"), np.random.default_rng(0).normal(size=(3, 2, 2, pixels, 3)), strict=True)
    )
    (expected,) = ReferenceEvaluator(model).run(None, feeds)
    variants.attention_in_parts(model)
    onnx.checker.check_model(model, full_check=True)
    looks = [node for node in model.graph.node if node.op_type == "Attention"]
    assert len(looks) == variants.QUERY_PARTS
    results = ReferenceEvaluator(model).run([*looks[0].input[:1], "result"], feeds)
    assert results[0].shape == (2, 2, -(-pixels // variants.QUERY_PARTS), 3)
    np.testing.assert_allclose(results[1], expected, rtol=1e-12, atol=1e-12)


def test_attention_with_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="attention has a mask"):
        variants.attention_in_parts(attention(("query", "key", "value", "mask")))
