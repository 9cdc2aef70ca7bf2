"""Kandinsky 2.2 without torch: text to image from ONNX graphs or TensorRT plans.

from kandinsky22 import Pipeline

pipe = Pipeline.load("engines/shapes")
pipe("a red circle on a blue background", seed=0).images[0].save("circle.png")
"""

from __future__ import annotations

from kandinsky22.errors import (
    BackendError,
    BundleError,
    Cancelled,
    CheckpointError,
    ExportError,
    InputError,
    KandinskyError,
    MemoryLimitError,
)
from kandinsky22.version import VERSION

TYPE_CHECKING = False  # as typing's. It and logging take 20 ms to import, in which Ctrl-C would print a traceback.
if TYPE_CHECKING:
    from typing import Any

    from kandinsky22.arrays import Embeddings
    from kandinsky22.pipeline import Output, Pipeline
    from kandinsky22.request.request import Request

__version__ = VERSION

__all__ = [
    "BackendError",
    "BundleError",
    "Cancelled",
    "CheckpointError",
    "Embeddings",
    "ExportError",
    "InputError",
    "KandinskyError",
    "MemoryLimitError",
    "Output",
    "Pipeline",
    "Request",
    "__version__",
]

_LAZY = {
    "Embeddings": "kandinsky22.arrays",
    "Output": "kandinsky22.pipeline",
    "Pipeline": "kandinsky22.pipeline",
    "Request": "kandinsky22.request.request",
}
"""Names that are imported when they are asked for, and where they are: `kandinsky22 --help` waits for no NumPy."""


def __getattr__(name: str) -> Any:
    """Import what `_LAZY` names when it is first asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value
