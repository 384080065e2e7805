"""A model in bare ONNX Runtime, the way every server here loads it.

Imports nothing but ONNX Runtime: servers of peers run it in environments of their own.
"""

from pathlib import Path

import onnxruntime as ort


def session(path: Path, *, threads: int = 1) -> ort.InferenceSession:
    """The model with so many threads inside a run, none of which waits awake."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
