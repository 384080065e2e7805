"""Small models of tables, trained in no time; skips the test where the library is absent."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import pytest

from headrace.core import Array

FEATURES: Final = 5
_RNG: Final = np.random.default_rng(7)
ROWS: Final[Array] = _RNG.normal(size=(240, FEATURES)).astype(np.float32)
CLASSES: Final[Array] = (ROWS[:, 0] * 2 + ROWS[:, 1] > 0).astype(np.int64) + (ROWS[:, 2] > 1)
SURE: Final[Array] = (ROWS[:, 0] + ROWS[:, 1] > 0).astype(np.int64)
AMOUNTS: Final[Array] = ROWS[:, 0] * 3 + np.sin(ROWS[:, 1])
KINDS: Final = ("regression", "binary", "multiclass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A file, and what its library answers in this process: values, or a class and how sure."""

    path: Path
    expected: Callable[[Array], list[Array]]


def asked(rows: int = 40, *, missing: bool = True) -> Array:
    """Rows that no model was trained on; some values are missing."""
    found: Array = np.random.default_rng(1).normal(size=(rows, FEATURES)).astype(np.float32)
    if missing:
        found[::3, 1] = np.nan
    return found


def library(name: str, extra: str) -> ModuleType:
    """A library that an extra brings; skips where it is not installed."""
    module: ModuleType = pytest.importorskip(
        name, reason=f"needs {name}: pip install 'headrace[{extra}]'"
    )
    return module


def target(kind: str) -> Array:
    """What the rows of `ROWS` are labelled with."""
    return {"regression": AMOUNTS, "binary": SURE, "multiclass": CLASSES}[kind]


def xgboost(folder: Path, kind: str, *, suffix: str = ".json", **params: Any) -> Trained:  # noqa: ANN401  # any setting
    """An XGBoost file by `XGBClassifier` or `XGBRegressor`."""
    xgb = library("xgboost", "xgboost")
    make = xgb.XGBRegressor if kind == "regression" else xgb.XGBClassifier
    model = make(**{"n_estimators": 6, "max_depth": 3, "n_jobs": 1} | params)
    model.fit(ROWS, target(kind))
    path = folder / f"{kind}{suffix}"
    model.save_model(path)
    return Trained(path=path, expected=as_sklearn(model, kind))


def lightgbm(folder: Path, kind: str, **params: Any) -> Trained:  # noqa: ANN401  # any setting
    """A LightGBM file."""
    lgb = library("lightgbm", "lightgbm")
    objective = {"regression": "regression", "binary": "binary", "multiclass": "multiclass"}[kind]
    settings = {"objective": objective, "num_threads": 1, "verbose": -1, "num_leaves": 7} | params
    if kind == "multiclass":
        settings["num_class"] = 3
    booster = lgb.train(settings, lgb.Dataset(ROWS.astype(np.float64), target(kind)), 6)
    path = folder / f"{kind}.txt"
    booster.save_model(path)

    def expected(rows: Array) -> list[Array]:
        answer: Array = booster.predict(rows)
        if kind == "regression":
            return [answer]
        both = np.stack((1 - answer, answer), axis=1) if kind == "binary" else answer
        return [both.argmax(axis=1), both]

    return Trained(path=path, expected=expected)


def catboost(folder: Path, kind: str, **params: Any) -> Trained:  # noqa: ANN401  # any setting
    """A CatBoost file."""
    cb = library("catboost", "catboost")
    make = cb.CatBoostRegressor if kind == "regression" else cb.CatBoostClassifier
    settings = {"iterations": 6, "depth": 3, "verbose": 0, "thread_count": 1} | params
    model = make(allow_writing_files=False, **settings)
    model.fit(ROWS, params.get("target", target(kind)))
    path = folder / f"{kind}.cbm"
    model.save_model(str(path))
    return Trained(path=path, expected=as_sklearn(model, kind))


def sklearn(folder: Path, kind: str, estimator: Any = None) -> Trained:  # noqa: ANN401  # any estimator
    """A skops file; of a linear model unless another is given."""
    skops = library("skops.io", "sklearn")
    linear = library("sklearn.linear_model", "sklearn")
    usual = linear.Ridge() if kind == "regression" else linear.LogisticRegression(max_iter=1000)
    chosen = usual if estimator is None else estimator  # an ensemble has a length, of 0 so far
    chosen.fit(ROWS.astype(np.float64), target(kind))
    path = folder / f"{kind}.skops"
    skops.dump(chosen, path)
    return Trained(path=path, expected=as_sklearn(chosen, kind))


def as_sklearn(model: Any, kind: str) -> Callable[[Array], list[Array]]:  # noqa: ANN401  # any of them
    """What an estimator answers: values, or a class and probabilities."""

    def expected(rows: Array) -> list[Array]:
        answer = np.asarray(model.predict(rows))
        if kind == "regression":
            return [answer]
        return [answer.reshape(len(rows)), model.predict_proba(rows)]

    return expected
