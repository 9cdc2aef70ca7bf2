"""`torch.onnx.export` without its second tracing, which is half of its time.

Between tracing a network and translating it, torch traces it again to decompose what ONNX has no operator for. Of what
these networks are made of that is three operators, which are translated here; should another network need more, it is
decomposed as usual. That the file computes what torch does is checked afterwards, either way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from onnxscript import opset23
from torch.export import ExportedProgram
from torch.onnx import OnnxExporterError, ONNXProgram

aten = torch.ops.aten
OPSET = opset23.version


def to_onnx(network: torch.nn.Module, arguments: tuple[Any, ...], **options: Any) -> ONNXProgram:
    """What `torch.onnx.export(network, arguments, dynamo=True, **options)` returns for this opset, sooner."""
    options |= {"dynamo": True, "opset_version": OPSET}
    try:
        with _nothing_decomposed():
            program = torch.onnx.export(network, arguments, custom_translation_table=TRANSLATIONS, **options)
    except OnnxExporterError:
        program = torch.onnx.export(network, arguments, **options)
    assert program is not None  # as it is where `dynamo` is not set
    return program


@contextlib.contextmanager
def _nothing_decomposed() -> Iterator[None]:
    decompose = ExportedProgram.run_decompositions
    ExportedProgram.run_decompositions = lambda program, *_, **__: program  # type: ignore[method-assign]
    try:
        yield
    finally:
        ExportedProgram.run_decompositions = decompose  # type: ignore[method-assign]


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
