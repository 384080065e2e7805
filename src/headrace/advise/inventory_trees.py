"""What do trees say of themselves: XGBoost, LightGBM, CatBoost?"""

import re
from typing import Final

import msgspec

from headrace.advise.inventory_model import (
    Details,
    Format,
    Problem,
    TensorInfo,
    Trouble,
    problem,
)
from headrace.runtimes.file_bytes import BrokenFileError, Source

_MOST_JSON: Final = 256 << 20
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


def tree_format(head: bytes) -> Format | None:
    """Which library's trees a file holds, by its first bytes; None for none."""
    if head.startswith(b"CBM1"):
        return Format.CATBOOST
    if re.match(rb"tree\r?\nversion=v\d", head):
        return Format.LIGHTGBM
    if head.startswith(b"binf"):
        return Format.XGBOOST_BINARY
    if re.match(rb"\{(?:[LlIiU].{1,8})?learner", head[:24], re.DOTALL):
        return Format.XGBOOST_UBJ
    if re.match(rb'\s*\{\s*"learner"\s*:\s*\{', head):
        return Format.XGBOOST_JSON
    return None


def xgboost_json_details(source: Source) -> Details:
    """Features, classes and version of XGBoost's trees in JSON.

    Raises:
        BrokenFileError: It is damaged.
    """
    if source.size > _MOST_JSON:
        return Details(producer="xgboost")
    try:
        model = msgspec.json.decode(source.read(0, source.size), type=_XgBoost)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise BrokenFileError("is truncated or damaged: no JSON of XGBoost's") from error
    parameters = model.learner.learner_model_param
    version = ".".join(map(str, model.version[:3]))
    return Details(
        inputs=_features(parameters.num_feature, "FP32"),
        producer=f"xgboost {version}".strip(),
        notes={"objective": model.learner.objective.name[:100], "classes": parameters.num_class},
    )


def xgboost_ubj_details(source: Source) -> Details:
    """Whether XGBoost's trees in universal binary JSON have their end.

    Raises:
        BrokenFileError: They do not.
    """
    if source.read(source.size - 1, 1) != b"}":
        raise BrokenFileError("is truncated or damaged: it ends before its content does")
    return Details(producer="xgboost")


def lightgbm_details(source: Source) -> Details:
    """Features, classes and version of LightGBM's trees in text."""
    head = source.head(_CHUNK)
    found = {key.decode(): value.strip() for key, value in reversed(_LIGHTGBM.findall(head))}
    last = found.get("max_feature_idx", b"").decode("ascii", "replace")
    tail = source.read(max(source.size - _CHUNK, 0), min(_CHUNK, source.size))
    problems: tuple[Problem, ...] = ()
    if b"end of trees" not in tail and b"end of trees" not in head:
        whole = source.size <= 2 * _CHUNK or b"end of parameters" not in tail
        if whole:
            message = "is truncated: its trees have no end"
            problems = (problem(Trouble.BROKEN, message),)
    return Details(
        inputs=_features(str(int(last) + 1) if last.isdigit() else "", "FP64"),
        producer=f"lightgbm {found.get('version', b'').decode('ascii', 'replace')}".strip(),
        notes={
            "objective": found.get("objective", b"").decode("utf-8", "replace")[:100],
            "classes": found.get("num_class", b"").decode("ascii", "replace")[:20],
        },
        problems=problems,
    )


def _features(count: str, datatype: str) -> tuple[TensorInfo, ...]:
    if not (count.isascii() and count.isdigit() and 0 < len(count) <= 9):  # noqa: PLR2004  # a billion
        return ()
    return (TensorInfo(name="features", datatype=datatype, shape=(-1, int(count))),)
