"""Kandinsky 2.2 checkpoints -> bundles of ONNX graphs. Needs torch and diffusers, once per checkpoint."""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, which takes 5 ms to import, in which Ctrl-C would print a traceback
if TYPE_CHECKING:
    from typing import Any

    from kandinsky22_export.write_bundle import export

__all__ = ["export"]


def __getattr__(name: str) -> Any:
    """`export` on first use: what it imports takes seconds, and `kandinsky22-export --help` needs none of it."""
    if name == "export":
        from kandinsky22_export.write_bundle import export

        return export
    raise AttributeError(name)
