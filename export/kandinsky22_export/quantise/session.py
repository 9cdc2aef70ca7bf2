"""Graphs run on the processor, as they are written or with something changed in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime


def session(path: Path) -> Any:
    """A session on the processor."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def session_of(model: onnx.ModelProto, path: Path, suffix: str) -> Any:
    """A session of a changed graph whose data is that of the graph in `path`: it is written beside it for a moment."""
    file = path.with_name(f"{path.stem}.{suffix}.onnx")
    file.write_bytes(model.SerializeToString())
    try:
        return session(file)
    finally:
        file.unlink()
