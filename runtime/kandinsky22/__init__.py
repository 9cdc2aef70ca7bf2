"""Kandinsky 2.2 without torch: text to image from ONNX graphs or TensorRT plans.

from kandinsky22 import Pipeline

pipe = Pipeline.load("engines/shapes")
pipe("a red circle on a blue background", seed=0).images[0].save("circle.png")
"""

from kandinsky22.errors import (
    BackendError,
    BundleError,
    Cancelled,
    CheckpointError,
    ExportError,
    InputError,
    KandinskyError,
)
from kandinsky22.pipeline import Output, Pipeline
from kandinsky22.prior import Embeddings

__all__ = [
    "BackendError",
    "BundleError",
    "Cancelled",
    "CheckpointError",
    "Embeddings",
    "ExportError",
    "InputError",
    "KandinskyError",
    "Output",
    "Pipeline",
]
