"""diffusers on the trained checkpoint, and on the decoders beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .reference import Reference
from .task_reference import TaskReference


@pytest.fixture(scope="session")
def reference(shapes_checkpoint: Path) -> Reference:
    return Reference(shapes_checkpoint)


@pytest.fixture(scope="session")
def task_reference(shapes_checkpoint: Path) -> TaskReference:
    return TaskReference(shapes_checkpoint)


@pytest.fixture
def openvino_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO takes bf16. It rounds as everywhere where it has to be emulated, on AVX-512, which users are refused."""
    from openvino import Model, Type, opset14

    from kandinsky22.backends.openvino import component

    doubled = opset14.multiply(opset14.parameter([1], np.float32), np.float32(2))
    model = Model([doubled], [doubled.input_value(0).get_node()])
    compiled = component.core().compile_model(model, component.DEVICE, {"INFERENCE_PRECISION_HINT": "bf16"})
    if compiled.get_property("INFERENCE_PRECISION_HINT") != Type.bf16:
        pytest.skip("NOT TESTED: bf16, which this processor has not, nor AVX-512 to emulate it")
    monkeypatch.setattr(component, "_has_bf16", lambda: True)
