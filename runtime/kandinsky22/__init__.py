"""Kandinsky 2.2 without torch: text to image from ONNX graphs or TensorRT plans."""
