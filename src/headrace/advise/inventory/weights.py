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
from headrace.runtimes.onnx.facts import TensorInfo, bits_of

_MAX_HEADER: Final = 64 << 20
_MAX_TENSORS: Final = 200_000
_MAX_SETTINGS: Final = 10_000
_MAX_STEPS: Final = 4_000_000
_NAMES: Final = {
    **{f"F{bits}": f"FP{bits}" for bits in (4, 16, 32, 64)},
    **{f"I{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    "F8_E4M3": "FP8E4M3FN",
    "F8_E5M2": "FP8E5M2",
}
_GGML: Final = (
    *("FP32", "FP16", "Q4_0", "Q4_1", "?", "?", "Q5_0", "Q5_1", "Q8_0", "Q8_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S"),
    *("IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "INT8", "INT16", "INT32", "INT64", "FP64", "IQ1_M"),
    "BF16",
)
"""Datatypes of GGUF by their numbers; 4 and 5 are no longer used."""
_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _ARRAY = 8, 9


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


class _Gguf:
    """A cursor through a GGUF file with a limited number of steps."""

    def __init__(self, source: FileReader) -> None:
        self.source = source
        self.offset = 0
        self._left = _MAX_STEPS

    def number(self, form: str) -> int:
        size = {"I": 4, "Q": 8}[form]
        value = self.source.number(self.offset, form)
        self.skip(size)
        return value

    def skip(self, size: int) -> None:
        self._left -= 1
        self.offset += size
        if self._left < 0 or self.offset > self.source.size:
            raise BrokenFileError("is truncated or damaged: it ends before its content does")

    def text(self) -> str:
        length = self.number("Q")
        start = self.offset
        self.skip(length)
        return self.source.read(start, min(length, 200)).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> str:
        """Return a metadata value as text; arrays are skipped."""
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner in _SIZES:
                self.skip(_SIZES[inner] * count)
            elif inner == _TEXT or depth < 4:  # noqa: PLR2004  # arrays of arrays are rare
                for _ in range(count):
                    self.value(inner, depth + 1)
            return ""
        if kind not in _SIZES:
            raise BrokenFileError("is damaged: a metadata value of an unknown type")
        size = _SIZES[kind]
        raw = self.source.read(self.offset, size)
        self.skip(size)
        return str(int.from_bytes(raw, "little"))


def gguf_details(source: FileReader) -> Details:
    """Return architecture and quantisation of a GGUF file.

    Raises:
        BrokenFileError: The file is damaged.
    """
    cursor = _Gguf(source)
    cursor.skip(4)
    version, tensors, settings = cursor.number("I"), cursor.number("Q"), cursor.number("Q")
    if not 2 <= version <= 10 or settings > _MAX_SETTINGS or tensors > _MAX_TENSORS:  # noqa: PLR2004  # 1 was big-endian or short
        raise BrokenFileError("is damaged: its header is not valid")
    notes: dict[str, str] = {"version": str(version), "tensors": str(tensors)}
    for _ in range(settings):
        name = cursor.text()
        value = cursor.value(cursor.number("I"))
        if name in {"general.architecture", "general.name", "general.file_type"}:
            notes[name] = value
    weights: Counter[str] = Counter()
    for _ in range(tensors):
        cursor.text()
        count = 1
        for _ in range(min(cursor.number("I"), 8)):
            count = min(count * cursor.number("Q"), 1 << 50)
        number = cursor.number("I")
        kind = _GGML[number] if number < len(_GGML) else "?"
        cursor.skip(8)
        # Approximate bits per weight, sufficient for shares.
        is_packed = kind.startswith(("Q", "IQ"))
        bits = int(kind.strip("IQ")[0]) if is_packed else bits_of(kind)
        weights[kind] += count * bits // 8
    return Details(
        producer=notes.get("general.architecture", ""),
        weights={name: size for name, size in weights.items() if size},
        notes=notes,
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
