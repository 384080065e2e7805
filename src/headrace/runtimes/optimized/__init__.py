"""Runtime of optimized models: several engines as one. Imports its sibling `onnx`."""
