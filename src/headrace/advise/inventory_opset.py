"""How new may an ONNX model be for the runtime here? Found out with a model of one node."""

from collections.abc import Callable

OpensModel = Callable[[bytes], None]
"""Opens a model of ours in ONNX Runtime; raises if that does not know its opset."""


def highest_opset(opens: OpensModel, *, most: int = 40, least: int = 13) -> int | None:
    """The newest opset that the runtime takes, found out with a model of one node.

    Args:
        opens: Raises for a model that is too new.
    """
    for opset in range(most, least - 1, -1):
        try:
            opens(identity_model(opset))
        except Exception:  # noqa: BLE001, S112  # the binding's errors share no base class but this
            continue
        return opset
    return None


def identity_model(opset: int) -> bytes:
    """An ONNX model whose output is its input."""

    def message(number: int, content: bytes) -> bytes:
        return bytes((number << 3 | 2, len(content))) + content

    def value(name: bytes) -> bytes:
        tensor = b"\x08\x01" + message(2, message(1, b"\x08\x01"))  # FP32 of shape [1]
        return message(1, name) + message(2, message(1, tensor))

    node = message(1, b"x") + message(2, b"y") + message(4, b"Identity")
    graph = (
        message(1, node) + message(2, b"g") + message(11, value(b"x")) + message(12, value(b"y"))
    )
    return b"\x08\x08" + message(7, graph) + message(8, bytes((0x10, opset)))


def opens_here(model: bytes) -> None:
    """Open a model of ours in ONNX Runtime; raises if it does not take it."""
    import onnxruntime as ort  # noqa: PLC0415  # slow to load, and not every audit asks

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
