"""Conversion of models to ONNX, compared with the source. Imports no sibling."""
