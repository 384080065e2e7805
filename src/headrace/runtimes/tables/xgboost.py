"""Runtime of XGBoost's trees, and the checks of its files.

A file is checked before XGBoost reads it: the library follows the indices of nodes and features in
a file without checking bounds.
"""

import ctypes
import json
import math
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_uint64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from headrace.core import Array, Datatype, UnsupportedModelError, error_kind
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.file_bytes import BrokenFileError
from headrace.runtimes.tables.tabular import (
    Categories,
    OutputLayout,
    check_children,
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

_MAX_DEPTH: Final = 64
_NUMBERS: Final[dict[bytes, np.dtype[Any]]] = {
    b"i": np.dtype(">i1"),
    b"U": np.dtype(">u1"),
    b"I": np.dtype(">i2"),
    b"l": np.dtype(">i4"),
    b"L": np.dtype(">i8"),
    b"d": np.dtype(">f4"),
    b"D": np.dtype(">f8"),
}
_CONSTANTS: Final = {b"Z": None, b"T": True, b"F": False}


def decode_ubjson(data: bytes) -> object:
    """Return the value that `data` begins with.

    Raises:
        BrokenFileError: It is truncated, or not UBJSON.
        UnicodeDecodeError: A string in it is not UTF-8.
    """
    return _Reader(data).value(0)


class _Reader:
    """A read position in the data."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def value(self, depth: int) -> object:
        """Return the next value, with its marker."""
        if depth > _MAX_DEPTH:
            raise BrokenFileError(f"nests more than {_MAX_DEPTH} values")
        mark = self._take(1)
        if mark == b"{":
            mapping: dict[str, object] = {}
            while self._peek() != b"}":
                key = self._text()
                if key in mapping:
                    raise BrokenFileError("a name appears twice")
                mapping[key] = self.value(depth + 1)
            self._at += 1
            return mapping
        if mark == b"[":
            return self._list(depth)
        if mark == b"S":
            return self._text()
        if mark in _CONSTANTS:
            return _CONSTANTS[mark]
        return self._number(mark)

    def _list(self, depth: int) -> object:
        mark = self._peek()
        if mark == b"$":
            self._at += 1
            kind = self._take(1)
            if kind not in _NUMBERS or self._take(1) != b"#":
                raise BrokenFileError(f"a list has the type {kind!r}")
            dtype = _NUMBERS[kind]
            return np.frombuffer(self._take(self._length() * dtype.itemsize), dtype)
        if mark == b"#":
            self._at += 1
            return [self.value(depth + 1) for _ in range(self._length())]
        items: list[object] = []
        while self._peek() != b"]":
            items.append(self.value(depth + 1))
        self._at += 1
        return items

    def _text(self) -> str:
        return self._take(self._length()).decode()

    def _length(self) -> int:
        length = self._number(self._take(1))
        if not isinstance(length, int) or not 0 <= length <= len(self._data):
            raise BrokenFileError(f"a length is {length}")
        return length

    def _number(self, mark: bytes) -> int | float:
        dtype = _NUMBERS.get(mark)
        if dtype is None:
            raise BrokenFileError(f"{mark!r} at byte {self._at - 1} does not begin a value")
        number: int | float = np.frombuffer(self._take(dtype.itemsize), dtype)[0].item()
        return number

    def _peek(self) -> bytes:
        mark = self._take(1)
        self._at -= 1
        return mark

    def _take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise BrokenFileError("it ends too early")
        part = self._data[self._at : end]
        self._at = end
        return part


_HEAD_BYTES: Final = 4096
_MAX_OUTPUTS: Final = 100_000
_MAX_CATEGORY: Final = 1 << 24
"""Limit of exact integers in a float, as in XGBoost."""
_BOOSTERS: Final = ("gbtree", "dart")
_NO_PARENT: Final = (1 << 31) - 1
_A_NODE: Final = ("left_children", "right_children", "parents", "split_indices", "split_conditions")
_ALSO_A_NODE: Final = ("default_left", "split_type", "parents", "loss_changes", "sum_hessian")


@dataclass(frozen=True, slots=True, kw_only=True)
class XgboostFile:
    """Facts about a model that are needed before it is loaded."""

    content: bytes = field(repr=False, compare=False)
    """Content of the file, from which the model is loaded."""
    features: int
    groups: int
    """Classes or targets with their own trees."""
    objective: str
    rounds: int
    """Number of boosting rounds used; 0 for all."""
    names: tuple[str, ...] = ()
    """Names of the features; empty for none."""
    is_categorical: bool = False
    """Per feature, whether it is categorical."""
    categories: Categories = ()
    """Per feature, the values that its codes stand for, None for a number; empty if the file has
    no categories."""


def looks_like_xgboost(path: Path) -> bool:
    """Whether `path` is a JSON or UBJSON file with XGBoost's first bytes."""
    if not path.is_file():
        return False
    head = read_head(path, _HEAD_BYTES)
    if not _is_json(head):
        return head[:1] == b"{" and b"learner" in head[:64]
    # The keys are sorted, so these come first.
    return b"".join(head.split()).startswith(b'{"learner":{"attributes":{')


def _is_json(data: bytes) -> bool:
    """Whether an object is JSON and not UBJSON, which continues with the length of a key."""
    return data.lstrip()[:1] == b"{" and data.lstrip()[1:].lstrip()[:1] == b'"'


def read_xgboost(path: Path) -> XgboostFile:
    """Read and check a file.

    Raises:
        UnsupportedModelError: It is damaged, or not supported; the message says why.
    """
    try:
        data = read_all(path)
        document: Any
        if _is_json(data):
            document = json.loads(data, object_pairs_hook=_once)
            # XGBoost recognises JSON by its first two characters.
            data = b"{" + data.lstrip()[1:].lstrip()
        else:
            document = decode_ubjson(data)
        if not isinstance(document, dict):
            raise refuse(path, "is not an XGBoost model")
        learner = document["learner"]
        file = _read_learner(path, learner, data)
        _check_booster(path, learner["gradient_booster"], file)
    except UnsupportedModelError:
        raise
    except RecursionError:
        raise corrupt(path, "it nests too deeply") from None
    except KeyError as error:
        raise corrupt(path, f"it lacks {error}") from None  # a name that XGBoost writes
    except BrokenFileError as error:
        raise corrupt(path, str(error)) from None
    except (IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        description = error_kind(error)
        raise corrupt(path, f"it is not as XGBoost writes it ({description})") from None
    return file


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse repeated keys: XGBoost might use a value that was not checked."""
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise BrokenFileError("a name appears twice")
    return mapping


def _read_learner(path: Path, learner: Mapping[str, Any], content: bytes) -> XgboostFile:
    params = learner["learner_model_param"]
    features = int(params["num_feature"])
    check_features(path, features)
    classes, targets = int(params["num_class"]), int(params.get("num_target", 1))
    if not (0 <= classes <= _MAX_OUTPUTS and 1 <= targets <= _MAX_OUTPUTS):
        raise refuse(path, f"declares {classes} classes and {targets} targets")
    objective = learner["objective"]
    if int(objective.get("softmax_multiclass_param", {}).get("num_class", classes)) != classes:
        raise corrupt(path, "its objective has another number of classes")
    if targets > 1 and str(objective["name"]).startswith(("binary:", "multi:")):
        raise refuse(path, "returns several labels per row; one is supported")
    types = list(learner.get("feature_types", []))
    for key in ("feature_names", "feature_types"):
        if len(learner.get(key, [])) not in {0, features}:
            raise corrupt(path, f"the number of {key} differs from the number of features")
    return XgboostFile(
        content=content,
        features=features,
        groups=max(1, classes, targets),
        objective=str(objective["name"]),
        rounds=_rounds(learner.get("attributes", {})),
        names=tuple(map(str, learner.get("feature_names", []))),
        is_categorical="c" in types,
        categories=_categories(path, learner["gradient_booster"], types, features),
    )


def _categories(
    path: Path, booster: Mapping[str, Any], types: Sequence[object], features: int
) -> Categories:
    """Return the values that each feature's codes stand for; empty if they are not stored."""
    stored = _model(booster).get("cats", {})
    encoded = stored.get("enc", [])
    if not len(encoded):
        return ()
    bounds = _array(stored["feature_segments"])
    order = _array(stored["sorted_idx"])
    if len(encoded) != features or len(bounds) != features + 1 or len(types) != features:
        raise corrupt(path, "its categories belong to other features")
    categories: list[tuple[str, ...] | tuple[float, ...] | None] = []
    start = 0
    for number, encoded_categories in enumerate(encoded):
        values = _category_values(path, number, encoded_categories)
        inner = np.sort(order[start : start + len(values)])
        start += len(values)
        if bounds[number + 1] != start or not np.array_equal(inner, np.arange(len(values))):
            raise corrupt(path, f"the categories of feature {number} are not as many as declared")
        categories.append(values if types[number] == "c" else None)
    if bounds[0] != 0 or start != len(order):
        raise corrupt(path, "its categories are not as many as declared")
    return tuple(categories) if any(values is not None for values in categories) else ()


def _category_values(
    path: Path, number: int, encoded: Mapping[str, Any]
) -> tuple[str, ...] | tuple[float, ...]:
    values = _array(encoded["values"])
    if "offsets" not in encoded:
        return tuple(float(value) for value in values.tolist())
    ends = _array(encoded["offsets"])
    if not len(ends):
        return ()
    if ends[0] != 0 or ends[-1] != len(values) or (np.diff(ends) < 0).any():
        raise BrokenFileError("a category begins at the wrong position")
    text = values.astype(np.int64).astype(np.uint8).tobytes()
    if not text.isascii():
        # XGBoost counts characters of the names but cuts bytes, so its own predictions are wrong
        # then.
        raise refuse(
            path,
            f"has names of categories that are not ASCII at feature {number}, which XGBoost mixes "
            "up when it stores them; rename the categories, or train on their codes",
        )
    pairs = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    return tuple(text[low:high].decode() for low, high in pairs)


def _model(booster: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the trees of a booster."""
    model: Mapping[str, Any] = (booster["gbtree"] if booster["name"] == "dart" else booster)[
        "model"
    ]
    return model


def _rounds(attributes: Mapping[str, Any]) -> int:
    """Return the best iteration, where XGBoost's scikit-learn classes stop; `Booster` does not."""
    if "scikit_learn" not in attributes or "best_iteration" not in attributes:
        return 0
    best = int(attributes["best_iteration"])
    if best < 0:
        raise BrokenFileError(f"its best iteration is {best}")
    return best + 1


def _check_booster(path: Path, booster: Mapping[str, Any], file: XgboostFile) -> None:
    name = booster["name"]
    if name not in _BOOSTERS:
        raise refuse(path, f"has another booster than trees ({', '.join(_BOOSTERS)})")
    model = _model(booster)
    trees = model["trees"]
    if len(trees) != int(model["gbtree_model_param"]["num_trees"]):
        raise corrupt(path, "the number of trees differs from the declared one")
    if name == "dart" and len(booster["weight_drop"]) != len(trees):
        raise corrupt(path, "some trees have no weight")
    for number, tree in enumerate(trees):
        if int(tree["id"]) != number:  # as in XGBoost's files
            raise corrupt(path, f"tree {number} has the number of another")
        _check_tree(path, f"tree {number}", tree, file.features)
    _check_order(path, model, len(trees), file.groups)


def _check_order(path: Path, model: Mapping[str, Any], trees: int, groups: int) -> None:
    """Check that each tree belongs to an existing class, and to a round."""
    info = np.asarray(model["tree_info"], np.int64)
    bounds = np.asarray(model.get("iteration_indptr", [0, trees]), np.int64)
    if len(info) != trees or (info.size and not (info.min() >= 0 and info.max() < groups)):
        raise corrupt(path, "a tree belongs to no class")
    if bounds[0] != 0 or bounds[-1] != trees or (np.diff(bounds) < 0).any():
        raise corrupt(path, "its rounds do not cover its trees")


def _check_tree(path: Path, description: str, tree: Mapping[str, Any], features: int) -> None:
    params = tree["tree_param"]
    nodes = int(params["num_nodes"])
    arrays = {key: _array(tree[key]) for key in _A_NODE}
    lengths = {len(array) for array in arrays.values()}
    lengths |= {len(tree[key]) for key in _ALSO_A_NODE if key in tree}
    if nodes < 1 or lengths != {nodes}:
        raise corrupt(path, f"{description} has lists of different lengths")
    _check_categories(path, description, tree)
    if int(params["num_feature"]) != features:
        raise corrupt(path, f"{description} has another number of features")
    left, right = arrays["left_children"], arrays["right_children"]
    inner = left != -1
    check_children(path, description, np.concatenate((left[inner], right[inner])), nodes)
    _check_parents(path, description, _array(tree["parents"]), (left, right))
    split = arrays["split_indices"][inner]
    if split.size and not (split.min() >= 0 and split.max() < features):
        raise corrupt(path, f"{description} uses an unknown feature")
    if int(params.get("size_leaf_vector", 1)) not in {0, 1}:
        raise refuse(
            path, "has trees with several outputs (multi_output_tree), which are not supported"
        )


def _check_categories(path: Path, description: str, tree: Mapping[str, Any]) -> None:
    """Check that each split by category has a separate list of valid codes."""
    kinds = _array(tree.get("split_type", []))
    nodes, starts, sizes, codes = (
        _array(tree.get(f"categories{name}", [])) for name in ("_nodes", "_segments", "_sizes", "")
    )
    if not np.array_equal(nodes, np.flatnonzero(kinds)) or not np.isin(kinds, (0, 1)).all():
        raise corrupt(path, f"some splits of {description} by category have no categories")
    if len(starts) != len(nodes) or len(sizes) != len(nodes):
        raise corrupt(path, f"{description} has lists of categories of different lengths")
    if not np.array_equal(starts, np.cumsum(sizes) - sizes) or (sizes < 1).any():
        raise corrupt(path, f"a list of categories of {description} begins at the wrong position")
    if int(sizes.sum()) != len(codes):
        raise corrupt(path, f"{description} has other categories than its splits")
    if codes.size and not (codes.min() >= 0 and codes.max() < _MAX_CATEGORY):
        raise corrupt(path, f"{description} has a category that is not a valid code")


def _check_parents(
    path: Path, description: str, parents: Array, children: tuple[Array, Array]
) -> None:
    """Check parent indices, which XGBoost follows when it counts the remains of a pruned tree."""
    expected = np.where((parents >= 0) & (parents < len(parents)), parents, _NO_PARENT)
    expected[0] = _NO_PARENT
    for below in children:
        inner = np.flatnonzero(below != -1)
        expected[below[inner]] = inner
    if not np.array_equal(parents, expected):
        raise corrupt(path, f"the nodes of {description} do not form a tree")


def _array(values: object) -> Array:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iufb":
        raise BrokenFileError("a value is not a list of numbers")
    return array


_VALUE: Final = 0
"""Request for the objective's output instead of the margin."""


class XgboostPredictor:
    """Predictor with the same output as `inplace_predict`, bit for bit; thread-safe like it.

    The result is in thread-local memory until the thread's next call, and is copied from there.
    """

    def __init__(self, library: ModuleType, booster: Any, *, rounds: int) -> None:  # noqa: ANN401  # ships no types
        # A separate handle of the loaded library: types declared on the other one would change how
        # XGBoost's Python package calls it.
        native = ctypes.CDLL(library.core._LIB._name)  # noqa: SLF001  # from any location
        self._call = native.XGBoosterPredictFromDense
        self._call.argtypes = [
            *(c_void_p, c_char_p, c_char_p, c_void_p),
            *(POINTER(POINTER(c_uint64)), POINTER(c_uint64), POINTER(POINTER(c_float))),
        ]
        self._call.restype = c_int
        self._last_error = native.XGBGetLastError
        self._last_error.restype = c_char_p
        self._booster = booster  # owns the handle
        self._settings = json.dumps(
            {
                "type": _VALUE,
                "training": False,
                "iteration_begin": 0,
                "iteration_end": rounds,
                "missing": math.nan,
                "strict_shape": False,
                "cache_id": 0,
            }
        ).encode()

    def __call__(self, rows: Array) -> Array:
        """Return predictions for rows of FP32: a value each, or one for each class.

        Raises:
            ValueError: XGBoost refuses them.
        """
        rows = dense(rows, np.float32)
        shape, dims, values = POINTER(c_uint64)(), c_uint64(), POINTER(c_float)()
        failed = self._call(
            self._booster.handle,
            b'{"data":[%d,true],"shape":[%d,%d],"strides":null,"typestr":"<f4","version":3}'
            % (rows.ctypes.data, *rows.shape),
            self._settings,
            None,
            byref(shape),
            byref(dims),
            byref(values),
        )
        if failed:
            # The message contains the stack; only the first line is used.
            raise ValueError(
                (self._last_error() or b"").decode(errors="replace").partition("\n")[0]
            )
        answer: Array = np.empty(shape[: dims.value], np.float32)
        ctypes.memmove(answer.ctypes.data, values, answer.nbytes)
        return answer


_BINARY: Final = "binary:logistic"
_CLASSES: Final = ("multi:softprob", "multi:softmax")
_HALF: Final = 0.5


class XgboostRuntime:
    """Loader of `.json` and `.ubj`, as `save_model` writes them."""

    name = "xgboost"
    runs_code = False
    libraries = ("xgboost",)
    extra = "xgboost"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like XGBoost's format, by its name and first bytes."""
        return looks_like_xgboost(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU."""
        file = read_xgboost(path)
        library = import_library("xgboost", "xgboost")
        try:
            booster = library.Booster(model_file=bytearray(file.content))
            booster.set_param({"nthread": options.intra_op_threads, "device": "cpu"})
            if file.objective == "multi:softmax":
                # This objective gives only the class; its sibling gives the probabilities from the
                # same trees.
                booster.set_param({"objective": "multi:softprob"})
            predict = XgboostPredictor(library, booster, rounds=file.rounds)
        except Exception as error:  # noqa: BLE001  # its message may quote the file
            raise refuse(path, f"XGBoost refuses it: {error_kind(error)}") from None
        # `XGBoosterPredictFromDense` takes no lock and is documented as thread-safe; ctypes
        # releases the GIL. The first run below does its one-time setup.
        outputs = outputs_of_trees(
            is_second=(lambda second: second > _HALF) if file.objective == _BINARY else None,
            has_classes=file.objective in _CLASSES,
        )
        names = file.names or [f"f{i}" for i in range(file.features)]
        table = table_with_categories(
            path, names, file.categories, Datatype.FP32, unseen_is_missing=False
        )
        answers = OutputLayout(predict=predict, outputs=outputs)
        return open_tabular(path, answers, table, concurrent=True)
