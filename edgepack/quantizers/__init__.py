"""Quantizers that make QDQ ONNX."""
