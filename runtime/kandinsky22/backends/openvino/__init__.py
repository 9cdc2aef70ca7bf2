"""OpenVINO on the CPU: the fastest path without a GPU."""

from kandinsky22.backends.openvino.component import BACKEND

__all__ = ["BACKEND"]
