"""Weights without a graph (safetensors, GGUF), and trees of XGBoost, LightGBM and CatBoost."""

import re
from collections import Counter
from typing import Final

import msgspec

from headrace.advise.inventory.asset import (
    AssetFormat,
    AssetProblem,
    AssetProblemKind,
    Details,
    problem,
)
from headrace.runtimes.file_bytes import BrokenFileError, FileReader
from headrace.runtimes.gguf import read_header
from headrace.runtimes.onnx.facts import TensorInfo

_MAX_HEADER: Final = 64 << 20
_MAX_TENSORS: Final = 200_000
_NAMES: Final = {
    **{f"F{bits}": f"FP{bits}" for bits in (4, 16, 32, 64)},
    **{f"I{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    "F8_E4M3": "FP8E4M3FN",
    "F8_E5M2": "FP8E5M2",
}


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def looks_like_safetensors(source: FileReader) -> bool:
    """Whether the file begins with the length of a JSON header and the header's first bytes."""
    head = source.head(10)
    if len(head) < 10 or head[8:9] != b"{":  # noqa: PLR2004  # the length, and two characters
        return False
    length = int.from_bytes(head[:8], "little")
    return len(b"{}") <= length <= _MAX_HEADER and head[9:10] in b'"} \n\t'


def safetensors_details(source: FileReader) -> Details:
    """Return weights of a safetensors file, and whether it is complete.

    Raises:
        BrokenFileError: The file is damaged.
    """
    length = source.number(0, "Q")
    data = source.read(8, length)
    try:
        header = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        notes = header.pop("__metadata__", None)
        tensors = {
            name: msgspec.json.decode(raw, type=_Tensor)
            for name, raw in list(header.items())[:_MAX_TENSORS]
        }
        metadata = {} if notes is None else msgspec.json.decode(notes, type=dict[str, str])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BrokenFileError("is damaged: its header is not a list of tensors") from error
    weights: Counter[str] = Counter()
    end = 0
    for tensor in tensors.values():
        first, last = tensor.data_offsets
        if not 0 <= first <= last:
            raise BrokenFileError("is damaged: a tensor ends before it begins")
        weights[_NAMES.get(tensor.dtype, tensor.dtype)] += last - first
        end = max(end, last)
    problems = []
    if 8 + length + end > source.size:
        message = f"is truncated: it has {source.size} of {8 + length + end} bytes"
        problems.append(problem(AssetProblemKind.MISSING_PART, message))
    shown = {key[:64]: value[:200] for key, value in sorted(metadata.items())[:8]}
    return Details(
        producer=shown.get("format", ""),
        weights={name: size for name, size in weights.items() if size},
        notes={"tensors": str(len(header)), **shown},
        problems=tuple(problems),
    )


def gguf_details(source: FileReader) -> Details:
    """Return architecture and quantisation of a GGUF file.

    Raises:
        BrokenFileError: The file is damaged.
    """
    header = read_header(source)
    keys = ("general.architecture", "general.name", "general.file_type")
    return Details(
        producer=header.text("general.architecture"),
        weights={_NAMES.get(name, name): size for name, size in header.type_bytes.items() if size},
        notes={
            "version": str(header.version),
            "tensors": str(header.tensors),
            **{key: str(header.values[key]) for key in keys if key in header.values},
        },
    )


_MAX_JSON: Final = 256 << 20
_CHUNK: Final = 1 << 16
_LIGHTGBM: Final = re.compile(rb"^(\w+)=(.*)$", re.MULTILINE)


class _Named(msgspec.Struct):
    name: str = ""


class _Parameters(msgspec.Struct):
    num_feature: str = ""
    num_class: str = ""


class _Learner(msgspec.Struct):
    learner_model_param: _Parameters = msgspec.field(default_factory=_Parameters)
    objective: _Named = msgspec.field(default_factory=_Named)


class _XgBoost(msgspec.Struct):
    learner: _Learner
    version: list[int] = []


def tree_format(head: bytes) -> AssetFormat | None:
    """Return the library of a tree model, by its first bytes; None if unknown."""
    if head.startswith(b"CBM1"):
        return AssetFormat.CATBOOST
    if re.match(rb"tree\r?\nversion=v\d", head):
        return AssetFormat.LIGHTGBM
    if head.startswith(b"binf"):
        return AssetFormat.XGBOOST_BINARY
    if re.match(rb"\{(?:[LlIiU].{1,8})?learner", head[:24], re.DOTALL):
        return AssetFormat.XGBOOST_UBJ
    if re.match(rb'\s*\{\s*"learner"\s*:\s*\{', head):
        return AssetFormat.XGBOOST_JSON
    return None


def xgboost_json_details(source: FileReader) -> Details:
    """Return features, classes and version of an XGBoost model in JSON.

    Raises:
        BrokenFileError: The file is damaged.
    """
    if source.size > _MAX_JSON:
        return Details(producer="xgboost")
    try:
        model = msgspec.json.decode(source.read(0, source.size), type=_XgBoost)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BrokenFileError("is truncated or damaged: not valid XGBoost JSON") from error
    parameters = model.learner.learner_model_param
    version = ".".join(map(str, model.version[:3]))
    return Details(
        inputs=_features(parameters.num_feature, "FP32"),
        producer=f"xgboost {version}".strip(),
        notes={"objective": model.learner.objective.name[:100], "classes": parameters.num_class},
    )


def xgboost_ubj_details(source: FileReader) -> Details:
    """Check that an XGBoost model in universal binary JSON is complete.

    Raises:
        BrokenFileError: The file is incomplete.
    """
    if source.read(source.size - 1, 1) != b"}":
        raise BrokenFileError("is truncated or damaged: it ends before its content does")
    return Details(producer="xgboost")


def lightgbm_details(source: FileReader) -> Details:
    """Return features, classes and version of a LightGBM model in text format."""
    head = source.head(_CHUNK)
    settings = {key.decode(): value.strip() for key, value in reversed(_LIGHTGBM.findall(head))}
    last = settings.get("max_feature_idx", b"").decode("ascii", "replace")
    tail = source.read(max(source.size - _CHUNK, 0), min(_CHUNK, source.size))
    problems: tuple[AssetProblem, ...] = ()
    if b"end of trees" not in tail and b"end of trees" not in head:
        whole = source.size <= 2 * _CHUNK or b"end of parameters" not in tail
        if whole:
            message = "is truncated: its trees have no end"
            problems = (problem(AssetProblemKind.BROKEN, message),)
    return Details(
        inputs=_features(str(int(last) + 1) if last.isdigit() else "", "FP64"),
        producer=f"lightgbm {settings.get('version', b'').decode('ascii', 'replace')}".strip(),
        notes={
            "objective": settings.get("objective", b"").decode("utf-8", "replace")[:100],
            "classes": settings.get("num_class", b"").decode("ascii", "replace")[:20],
        },
        problems=problems,
    )


def _features(count: str, datatype: str) -> tuple[TensorInfo, ...]:
    if not (count.isascii() and count.isdigit() and 0 < len(count) <= 9):  # noqa: PLR2004  # a billion
        return ()
    return (TensorInfo(name="features", datatype=datatype, shape=(-1, int(count))),)
