"""Model asset of an inventory: its format, details and problems."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from headrace.advise.audit.facts import FindingSeverity
from headrace.runtimes.onnx.facts import TensorInfo


class AssetFormat(StrEnum):
    """What a file or folder is, by its content."""

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


class Trouble(StrEnum):
    """What may be wrong with an asset."""

    RUNS_CODE = "runs-code"
    """Loading it runs what its author wrote."""
    DANGEROUS_CODE = "dangerous-code"
    """Loading it calls what no model needs: a shell, a socket, an interpreter."""
    EXTERNAL_OUTSIDE = "external-data-outside"
    """Its weights are in a file outside of its folder."""
    MISSING_PART = "missing-part"
    """A file that belongs to it is not there, or too short."""
    BROKEN = "broken"
    """Its content is not what its beginning or its name promises."""
    EMPTY = "empty"
    """It has no byte."""
    LFS_POINTER = "lfs-pointer"
    """It stands for a file that was not fetched."""
    OPSET_TOO_NEW = "opset-too-new"
    """The runtime here does not know its operators yet."""
    CUSTOM_OPERATORS = "custom-operators"
    """It needs operators that the runtime does not bring."""
    HUGE = "huge"
    """It is larger than what is looked at, or than what its format allows."""
    DUPLICATE = "duplicate"
    """Another asset has the same content."""
    UNSIGNED = "unsigned"
    """Nobody vouches for it."""
    LINK_OUTSIDE = "symlink-outside"
    """It is a link that leaves the folder, or leads nowhere."""


_SEVERITIES: Final = {
    Trouble.DANGEROUS_CODE: FindingSeverity.CRITICAL,
    Trouble.RUNS_CODE: FindingSeverity.MEDIUM,
    Trouble.CUSTOM_OPERATORS: FindingSeverity.MEDIUM,
    Trouble.HUGE: FindingSeverity.MEDIUM,
    Trouble.DUPLICATE: FindingSeverity.LOW,
    Trouble.UNSIGNED: FindingSeverity.LOW,
}
"""Of problems that are not of high severity: what cannot be served as it is, is."""
_SMALL: Final = ("INT8", "UINT8", "INT4", "UINT4", "INT2", "FP8", "FP4", "Q", "IQ")
"""How datatypes of fewer than 16 bits begin that are no truth value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetProblem:
    """One thing that is wrong with an asset."""

    code: Trouble
    severity: FindingSeverity
    message: str


def problem(code: Trouble, message: str) -> AssetProblem:
    """A problem with the severity that its kind has."""
    return AssetProblem(
        code=code, severity=_SEVERITIES.get(code, FindingSeverity.HIGH), message=message
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What was read in an asset. `weights`: bytes by datatype. `parts`: other files of it."""

    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    opset: int | None = None
    producer: str = ""
    weights: Mapping[str, int] = field(default_factory=dict)
    quantised: bool | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    problems: tuple[AssetProblem, ...] = ()

    @property
    def precision(self) -> str:
        """The datatypes of its weights, that with most bytes first; what is under 1 % is left out.

        Empty if it is not known.
        """
        total = sum(self.weights.values())
        ranked = sorted(self.weights.items(), key=lambda item: (-item[1], item[0]))
        return "+".join(name for name, size in ranked if size * 100 >= total)

    @property
    def is_quantised(self) -> bool | None:
        """Whether weights were made smaller than 16 bits; None if that is not known."""
        if self.quantised or not self.weights:
            return self.quantised
        small = sum(size for name, size in self.weights.items() if name.startswith(_SMALL))
        return small * 10 >= sum(self.weights.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One model. `path` is relative to the folder, `.` for the folder itself.

    `model` and `version`: by the layout MODEL/VERSION/file. `reference`: in the registry here.
    `runtime`: which of those installed here serves it; empty for none, and then `convert` says what
    to do. `digest` is empty where it was not read.
    """

    path: str
    format: AssetFormat
    size_bytes: int
    digest: str
    details: Details
    runtime: str
    convert: str
    problems: tuple[AssetProblem, ...]
    model: str = ""
    version: str = ""
    reference: str = ""
    signed: bool = False
