"""Conversion of models to ONNX, compared with their source."""
