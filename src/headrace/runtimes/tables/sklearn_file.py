"""Files of scikit-learn: content of skops archives and pickles, and the code in it.

A pickle runs code when it is loaded. A skops archive runs none while all its types are trusted:
those that skops trusts, and those below. Trees are loaded, and checked before they predict:
scikit-learn follows the indices of their nodes and features without checking bounds.
"""

import sys
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

import numpy as np

from headrace.core import Array, UnsupportedModelError, error_kind
from headrace.runtimes.libraries import reason_of, without_frameworks
from headrace.runtimes.tables.tabular import (
    check_children,
    corrupt,
    import_library,
    read_head,
    refuse,
)

SKOPS: Final = ".skops"
PICKLES: Final = (".joblib", ".pickle", ".pkl")
_ZIP: Final = b"PK\x03\x04"
_SCHEMA: Final = "schema.json"
_MAX_UNPACKED_BYTES: Final = 64 << 20
_TIMES_PACKED: Final = 50
_MAX_TYPES: Final = 5
_TRUSTED_NAMES: Final = {
    "sklearn.tree._tree": "Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor": "TreePredictor",
    # Types of an empty array, which `SimpleImputer` stores: read by `numpy.load` without pickle.
    # `number` and `object` select columns by type while a transformer is fitted.
    "numpy": "dtype number",
    "builtins": "object",
    "sklearn.compose._column_transformer": "make_column_selector",
    # Python objects of numbers and names, whose creation calls no code.
    "sklearn.calibration": "_CalibratedClassifier _SigmoidCalibration",
    "sklearn.gaussian_process._gpc": "_BinaryGaussianProcessClassifierLaplace",
    "sklearn.gaussian_process.kernels": """
CompoundKernel ConstantKernel DotProduct ExpSineSquared Exponentiation Matern Product RBF
RationalQuadratic Sum WhiteKernel
""",
    "sklearn.metrics._scorer": "_PassthroughScorer",
    "sklearn.model_selection._split": "GroupKFold KFold StratifiedKFold",
    "sklearn.neural_network._stochastic_optimizers": "AdamOptimizer SGDOptimizer",
    "sklearn.utils._bunch": "Bunch",
    # Rebuilt from the rows that they index.
    "sklearn.metrics._dist_metrics": "EuclideanDistance64 ManhattanDistance64 MinkowskiDistance64",
    "sklearn.neighbors._ball_tree": "BallTree",
    "sklearn.neighbors._kd_tree": "KDTree",
    # Functions that rate features while a selector is fitted.
    "sklearn.feature_selection._univariate_selection": "chi2 f_classif f_regression",
}
_TRUSTED: Final = frozenset(
    f"{module}.{name}" for module, names in _TRUSTED_NAMES.items() for name in names.split()
)
_LIBRARIES: Final = sys.stdlib_module_names | {
    *("_loss", "catboost", "joblib", "lightgbm", "numpy", "pandas", "scipy", "sklearn", "xgboost"),
}
"""Packages whose models and transformers predict each row independently; `_loss` is scikit-learn's.
"""
_FACTORIZATIONS: Final = frozenset({"NMF", "MiniBatchNMF"})
"""Transformers that solve for all rows of a batch together, from the mean of all of them."""
_WORDS: Final = ("vocabulary", "vocabulary_", "stop_words")
"""Attributes that may be long, and hold words only."""
_TREES: Final = frozenset(
    {"DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor"}
)
_STAGES: Final = frozenset({"GradientBoostingClassifier", "GradientBoostingRegressor"})
_HISTOGRAMS: Final = frozenset({"HistGradientBoostingClassifier", "HistGradientBoostingRegressor"})
_INDEXES: Final = frozenset({"BallTree", "KDTree"})
_LEAF: Final = -1


def looks_like_sklearn(path: Path) -> bool:
    """Whether `path` is a skops file, or has the suffix of a pickle."""
    if not path.is_file():
        return False
    suffix = path.suffix.lower()
    return suffix in PICKLES or (suffix == SKOPS and read_head(path, len(_ZIP)) == _ZIP)


def is_pickle(path: Path) -> bool:
    """Whether `path` has the suffix of a pickle."""
    return path.suffix.lower() in PICKLES


def code_of_estimator(path: Path) -> str:
    """Return the author's code that loading a file runs; empty for none.

    Raises:
        UnsupportedModelError: It is damaged.
        FailedPreconditionError: skops is not installed.
    """
    if is_pickle(path):
        return f"'{path.name}' is a pickle, which can run arbitrary code when it is loaded"
    if not (types := untrusted_types(path)):
        return ""
    more = f" and {len(types) - _MAX_TYPES} more" if len(types) > _MAX_TYPES else ""
    return (
        f"it holds types that skops does not trust, {', '.join(types[:_MAX_TYPES])}{more}: "
        "they may run code, or crash the process if the file was manipulated"
    )


def read_estimator(path: Path, *, allow_code: bool) -> Any:  # noqa: ANN401  # any estimator
    """Return the estimator in a file, set to start no worker processes.

    Args:
        allow_code: Whether loading may run the author's code.

    Raises:
        UnsupportedModelError: It cannot be loaded, or would run code that is not allowed.
        FailedPreconditionError: skops is not installed.
    """
    if not is_pickle(path):
        estimator = _from_skops(path, allow_code=allow_code)
    elif not allow_code:
        raise refuse(path, code_of_estimator(path))
    else:
        library = import_library("joblib", "sklearn")
        try:
            estimator = library.load(path)
        except Exception as error:
            # A pickle may raise any exception.
            description = f"{type(error).__name__}: {reason_of(error)}"
            raise refuse(path, f"cannot be unpickled: {description}") from error
        _check_predicts(path, estimator)
    _use_no_workers(estimator)
    return estimator


def untrusted_types(path: Path) -> list[str]:
    """Return the untrusted types in a skops file without loading it.

    Raises:
        UnsupportedModelError: It is damaged.
    """
    _check_archive(path)
    library = _skops()
    try:
        return [n for n in library.get_untrusted_types(file=path) if n not in _TRUSTED]
    except Exception as error:  # noqa: BLE001  # its message may quote the file
        raise _unreadable(path, error) from None


def parts_of(estimator: object) -> Iterator[object]:
    """Yield an object and all objects that it holds, once each."""
    visited: set[int] = set()
    waiting = [estimator]
    while waiting:
        part = waiting.pop()
        if id(part) in visited or isinstance(part, str | bytes | int | float | None):
            continue
        visited.add(id(part))
        yield part
        if isinstance(part, Mapping):
            waiting += [*part.keys(), *part.values()]
        elif isinstance(part, np.ndarray):
            waiting += part.ravel().tolist() if part.dtype.hasobject else ()
        elif isinstance(part, list | tuple | set | frozenset):
            waiting += part
        if not isinstance(part, type | FunctionType | ModuleType):
            held = getattr(part, "__dict__", {})
            waiting += [value for name, value in held.items() if name not in _WORDS]


def row_mixing_part(estimator: object) -> str:
    """Return a part of an estimator not known to predict rows independently; empty for none.

    Functions of NumPy may work along the rows, unless they are universal functions. Boosting with
    categorical features holds a `FunctionTransformer` whose function only checks the datatype.
    """
    transformers = ("FunctionTransformer", "TransformedTargetRegressor")
    check_array = import_library("sklearn.utils.validation", "sklearn").check_array
    for part in parts_of(estimator):
        kind = part if isinstance(part, type | FunctionType) else type(part)
        if kind.__module__.partition(".")[0] not in _LIBRARIES:
            return f"{kind.__module__}.{kind.__qualname__} does not belong to a known library"
        if kind.__name__ in _FACTORIZATIONS:
            return f"{kind.__name__} factorizes all rows of a batch together"
        if type(part).__name__ in transformers:
            for name in ("func", "inverse_func"):
                function = getattr(part, name, None)
                if isinstance(function, partial) and function.func is check_array:
                    continue
                if function is not None and not isinstance(function, np.ufunc):
                    shown = getattr(function, "__qualname__", type(function).__name__)
                    return f"{type(part).__name__} calls '{shown}', which may look at several rows"
    return ""


def _from_skops(path: Path, *, allow_code: bool) -> Any:  # noqa: ANN401  # any estimator
    if (unknown := untrusted_types(path)) and not allow_code:
        raise refuse(
            path,
            f"is not loaded: {code_of_estimator(path)}; allow code if you trust the author, "
            "or export the model to ONNX",
        )
    library = _skops()
    try:
        estimator = library.load(path, trusted=[*_TRUSTED, *unknown])
    except Exception as error:  # noqa: BLE001  # its message may quote the file
        raise _unreadable(path, error) from None
    _check_predicts(path, estimator)
    if not unknown:  # pickles may do worse than hold broken trees
        _check_trees(path, estimator)
    return estimator


def _check_predicts(path: Path, estimator: object) -> None:
    if not (hasattr(estimator, "predict") or hasattr(estimator, "transform")):
        raise refuse(
            path,
            f"holds a {type(estimator).__name__}, which cannot predict or transform rows that it "
            "was not fitted on",
        )


def _check_archive(path: Path) -> None:
    """Refuse a file that is not skops, or unpacks to far more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise refuse(path, f"is truncated or corrupt: {error_kind(error)}") from None
    if _SCHEMA not in names:
        raise refuse(path, f"is an archive without {_SCHEMA}; write it with skops.io.dump")
    if unpacked > max(_MAX_UNPACKED_BYTES, _TIMES_PACKED * path.stat().st_size):
        raise refuse(path, f"unpacks to {unpacked} bytes, more than any model")


def _skops() -> ModuleType:
    # It imports all packages of scikit-learn, and one of them imports PyTorch if installed.
    with without_frameworks():
        return import_library("skops.io", "sklearn")


def _unreadable(path: Path, error: Exception) -> UnsupportedModelError:
    # skops follows the file's declarations, so a damaged file raises any exception.
    return refuse(path, f"cannot be loaded by skops: {error_kind(error)}")


def _use_no_workers(estimator: Any) -> None:  # noqa: ANN401  # any estimator
    """Disable workers: batches run concurrently already, and a replica may not start processes."""
    if hasattr(estimator, "get_params"):
        names = [name for name in estimator.get_params() if name.rpartition("__")[2] == "n_jobs"]
        if names:  # CatBoost refuses any call once it is fitted
            estimator.set_params(**dict.fromkeys(names, 1))


def _check_trees(path: Path, estimator: object) -> None:
    """Check that the indices in an estimator's trees stay within the tree and the row.

    Raises:
        UnsupportedModelError: An index does not.
    """
    try:
        checked = _index_again(estimator)
        parts = list(parts_of(estimator))
        names = [type(part).__name__ for part in parts]
        for part, name in zip(parts, names, strict=True):
            if name in _TREES:
                checked |= _check_tree(path, part)
            elif name in _HISTOGRAMS:
                checked |= _check_histograms(path, part)
        stages: set[int] = set()
        for part, name in zip(parts, names, strict=True):
            if name in _STAGES:  # runs a part, whose trees have to be checked before
                _check_stages(path, part, stages)
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        description = error_kind(error)
        raise corrupt(
            path, f"its trees are not as scikit-learn writes them ({description})"
        ) from None
    for part, name in zip(parts, names, strict=True):
        if name in {"Tree", "TreePredictor", *_INDEXES} and id(part) not in checked:
            raise corrupt(path, "a tree belongs to an estimator without trees")


def _features(path: Path, estimator: Any) -> int:  # noqa: ANN401  # any estimator
    """Return the number of features that an estimator requires of a row."""
    features = vars(estimator).get("n_features_in_")
    if type(features) is not int or features < 1:
        raise corrupt(
            path, f"a {type(estimator).__name__} does not declare how many features it takes"
        )
    return features


def _index_again(estimator: object) -> set[int]:
    """Rebuild row indexes from their rows, and return the ids of the new ones.

    They are equal, but the numbers in a stored index are followed without a check.
    """
    rebuilt = set()
    for part in list(parts_of(estimator)):
        index: Any = getattr(part, "__dict__", {}).get("_tree")
        if type(index).__name__ not in _INDEXES:
            continue
        neighbors: Any = part
        metric, settings = neighbors.effective_metric_, neighbors.effective_metric_params_
        if type(metric) is not str:
            raise TypeError("a metric is not a name")
        rows, size = neighbors._fit_X, neighbors.leaf_size  # noqa: SLF001  # stored only here
        neighbors._tree = type(index)(rows, size, metric=metric, **settings)  # noqa: SLF001  # as above
        rebuilt.add(id(neighbors._tree))  # noqa: SLF001  # as above
    return rebuilt


def _check_tree(path: Path, estimator: Any) -> set[int]:  # noqa: ANN401  # an estimator
    tree = vars(estimator).get("tree_")
    if tree is None:  # it was not fitted, such as the template of an ensemble
        return set()
    features = _features(path, estimator)
    if type(tree).__name__ != "Tree" or tree.n_features != features:
        raise corrupt(path, "a tree has another number of features than its estimator")
    is_leaf = tree.children_left == _LEAF
    _check_nodes(path, tree.children_left, tree.children_right, is_leaf)
    split_features = tree.feature[~is_leaf]
    if split_features.size and not (split_features.min() >= 0 and split_features.max() < features):
        raise corrupt(path, "a tree uses an unknown feature")
    return {id(tree)}


def _check_stages(path: Path, estimator: Any, checked: set[int]) -> None:  # noqa: ANN401  # an estimator
    """Check trees of gradient boosting, which are followed together, bypassing each estimator."""
    stages = vars(estimator).get("estimators_")
    if stages is None or id(estimator) in checked:
        return
    checked.add(id(estimator))
    for part in parts_of(vars(estimator).get("init_")):
        if type(part).__name__ in _STAGES:  # it is run below
            _check_stages(path, part, checked)
    features = _features(path, estimator)
    for part in stages.ravel().tolist():
        if not _check_tree(path, part) or part.tree_.value.shape[1:] != (1, 1):
            raise corrupt(path, "a stage has a tree without outputs")
        if part.tree_.n_features != features:
            raise corrupt(path, "a stage has a tree of other features")
    # The value to which the trees' outputs are added.
    start = estimator._raw_predict_init(np.zeros((1, features)))  # noqa: SLF001  # its initial prediction
    if stages.ndim != start.ndim or stages.shape[1] != start.shape[1]:
        raise corrupt(path, "a stage has another number of trees than there are outputs")


def _check_histograms(path: Path, estimator: Any) -> set[int]:  # noqa: ANN401  # an estimator
    rounds = vars(estimator).get("_predictors")
    if rounds is None:
        return set()
    features = _features(path, estimator)
    trees = [tree for trees in rounds for tree in trees]
    for tree in trees:
        nodes = tree.nodes
        leaf = nodes["is_leaf"] != 0
        _check_nodes(path, nodes["left"].astype(np.int64), nodes["right"].astype(np.int64), leaf)
        inner = nodes[~leaf]
        split_features = inner["feature_idx"].astype(np.int64)
        if split_features.size and not (
            split_features.min() >= 0 and split_features.max() < features
        ):
            raise corrupt(path, "a tree uses an unknown feature")
        # Encoders of categories are code, so a file without code has no categories.
        if (inner["is_categorical"] != 0).any() or estimator._preprocessor is not None:  # noqa: SLF001  # the only source
            raise corrupt(path, "a tree uses categories, but no feature has any")
    return {id(tree) for tree in trees}


def _check_nodes(path: Path, left: Array, right: Array, is_leaf: Array) -> None:
    if not len(left):
        raise corrupt(path, "a tree has no nodes")
    children = np.concatenate((left[~is_leaf], right[~is_leaf]))
    check_children(path, "a tree", children, len(left))
