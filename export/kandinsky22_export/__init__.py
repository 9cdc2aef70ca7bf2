"""Kandinsky 2.2 checkpoints -> bundles of ONNX graphs. Needs torch and diffusers, once per checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kandinsky22_export.write_bundle import export

__all__ = ["export"]


def __getattr__(name: str) -> Any:
    """`export` on first use: what it imports takes seconds, and `kandinsky22-export --help` needs none of it."""
    if name == "export":
        from kandinsky22_export.write_bundle import export

        return export
    raise AttributeError(name)
