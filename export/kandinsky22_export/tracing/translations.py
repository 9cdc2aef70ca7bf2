"""What ONNX has no operator for by torch's names, as ONNX operators: what is here need not be decomposed first.

Of what these networks are made of that is three operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset23

OPSET = opset23.version

aten = torch.ops.aten


def _to_dtype(x: Any, dtype: int, *_: Any, **__: Any) -> Any:
    return opset23.Cast(x, to=int(dtype))


def _to_device(x: Any, _device: Any, dtype: int, *_: Any, **__: Any) -> Any:
    return opset23.Cast(x, to=int(dtype))


def _rsub(x: Any, minuend: Any) -> Any:
    return opset23.Sub(opset23.CastLike(minuend, x), x)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    aten.to.dtype: _to_dtype,
    aten.to.device: _to_device,
    aten.rsub.Scalar: _rsub,
}
