"""Model asset of an inventory: its format, details and problems."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from headrace.advise.audit.facts import FindingSeverity
from headrace.runtimes.onnx.facts import TensorInfo


class AssetFormat(StrEnum):
    """The format of a file or folder, by its content."""

    ONNX = "onnx"
    ORT = "ort"
    TORCHSCRIPT = "torchscript"
    TORCH_EXPORT = "torch-export"
    TORCH_PICKLE = "torch-pickle"
    SAVEDMODEL = "savedmodel"
    TFLITE = "tflite"
    OPENVINO = "openvino"
    KERAS = "keras"
    KERAS_H5 = "keras-h5"
    SKLEARN = "sklearn-pickle"
    PICKLE = "pickle"
    XGBOOST_JSON = "xgboost-json"
    XGBOOST_UBJ = "xgboost-ubj"
    XGBOOST_BINARY = "xgboost-binary"
    LIGHTGBM = "lightgbm"
    CATBOOST = "catboost"
    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    PMML = "pmml"
    PYTHON = "python"
    OPTIMIZED = "optimized"
    UNKNOWN = "unknown"


class AssetProblemKind(StrEnum):
    """A kind of problem of an asset."""

    RUNS_CODE = "runs-code"
    """Loading it runs code of its author."""
    DANGEROUS_CODE = "dangerous-code"
    """Loading it calls functions that no model needs: a shell, a socket, an interpreter."""
    EXTERNAL_OUTSIDE = "external-data-outside"
    """Its weights are in a file outside of its folder."""
    MISSING_PART = "missing-part"
    """One of its files is missing, or too short."""
    BROKEN = "broken"
    """Its content does not match its beginning or its name."""
    EMPTY = "empty"
    """It is an empty file."""
    LFS_POINTER = "lfs-pointer"
    """It is a pointer to a file that was not fetched."""
    OPSET_TOO_NEW = "opset-too-new"
    """The installed runtime does not support its operators yet."""
    CUSTOM_OPERATORS = "custom-operators"
    """It needs operators that the runtime does not have."""
    HUGE = "huge"
    """It is larger than the limit of the inventory, or of its format."""
    DUPLICATE = "duplicate"
    """Another asset has the same content."""
    UNSIGNED = "unsigned"
    """It has no signature."""
    LINK_OUTSIDE = "symlink-outside"
    """It is a link that leaves the folder, or is broken."""


_SEVERITIES: Final = {
    AssetProblemKind.DANGEROUS_CODE: FindingSeverity.CRITICAL,
    AssetProblemKind.RUNS_CODE: FindingSeverity.MEDIUM,
    AssetProblemKind.CUSTOM_OPERATORS: FindingSeverity.MEDIUM,
    AssetProblemKind.HUGE: FindingSeverity.MEDIUM,
    AssetProblemKind.DUPLICATE: FindingSeverity.LOW,
    AssetProblemKind.UNSIGNED: FindingSeverity.LOW,
}
"""Severities of other kinds; kinds that prevent serving have high severity."""
_SMALL: Final = ("INT8", "UINT8", "INT4", "UINT4", "INT2", "FP8", "FP4", "Q", "IQ")
"""Prefixes of datatypes with fewer than 16 bits, without booleans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetProblem:
    """One problem of an asset."""

    code: AssetProblemKind
    severity: FindingSeverity
    message: str


def problem(code: AssetProblemKind, message: str) -> AssetProblem:
    """Return a problem with the severity of its kind."""
    return AssetProblem(
        code=code, severity=_SEVERITIES.get(code, FindingSeverity.HIGH), message=message
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """Details read from an asset."""

    inputs: tuple[TensorInfo, ...] = ()

    outputs: tuple[TensorInfo, ...] = ()

    opset: int | None = None

    producer: str = ""

    weights: Mapping[str, int] = field(default_factory=dict)
    """Bytes by datatype."""

    quantised: bool | None = None
    """Whether the weights are quantized; None if unknown."""

    notes: Mapping[str, str] = field(default_factory=dict)

    parts: tuple[str, ...] = ()
    """Its other files."""

    problems: tuple[AssetProblem, ...] = ()

    @property
    def precision(self) -> str:
        """Return the datatypes of its weights, largest first, without those under 1 %.

        Empty if unknown.
        """
        total = sum(self.weights.values())
        ranked = sorted(self.weights.items(), key=lambda item: (-item[1], item[0]))
        return "+".join(name for name, size in ranked if size * 100 >= total)

    @property
    def is_quantised(self) -> bool | None:
        """Whether weights have fewer than 16 bits; None if unknown."""
        if self.quantised or not self.weights:
            return self.quantised
        small = sum(size for name, size in self.weights.items() if name.startswith(_SMALL))
        return small * 10 >= sum(self.weights.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One model."""

    path: str
    """Relative to the folder, `.` for the folder itself."""

    format: AssetFormat

    size_bytes: int

    digest: str
    """Digest of the content; empty if the file was not read."""

    details: Details

    runtime: str
    """The installed runtime that serves it; empty for none."""

    convert: str
    """Remedy if no runtime serves it."""

    problems: tuple[AssetProblem, ...]

    model: str = ""
    """Model name by the layout MODEL/VERSION/file."""

    version: str = ""
    """Version by the layout MODEL/VERSION/file."""

    reference: str = ""
    """Reference in this registry."""

    signed: bool = False
