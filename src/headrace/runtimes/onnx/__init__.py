"""Runtime of ONNX models on ONNX Runtime. Imports its siblings `rows`, `tables`."""
