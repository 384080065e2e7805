"""Text files of LightGBM: what they hold, and whether their trees stay within themselves.

Read before LightGBM sees it: the library follows the numbers of a file's nodes, leaves and
features, and the sizes it gives for its trees, without looking whether there are that many.
"""

import json
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from headrace.core import Array, error_kind
from headrace.runtimes.file_bytes import BrokenFileError
from headrace.runtimes.tabular import (
    check_features,
    corrupt,
    read_all,
    read_head,
    refuse,
)

SUFFIXES: Final = (".txt", ".lgb")
_FIRST_LINE: Final = (b"tree\n", b"tree\r\n")
_MAX_CLASSES: Final = 100_000
_END: Final = b"end of trees"
_AFTER_TREES: Final = "\n\npandas_categorical:null\n"
"""What else follows, importances and the settings of the training, plays no part in predicting, and
a file that was cut off there ends the process."""
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
    """What has to be known of a model before it is loaded; `text` is what it is loaded from.

    `is_categorical`: whether a feature is. `categories`: by feature, what the codes of its
    categories stand for, None for a number; empty where the file says it of none.
    """

    features: int
    objective: str
    text: str
    is_categorical: bool = False
    categories: tuple[tuple[str, ...] | tuple[float, ...] | None, ...] = ()


def looks_like_lightgbm(path: Path) -> bool:
    """Whether `path` is a text file that begins as LightGBM writes them."""
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return False
    return read_head(path, 8).startswith(_FIRST_LINE)


def read_lightgbm(path: Path) -> LightgbmFile:
    """Read and check a file.

    Raises:
        UnsupportedModelError: It is damaged, or of a kind that is not served; the message says it.
    """
    data = read_all(path)
    if not data.startswith(_FIRST_LINE):
        raise refuse(path, "is no model of LightGBM's: its first line is not `tree`")
    try:
        return _read(path, data)
    except KeyError as error:
        raise corrupt(path, f"it lacks {error}") from None  # a name that LightGBM writes
    except BrokenFileError as error:
        raise corrupt(path, str(error)) from None
    except (IndexError, ValueError, OverflowError) as error:
        raise corrupt(path, error_kind(error)) from None


def _read(path: Path, data: bytes) -> LightgbmFile:
    if b"\0" in data or b"\r" in data:
        raise corrupt(path, "it is text with Unix line ends, and this is not")
    start = data.index(b"Tree=")
    header = _fields(data[:start])
    features = _number(header["max_feature_idx"]) + 1
    check_features(path, features)
    for key in ("feature_names", "feature_infos"):
        if len(header[key].split()) != features:
            raise corrupt(path, f"not as many {key} as features")
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


def _categories(
    path: Path, rest: bytes, is_categorical: Sequence[bool], is_constant: Sequence[bool]
) -> tuple[tuple[str, ...] | tuple[float, ...] | None, ...]:
    """What the codes of each feature stand for; empty where that is not stored.

    LightGBM stores a list for each categorical column of the data frame, in their order, and not
    which columns these are; a column of one value alone is marked as constant.
    """
    _, found, text = rest.rpartition(b"\npandas_categorical:")
    stored = json.loads(text) if found else None
    if not stored:
        return ()
    if not isinstance(stored, list) or not all(isinstance(some, list) for some in stored):
        raise corrupt(path, "its categories are no lists")
    if sum(is_categorical) == len(stored):
        chosen = is_categorical
    else:
        chosen = [
            one and not constant for one, constant in zip(is_categorical, is_constant, strict=True)
        ]
    if sum(chosen) != len(stored):
        raise refuse(
            path,
            f"names the categories of {len(stored)} columns, and {sum(chosen)} are categorical: "
            "train with the categorical dtype of pandas for all of them, or for none",
        )
    lists = iter(stored)
    return tuple(_category_values(next(lists)) if one else None for one in chosen)


def _category_values(values: Sequence[object]) -> tuple[str, ...] | tuple[float, ...]:
    texts = tuple(value for value in values if isinstance(value, str))
    if texts and len(texts) == len(values):
        return texts
    numbers = tuple(float(value) for value in values if isinstance(value, int | float))
    if len(numbers) != len(values):
        raise BrokenFileError("a category is neither a text nor a number")
    return numbers


def _check_classes(path: Path, header: Mapping[str, str]) -> None:
    classes, trees = _number(header["num_class"]), _number(header["num_tree_per_iteration"])
    if not (1 <= classes <= _MAX_CLASSES and trees == classes):
        raise corrupt(path, f"{classes} classes with {trees} trees an iteration")
    for word in header.get("objective", "").split():
        key, _, value = word.partition(":")
        if key == "num_class" and _number(value) != classes:
            raise corrupt(path, "its objective has another number of classes")


def _check_trees(
    path: Path, data: bytes, start: int, features: int, header: Mapping[str, str]
) -> int:
    """Where the trees end."""
    sizes = _numbers(header["tree_sizes"]).tolist()
    if len(sizes) % _number(header["num_tree_per_iteration"]):
        raise corrupt(path, "an iteration lacks trees")
    for number, size in enumerate(sizes):
        part = data[start : start + size]
        first = f"Tree={number}\n".encode()
        if size < len(first) or len(part) != size or not part.startswith(first):
            raise corrupt(path, f"tree {number} is not where it should be")
        if any(line and b"=" not in line for line in part.split(b"\n")):
            # LightGBM ends the process where it stops reading, for the rest is missing then.
            raise corrupt(path, f"a line of tree {number} is no setting")
        _check_tree(path, f"tree {number}", _fields(part), features)
        start += size
    if data[start : start + len(_END)] != _END:
        raise corrupt(path, f"`{_END.decode()}` is missing")
    return start + len(_END)


def _check_tree(path: Path, what: str, tree: Mapping[str, str], features: int) -> None:
    leaves = _number(tree["num_leaves"])
    if _number(tree.get("is_linear", "0")):
        raise refuse(path, f"{what} has linear leaves, which are not served; train without them")
    if leaves < 1 or len(tree["leaf_value"].split(" ")) != leaves:
        raise corrupt(path, f"{what} has not as many leaves as it declares")
    _check_lengths(path, what, tree, leaves)
    if leaves == 1 and _number(tree["num_cat"]):
        raise corrupt(path, f"{what} has categories and no split")
    if leaves == 1:
        return
    _check_categories(path, what, tree)
    split = _numbers(tree["split_feature"])
    if not (split.min() >= 0 and split.max() < features):
        raise corrupt(path, f"{what} asks for a feature that there is not")
    children = np.concatenate((_numbers(tree["left_child"]), _numbers(tree["right_child"])))
    # Inner nodes count from 0, the root, and leaves from -1 downwards. Where no node has two
    # parents and the root has none, no walk from the root comes back.
    in_range = -leaves <= children.min() and children.max() < leaves - 1
    if not in_range or (children == 0).any() or len(np.unique(children)) != len(children):
        raise corrupt(path, f"the nodes of {what} are no tree")


def _check_categories(path: Path, what: str, tree: Mapping[str, str]) -> None:
    """A split by category has the number of a set of categories for a threshold."""
    sets = _number(tree["num_cat"])
    by_category = (_numbers(tree["decision_type"]) & _CATEGORICAL_BIT) != 0
    if not sets and not by_category.any():
        return
    bounds, words = (
        _numbers(tree[key]) if tree.get(key) else np.zeros(0, np.int64)
        for key in ("cat_boundaries", "cat_threshold")
    )
    if len(bounds) != sets + 1 or bounds[0] != 0 or (np.diff(bounds) < 1).any():
        raise corrupt(path, f"the categories of {what} begin where they should not")
    if bounds[-1] != len(words) or words.min() < 0 or words.max() >= 1 << _WORD_BITS:
        raise corrupt(path, f"{what} has other categories than it declares")
    chosen = [
        text for text, one in zip(tree["threshold"].split(" "), by_category, strict=True) if one
    ]
    if not all(_WHOLE.fullmatch(text) and 0 <= int(text) < sets for text in chosen):
        raise corrupt(path, f"{what} asks for categories that there are not")


def _check_lengths(path: Path, what: str, tree: Mapping[str, str], leaves: int) -> None:
    """LightGBM reads as many numbers of a list as there should be."""
    lists = [(key, leaves) for key in _A_LEAF] + [(key, leaves - 1) for key in _A_SPLIT]
    for key, wanted in lists:
        if key not in tree and (leaves == 1 or key not in _NEEDED):
            continue
        numbers = tree[key].split(" ") if tree[key] else []
        if len(numbers) != wanted and not (leaves == 1 and len(numbers) <= 1):
            raise corrupt(path, f"{what} has {len(numbers)} of {wanted} {key}")
        if not all(_REAL.fullmatch(number) for number in numbers):
            raise corrupt(path, f"a {key} of {what} is no number")


def _fields(data: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in data.decode().split("\n"):
        key, equals, value = line.partition("=")
        if equals and (key in found or not _KEY.fullmatch(key)):
            raise BrokenFileError("a setting stands there twice, or names nothing")
        found[key] = value
    return found


def _number(text: str) -> int:
    """A whole number as LightGBM reads it; Python would take `1_0` and digits of other scripts."""
    if not _WHOLE.fullmatch(text):
        raise BrokenFileError("a number is none")
    return int(text)


def _numbers(text: str) -> Array:
    return np.array([_number(item) for item in text.split(" ")], np.int64)
