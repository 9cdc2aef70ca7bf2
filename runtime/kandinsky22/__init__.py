"""Kandinsky 2.2 without torch: text to image from ONNX graphs or TensorRT plans.

from kandinsky22 import Pipeline

pipe = Pipeline.load("engines/shapes")
pipe("a red circle on a blue background", seed=0).images[0].save("circle.png")
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from kandinsky22.arrays import Embeddings
    from kandinsky22.pipeline import Output, Pipeline
    from kandinsky22.request.request import Request

__version__ = VERSION

logging.getLogger("kandinsky22").addHandler(logging.NullHandler())  # silent as a library

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
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value
