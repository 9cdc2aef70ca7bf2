"""Kandinsky 2.2 checkpoints (diffusers layout) to ONNX bundles. Needs torch; the runtime does not."""
