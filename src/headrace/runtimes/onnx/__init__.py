"""Runtime of ONNX models on ONNX Runtime."""
