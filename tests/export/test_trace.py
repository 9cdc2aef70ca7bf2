"""What is translated as it was traced, and what is decomposed first, against torch itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from kandinsky22_export.tracing.trace import to_onnx


class Direct(nn.Module):
    """Everything that is translated here: a dtype, a device with a dtype, and a number less a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return (1 - x.to(torch.float64)) + x.to("cpu", torch.float64) ** 2


class Roundabout(nn.Module):
    """A number less twice a tensor, which is not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.rsub(x, 5, alpha=2)


def outputs(network: nn.Module, x: Tensor) -> Any:
    program = to_onnx(network, (x,), input_names=["x"], verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (output,) = session.run(None, {"x": x.numpy()})
    return output


@pytest.mark.parametrize(("network", "decompositions"), [(Direct(), 0), (Roundabout(), 1)])
def test_what_can_be_is_translated_as_it_was_traced(
    monkeypatch: pytest.MonkeyPatch, network: nn.Module, decompositions: int
) -> None:
    calls, decompose = [], ExportedProgram.run_decompositions

    def counted(program: ExportedProgram, *arguments: Any) -> ExportedProgram:
        calls.append(program)
        return decompose(program, *arguments)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", counted)
    x = torch.linspace(-3, 3, 12).reshape(3, 4)
    np.testing.assert_array_equal(outputs(network, x), network(x).numpy())
    assert len(calls) == decompositions
    assert ExportedProgram.run_decompositions is counted
