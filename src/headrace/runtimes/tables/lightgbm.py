"""Runtime of LightGBM's trees, and the checks of its text files.

A file is checked before LightGBM reads it: the library follows the indices of nodes, leaves and
features in a file, and its tree sizes, without checking bounds.
"""

import ctypes
import json
import operator
import re
import weakref
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np

from headrace.core import Array, Datatype, error_kind
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.file_bytes import BrokenFileError
from headrace.runtimes.tables.tabular import (
    Categories,
    OutputLayout,
    check_features,
    corrupt,
    dense,
    import_library,
    open_tabular,
    outputs_of_trees,
    read_all,
    read_head,
    refuse,
    table_with_categories,
)

_FIRST_LINE: Final = (b"tree\n", b"tree\r\n")
_FIRST_LINES: Final = tuple(line + b"version=" for line in _FIRST_LINE)
_HEAD_BYTES: Final = 16
_MAX_CLASSES: Final = 100_000
_END: Final = b"end of trees"
_AFTER_TREES: Final = "\n\npandas_categorical:null\n"
"""The other content after the trees, importances and training settings, does not affect
predictions, and LightGBM ends the process if it is truncated.
"""
_A_SPLIT: Final = (
    "split_feature",
    "split_gain",
    "threshold",
    "decision_type",
    "left_child",
    "right_child",
    "internal_value",
    "internal_weight",
    "internal_count",
)
_A_LEAF: Final = ("leaf_value", "leaf_weight", "leaf_count")
_NEEDED: Final = ("split_feature", "threshold", "decision_type", "left_child", "right_child")
_CATEGORICAL_BIT: Final = 1
_WORD_BITS: Final = 32
_KEY: Final = re.compile(r"[A-Za-z_]+")
_WHOLE: Final = re.compile(r"-?[0-9]{1,18}")
_REAL: Final = re.compile(r"[-+]?(?:[0-9.]+(?:e[-+]?[0-9]+)?|inf|nan)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LightgbmFile:
    """Facts about a model that are needed before it is loaded."""

    features: int
    objective: str
    text: str
    """Content of the file, from which the model is loaded."""
    is_categorical: bool = False
    """Per feature, whether it is categorical."""
    categories: Categories = ()
    """Per feature, the values that its codes stand for, None for a number; empty if the file has
    no categories."""


def looks_like_lightgbm(path: Path) -> bool:
    """Whether `path` is a text file with LightGBM's first line."""
    return path.is_file() and read_head(path, _HEAD_BYTES).startswith(_FIRST_LINES)


def read_lightgbm(path: Path) -> LightgbmFile:
    """Read and check a file.

    Raises:
        UnsupportedModelError: It is damaged, or not supported; the message says why.
    """
    data = read_all(path)
    if not data.startswith(_FIRST_LINE):
        raise refuse(path, "is not a LightGBM model: its first line is not `tree`")
    try:
        if b"\0" in data or b"\r" in data:
            raise corrupt(path, "it must be text with Unix line ends")
        start = data.index(b"Tree=")
        header = _fields(data[:start])
        features = _number(header["max_feature_idx"]) + 1
        check_features(path, features)
        for key in ("feature_names", "feature_infos"):
            if len(header[key].split()) != features:
                raise corrupt(path, f"the number of {key} differs from the number of features")
        is_categorical = [not info.startswith("[") for info in header["feature_infos"].split()]
        is_constant = [info == "none" for info in header["feature_infos"].split()]
        _check_classes(path, header)
        end = _check_trees(path, data, start, features, header)
        objective = header.get("objective", "").split()
        return LightgbmFile(
            features=features,
            objective=objective[0] if objective else "",
            text=data[:end].decode() + _AFTER_TREES,
            is_categorical=any(map(operator.ne, is_categorical, is_constant)),
            categories=_categories(path, data[end:], is_categorical, is_constant),
        )
    except KeyError as error:
        raise corrupt(path, f"it lacks {error}") from None  # a name that LightGBM writes
    except BrokenFileError as error:
        raise corrupt(path, str(error)) from None
    except (IndexError, ValueError, OverflowError) as error:
        raise corrupt(path, error_kind(error)) from None


def _categories(
    path: Path, rest: bytes, is_categorical: Sequence[bool], is_constant: Sequence[bool]
) -> Categories:
    """Return the values that each feature's codes stand for; empty if they are not stored.

    LightGBM stores a list for each categorical column of the data frame, in their order, without
    the columns' names; a column with a single value is marked as constant.
    """
    _, separator, text = rest.rpartition(b"\npandas_categorical:")
    stored = json.loads(text) if separator else None
    if not stored:
        return ()
    if not isinstance(stored, list) or not all(isinstance(some, list) for some in stored):
        raise corrupt(path, "its categories are not lists")
    if sum(is_categorical) == len(stored):
        selected = is_categorical
    else:
        selected = [
            categorical and not constant
            for categorical, constant in zip(is_categorical, is_constant, strict=True)
        ]
    if sum(selected) != len(stored):
        raise refuse(
            path,
            f"lists categories of {len(stored)} columns, but {sum(selected)} are categorical: "
            "train with the categorical dtype of pandas for all of them, or for none",
        )
    lists = iter(stored)
    return tuple(_category_values(next(lists)) if is_chosen else None for is_chosen in selected)


def _category_values(values: Sequence[object]) -> tuple[str, ...] | tuple[float, ...]:
    texts = tuple(value for value in values if isinstance(value, str))
    if texts and len(texts) == len(values):
        return texts
    numbers = tuple(float(value) for value in values if isinstance(value, int | float))
    if len(numbers) != len(values):
        raise BrokenFileError("a category is neither text nor a number")
    return numbers


def _check_classes(path: Path, header: Mapping[str, str]) -> None:
    classes, trees = _number(header["num_class"]), _number(header["num_tree_per_iteration"])
    if not (1 <= classes <= _MAX_CLASSES and trees == classes):
        raise corrupt(path, f"{classes} classes with {trees} trees per iteration")
    for word in header.get("objective", "").split():
        key, _, value = word.partition(":")
        if key == "num_class" and _number(value) != classes:
            raise corrupt(path, "its objective has another number of classes")


def _check_trees(
    path: Path, data: bytes, start: int, features: int, header: Mapping[str, str]
) -> int:
    """Return the offset of the trees' end after checking them."""
    sizes = _numbers(header["tree_sizes"]).tolist()
    if len(sizes) % _number(header["num_tree_per_iteration"]):
        raise corrupt(path, "an iteration lacks trees")
    for number, size in enumerate(sizes):
        part = data[start : start + size]
        first = f"Tree={number}\n".encode()
        if size < len(first) or len(part) != size or not part.startswith(first):
            raise corrupt(path, f"tree {number} is at the wrong position")
        if any(line and b"=" not in line for line in part.split(b"\n")):
            # LightGBM ends the process at truncated content.
            raise corrupt(path, f"a line of tree {number} is not a setting")
        _check_tree(path, f"tree {number}", _fields(part), features)
        start += size
    if data[start : start + len(_END)] != _END:
        raise corrupt(path, f"`{_END.decode()}` is missing")
    return start + len(_END)


def _check_tree(path: Path, description: str, tree: Mapping[str, str], features: int) -> None:
    leaves = _number(tree["num_leaves"])
    if _number(tree.get("is_linear", "0")):
        raise refuse(
            path, f"{description} has linear leaves, which are not supported; train without them"
        )
    if leaves < 1 or len(tree["leaf_value"].split(" ")) != leaves:
        raise corrupt(path, f"{description} does not have as many leaves as it declares")
    _check_lengths(path, description, tree, leaves)
    if leaves == 1 and _number(tree["num_cat"]):
        raise corrupt(path, f"{description} has categories but no split")
    if leaves == 1:
        return
    _check_categories(path, description, tree)
    split = _numbers(tree["split_feature"])
    if not (split.min() >= 0 and split.max() < features):
        raise corrupt(path, f"{description} uses an unknown feature")
    children = np.concatenate((_numbers(tree["left_child"]), _numbers(tree["right_child"])))
    # Inner nodes count from 0, the root, and leaves from -1 downwards. If no node has two parents
    # and the root has none, no path from the root has a cycle.
    in_range = -leaves <= children.min() and children.max() < leaves - 1
    if not in_range or (children == 0).any() or len(np.unique(children)) != len(children):
        raise corrupt(path, f"the nodes of {description} do not form a tree")


def _check_categories(path: Path, description: str, tree: Mapping[str, str]) -> None:
    """Check that splits by category refer to existing category sets by their threshold."""
    sets = _number(tree["num_cat"])
    by_category = (_numbers(tree["decision_type"]) & _CATEGORICAL_BIT) != 0
    if not sets and not by_category.any():
        return
    bounds, words = (
        _numbers(tree[key]) if tree.get(key) else np.zeros(0, np.int64)
        for key in ("cat_boundaries", "cat_threshold")
    )
    if len(bounds) != sets + 1 or bounds[0] != 0 or (np.diff(bounds) < 1).any():
        raise corrupt(path, f"the categories of {description} begin at the wrong position")
    if bounds[-1] != len(words) or words.min() < 0 or words.max() >= 1 << _WORD_BITS:
        raise corrupt(path, f"{description} has other categories than it declares")
    selected = [
        text
        for text, is_set in zip(tree["threshold"].split(" "), by_category, strict=True)
        if is_set
    ]
    if not all(_WHOLE.fullmatch(text) and 0 <= int(text) < sets for text in selected):
        raise corrupt(path, f"{description} uses unknown categories")


def _check_lengths(path: Path, description: str, tree: Mapping[str, str], leaves: int) -> None:
    """Check list lengths, because LightGBM reads as many numbers as there should be."""
    lists = [(key, leaves) for key in _A_LEAF] + [(key, leaves - 1) for key in _A_SPLIT]
    for key, expected in lists:
        if key not in tree and (leaves == 1 or key not in _NEEDED):
            continue
        numbers = tree[key].split(" ") if tree[key] else []
        if len(numbers) != expected and not (leaves == 1 and len(numbers) <= 1):
            raise corrupt(path, f"{description} has {len(numbers)} of {expected} {key}")
        if not all(_REAL.fullmatch(number) for number in numbers):
            raise corrupt(path, f"a {key} of {description} is not a number")


def _fields(data: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in data.decode().split("\n"):
        key, equals, value = line.partition("=")
        if equals and (key in fields or not _KEY.fullmatch(key)):
            raise BrokenFileError("a setting appears twice, or has no name")
        fields[key] = value
    return fields


def _number(text: str) -> int:
    """Return an integer as LightGBM reads it; Python would accept `1_0` and non-ASCII digits."""
    if not _WHOLE.fullmatch(text):
        raise BrokenFileError("a value is not a number")
    return int(text)


def _numbers(text: str) -> Array:
    return np.array([_number(item) for item in text.split(" ")], np.int64)


_FP64: Final = 1
_BY_ROW: Final = 1
_VALUE: Final = 0
"""Request for the objective's output instead of the raw score."""
_FIRST: Final = 0
_ALL: Final = -1
_WHAT: Final = (c_int(_VALUE), c_int(_FIRST), c_int(_ALL))


class LightgbmPredictor:
    """Predictor with the same output as `Booster.predict`, bit for bit; thread-safe like it."""

    def __init__(self, library: ModuleType, text: str, *, threads: int) -> None:
        """Read a model's text.

        Raises:
            ValueError: LightGBM refuses it.
        """
        # A separate handle of the loaded library: types declared on the other one would change how
        # LightGBM's Python package calls it.
        native = ctypes.CDLL(library.basic._LIB._name)  # noqa: SLF001  # from any location
        self._native = native
        native.LGBM_GetLastError.restype = c_char_p
        native.LGBM_BoosterFree.argtypes = [c_void_p]
        native.LGBM_FastConfigFree.argtypes = [c_void_p]
        native.LGBM_BoosterPredictForMat.argtypes = [
            *(c_void_p, c_void_p, c_int, c_int32, c_int32, c_int, c_int, c_int, c_int),
            *(c_char_p, POINTER(c_int64), c_void_p),
        ]
        native.LGBM_BoosterPredictForMatSingleRowFast.argtypes = [
            *(c_void_p, c_void_p, POINTER(c_int64), c_void_p),
        ]
        self._settings = f"num_threads={threads}".encode()
        self._model, self._one_row = c_void_p(), c_void_p()
        native, features, length = self._native, c_int(), c_int64()
        self._check(
            native.LGBM_BoosterLoadModelFromString(
                c_char_p(text.encode()), byref(c_int()), byref(self._model)
            )
        )
        weakref.finalize(self, native.LGBM_BoosterFree, self._model)
        self._check(native.LGBM_BoosterGetNumFeature(self._model, byref(features)))
        self._check(native.LGBM_BoosterCalcNumPredict(self._model, c_int(1), *_WHAT, byref(length)))
        self._features, self._values = features.value, length.value
        self._check(
            native.LGBM_BoosterPredictForMatSingleRowFastInit(
                *(self._model, *_WHAT, c_int(_FP64), features, c_char_p(self._settings)),
                byref(self._one_row),
            )
        )
        # Called before the model is freed: exit handlers run in reverse order of registration.
        weakref.finalize(self, native.LGBM_FastConfigFree, self._one_row)

    def __call__(self, rows: Array) -> Array:
        """Return predictions for rows of FP64: a value each, or one for each class.

        Raises:
            ValueError: LightGBM refuses them.
        """
        rows = dense(rows, np.float64)
        count, columns = rows.shape
        answer: Array = np.empty(count if self._values == 1 else (count, self._values), np.float64)
        if count == 1 and columns == self._features:  # the library is not told the array's size
            failed = self._native.LGBM_BoosterPredictForMatSingleRowFast(
                self._one_row, rows.ctypes.data, byref(c_int64()), answer.ctypes.data
            )
        else:
            failed = self._native.LGBM_BoosterPredictForMat(
                *(self._model, rows.ctypes.data, _FP64, count, columns, _BY_ROW),
                *(_VALUE, _FIRST, _ALL, self._settings, byref(c_int64()), answer.ctypes.data),
            )
        self._check(failed)
        return answer

    def _check(self, failed: int) -> None:
        if failed:
            raise ValueError((self._native.LGBM_GetLastError() or b"").decode(errors="replace"))


_BINARY: Final = "binary"
_CLASSES: Final = ("multiclass", "multiclassova")


class LightgbmRuntime:
    """Loader of `.txt` and `.lgb`, as `save_model` writes them."""

    name = "lightgbm"
    runs_code = False
    libraries = ("lightgbm",)
    extra = "lightgbm"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like LightGBM's format, by its name and first line."""
        return looks_like_lightgbm(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU."""
        file = read_lightgbm(path)
        library = import_library("lightgbm", "lightgbm")
        try:
            names = library.Booster(model_str=file.text).feature_name()
            predict = LightgbmPredictor(library, file.text, threads=options.intra_op_threads)
        except Exception as error:  # noqa: BLE001  # its message may quote the file
            raise refuse(path, f"LightGBM refuses it: {error_kind(error)}") from None
        # Predictions share a read lock inside the library, and ctypes releases the GIL. LightGBM
        # compares in FP64: a value rounded to FP32 could take the other branch.
        outputs = outputs_of_trees(
            is_second=(lambda second: second > 1 - second) if file.objective == _BINARY else None,
            has_classes=file.objective in _CLASSES,
        )
        table = table_with_categories(
            path, names, file.categories, Datatype.FP64, unseen_is_missing=True
        )
        answers = OutputLayout(predict=predict, outputs=outputs)
        return open_tabular(path, answers, table, concurrent=True)
