"""The runtimes of tables pass the suite that plug-ins have to pass."""

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.runtimes import Runtime
from headrace.runtimes.tables.catboost import CatboostRuntime
from headrace.runtimes.tables.lightgbm import LightgbmRuntime
from headrace.runtimes.tables.sklearn import SklearnRuntime
from headrace.runtimes.tables.xgboost import XgboostRuntime
from headrace.testing.contracts import RuntimeContract
from tests import tabular_models
from tests.tabular_models import Trained


class TreesContract(RuntimeContract):
    rounding = 0.0
    kind = "multiclass"
    made_by: type[Runtime]
    train: Callable[[Path, str], Trained]

    @pytest.fixture
    def runtime(self) -> Runtime:
        return self.made_by()

    @pytest.fixture
    def model_path(self, tmp_path: Path) -> Path:
        return type(self).train(tmp_path, self.kind).path

    @pytest.fixture
    def broken_path(self, model_path: Path) -> Path:
        path = model_path.with_name("half" + model_path.suffix)
        data = model_path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        return path


class TestXgboost(TreesContract):
    made_by = XgboostRuntime
    train = staticmethod(tabular_models.xgboost)


class TestXgboostBinary(TestXgboost):
    kind = "binary"


class TestXgboostRegression(TestXgboost):
    kind = "regression"


class TestLightgbm(TreesContract):
    made_by = LightgbmRuntime
    train = staticmethod(tabular_models.lightgbm)


class TestLightgbmBinary(TestLightgbm):
    kind = "binary"


class TestLightgbmRegression(TestLightgbm):
    kind = "regression"


class TestCatboost(TreesContract):
    made_by = CatboostRuntime
    train = staticmethod(tabular_models.catboost)


class TestCatboostBinary(TestCatboost):
    kind = "binary"


class TestCatboostRegression(TestCatboost):
    kind = "regression"


class TestSklearn(TreesContract):
    made_by = SklearnRuntime
    rounding = 1e-12  # its matrix products sum in another order for other numbers of rows
    train = staticmethod(tabular_models.sklearn)


class TestSklearnRegression(TestSklearn):
    kind = "regression"
