"""TensorRT and TensorRT for RTX on NVIDIA GPUs: plans built, chosen, and run."""

from kandinsky22.backends.tensorrt.component import BACKEND

__all__ = ["BACKEND"]
