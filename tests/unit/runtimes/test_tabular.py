from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.core import (
    Array,
    Datatype,
    FailedPreconditionError,
    InvalidArgumentError,
    RuntimeFailedError,
    UnsupportedModelError,
)
from headrace.runtimes import LoadOptions, detect_runtime, inspect_model, load_model
from headrace.runtimes.tables import tabular
from headrace.runtimes.tables.catboost import read_catboost
from headrace.runtimes.tables.lightgbm import read_lightgbm
from headrace.runtimes.tables.tabular import (
    OutputLayout,
    TableInputs,
    as_label,
    import_library,
    open_tabular,
)
from headrace.runtimes.tables.xgboost import read_xgboost
from tests import tabular_models
from tests.tabular_models import FEATURES, KINDS, Trained, asked

Train = Callable[[Path, str], Trained]
TRAIN: dict[str, Train] = {
    "xgboost": tabular_models.xgboost,
    "lightgbm": tabular_models.lightgbm,
    "catboost": tabular_models.catboost,
    "sklearn": tabular_models.sklearn,
}
TAKES_MISSING = ("xgboost", "lightgbm", "catboost")
INPUTS = {name: "FP64" if name in {"lightgbm", "sklearn"} else "FP32" for name in TRAIN}


@pytest.mark.slow  # imports the libraries
@pytest.mark.slow  # imports the libraries
@pytest.mark.parametrize("suffix", ["", ".bst", ".model"])
@pytest.mark.parametrize("name", TAKES_MISSING)
def test_trees_are_recognised_by_content_under_any_name(
    name: str, suffix: str, tmp_path: Path
) -> None:
    trained = TRAIN[name](tmp_path, "binary")
    path = trained.path.rename(tmp_path / f"saved{suffix}")
    rows = asked().astype(Datatype(INPUTS[name]).dtype)

    assert detect_runtime(path).name == name
    model = load_model(path)
    label, _ = model.run({"input": rows}).values()
    model.close()

    assert np.array_equal(label, trained.expected(rows)[0])


@pytest.mark.slow  # imports the libraries
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["xgboost", "lightgbm", "catboost"])
def test_pickled_classes_of_tree_libraries_answer_bit_for_bit(
    name: str, kind: str, tmp_path: Path
) -> None:
    estimator = {
        "xgboost": lambda kinds: (
            kinds.XGBClassifier if kind != "regression" else kinds.XGBRegressor
        ),
        "lightgbm": lambda kinds: (
            kinds.LGBMClassifier if kind != "regression" else kinds.LGBMRegressor
        ),
        "catboost": lambda kinds: (
            kinds.CatBoostClassifier if kind != "regression" else kinds.CatBoostRegressor
        ),
    }[name](tabular_models.library(name, name))
    options = {"verbose": 0, "allow_writing_files": False} if name == "catboost" else {"n_jobs": 2}
    rows = asked(missing=False).astype(np.float64)
    trained = estimator(n_estimators=6, **options).fit(
        tabular_models.ROWS.astype(np.float64), tabular_models.target(kind)
    )
    path = tmp_path / "trees.joblib"
    tabular_models.library("joblib", "sklearn").dump(trained, path)

    model = load_model(path)
    answers = list(model.run({"input": rows}).values())
    model.close()

    for got, want in zip(answers, tabular_models.as_sklearn(trained, kind)(rows), strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAIN)
def test_answers_are_those_of_the_library_bit_for_bit(name: str, kind: str, tmp_path: Path) -> None:
    trained = TRAIN[name](tmp_path, kind)
    rows = asked(missing=name in TAKES_MISSING).astype(Datatype(INPUTS[name]).dtype)
    model = load_model(trained.path)
    answers = list(model.run({"input": rows}).values())
    model.close()

    for got, want in zip(answers, trained.expected(rows), strict=True):
        assert got.dtype.kind == want.dtype.kind
        assert np.array_equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAIN)
def test_all_libraries_give_the_same_names_and_shapes(name: str, kind: str, tmp_path: Path) -> None:
    seen = inspect_model(TRAIN[name](tmp_path, kind).path)
    (spec,) = seen.signature.inputs
    outputs = {spec.name: list(spec.shape) for spec in seen.signature.outputs}

    assert (seen.runtime, seen.runs_code, seen.signature.batched) == (name, False, True)
    assert (spec.name, spec.datatype, spec.shape) == ("input", INPUTS[name], (-1, FEATURES))
    if kind == "regression":
        assert outputs == {"prediction": [-1]}
    else:
        classes = 2 if kind == "binary" else 3
        assert outputs == {"label": [-1], "probabilities": [-1, classes]}


def named(folder: Path, library: str, names: list[str]) -> Path:
    """A model that was trained on a table whose columns are called so."""
    catboost, lightgbm, xgboost = (
        tabular_models.library(name, name) for name in ("catboost", "lightgbm", "xgboost")
    )
    rows = np.random.default_rng(0).random((64, len(names)))
    target = (rows[:, 0] > 0.5).astype(int)
    if library == "xgboost":
        path = folder / "m.json"
        data = xgboost.DMatrix(rows, target, feature_names=names)
        xgboost.train({"objective": "binary:logistic"}, data, 2).save_model(path)
    elif library == "lightgbm":
        path = folder / "m.txt"
        table = lightgbm.Dataset(rows, target, feature_name=names)
        lightgbm.train({"objective": "binary", "verbose": -1}, table, 2).save_model(path)
    else:
        path = folder / "m.cbm"
        pool = catboost.Pool(rows, target, feature_names=names)
        model = catboost.CatBoostClassifier(iterations=2, verbose=0, allow_writing_files=False)
        model.fit(pool).save_model(str(path))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost"])
def test_columns_keep_the_names_that_they_were_trained_with(library: str, tmp_path: Path) -> None:
    seen = inspect_model(named(tmp_path, library, ["spend", "age"]))
    assert seen.signature.columns == {"input": ("spend", "age")}


@pytest.mark.parametrize("name", TRAIN)
def test_columns_without_names_get_none(name: str, tmp_path: Path) -> None:
    assert not inspect_model(TRAIN[name](tmp_path, "binary").path).signature.columns


@pytest.mark.parametrize("name", TRAIN)
def test_more_threads_answer_the_same(name: str, tmp_path: Path) -> None:
    path = TRAIN[name](tmp_path, "multiclass").path
    rows = asked(missing=False).astype(Datatype(INPUTS[name]).dtype)
    one, two = (load_model(path, options=LoadOptions(intra_op_threads=n)) for n in (1, 2))

    for got, want in zip(
        one.run({"input": rows}).values(), two.run({"input": rows}).values(), strict=True
    ):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("name", TRAIN)
def test_a_file_that_is_cut_off_or_empty_is_refused(name: str, tmp_path: Path) -> None:
    path = TRAIN[name](tmp_path, "binary").path
    data = path.read_bytes()
    for size in (0, 1, 8, len(data) // 3, len(data) // 2):
        path.write_bytes(data[:size])
        with pytest.raises(UnsupportedModelError, match=path.name):
            inspect_model(path, name)


@pytest.mark.parametrize("name", TRAIN)
def test_a_file_that_is_not_there_is_refused(name: str, tmp_path: Path) -> None:
    path = TRAIN[name](tmp_path, "binary").path
    gone = path.with_name("gone" + path.suffix)

    with pytest.raises(UnsupportedModelError, match="gone"):
        load_model(gone, name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"learner": {"rate": 1}}'),
        ("a.json", '{"version": [1]}'),
        ("a.ubj", "{}"),
        ("a.txt", "trees are green\n"),
        ("a.lgb", ""),
        ("a.cbm", "CBM2"),
        ("a.skops", "{}"),
    ],
)
def test_a_file_of_somebody_elses_is_not_recognised(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)

    with pytest.raises(UnsupportedModelError, match=r"no runtime (recognises|loads)"):
        detect_runtime(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "read"),
    [("xgboost", read_xgboost), ("lightgbm", read_lightgbm), ("catboost", read_catboost)],
)
@settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(at=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_a_damaged_file_is_read_or_refused(
    name: str, read: Callable[[Path], object], at: float, byte: int, tmp_path: Path
) -> None:
    path = tmp_path / "multiclass"
    if not path.exists():
        TRAIN[name](tmp_path, "multiclass").path.rename(path)
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] = byte
    damaged = tmp_path / "damaged.json"
    damaged.write_bytes(data)

    try:
        read(damaged)
    except UnsupportedModelError as error:
        assert "damaged.json" in str(error)  # noqa: PT017  # most damage is refused, not all


DIRECT = ("xgboost", "lightgbm")
"""Are given the address of the rows."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TRAIN)
def test_a_row_alone_is_answered_as_in_a_batch(name: str, kind: str, tmp_path: Path) -> None:
    model = load_model(TRAIN[name](tmp_path, kind).path)
    rows = asked(missing=name in TAKES_MISSING).astype(Datatype(INPUTS[name]).dtype)
    batch = model.run({"input": rows})

    alone = [model.run({"input": rows[i : i + 1]}) for i in range(len(rows))]

    for output, want in batch.items():
        got = np.concatenate([answer[output] for answer in alone])
        if name == "sklearn" and want.dtype.kind == "f":  # multiplies matrices
            assert np.allclose(got, want, rtol=1e-12)
        else:
            assert np.array_equal(got, want)


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("name", DIRECT)
def test_rows_are_read_right_however_they_lie_in_memory(
    name: str, rows: int, tmp_path: Path
) -> None:
    model = load_model(TRAIN[name](tmp_path, "multiclass").path)
    plain = asked(rows).astype(Datatype(INPUTS[name]).dtype)
    want = model.run({"input": plain})["probabilities"]
    shifted = np.frombuffer(b"." + plain.tobytes(), plain.dtype, offset=1).reshape(plain.shape)
    wide = np.repeat(plain, 2, axis=1)
    other = {
        "unaligned": shifted,
        "by column": np.asfortranarray(plain),
        "every second column": wide[:, ::2],
        "upside down": plain[::-1].copy()[::-1],
        "another size": plain.astype(np.longdouble),
    }
    assert not shifted.flags.aligned

    for how, array in other.items():
        got = model.run({"input": array})["probabilities"]
        assert np.array_equal(got, want), how


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("columns", [FEATURES - 1, FEATURES + 1])
@pytest.mark.parametrize("name", DIRECT)
def test_another_number_of_columns_is_refused_by_the_library(
    name: str, columns: int, rows: int, tmp_path: Path
) -> None:
    model = load_model(TRAIN[name](tmp_path, "binary").path)
    wrong = np.ones((rows, columns), Datatype(INPUTS[name]).dtype)

    with pytest.raises(RuntimeFailedError, match=rf"{columns}"):
        model.run({"input": wrong})


@pytest.mark.parametrize("name", DIRECT)
def test_no_rows_get_no_answers(name: str, tmp_path: Path) -> None:
    model = load_model(TRAIN[name](tmp_path, "regression").path)

    answers = model.run({"input": np.ones((0, FEATURES), Datatype(INPUTS[name]).dtype)})

    assert len(answers["prediction"]) == 0


@pytest.mark.parametrize("name", [*DIRECT, "catboost"])
def test_two_threads_in_one_model_get_answers_of_their_own(name: str, tmp_path: Path) -> None:
    model = load_model(TRAIN[name](tmp_path, "multiclass").path)
    rows = asked().astype(Datatype(INPUTS[name]).dtype)
    parts = [rows[i : i + 1 + i % 3] for i in range(30)]
    want = [model.run({"input": part})["probabilities"] for part in parts]
    assert model.concurrent

    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda part: model.run({"input": part})["probabilities"], parts * 5))

    assert all(np.array_equal(a, b) for a, b in zip(got, want * 5, strict=True))


def test_outputs_are_made_of_one_prediction(tmp_path: Path) -> None:
    asked: list[int] = []

    def predict(rows: Array) -> Array:
        asked.append(len(rows))
        return rows[:, 0]

    model = open_tabular(
        tmp_path / "model",
        OutputLayout(predict=predict, outputs={"same": lambda x: x, "twice": lambda x: x * 2}),
        TableInputs.of_matrix(tmp_path / "model", 2, Datatype.FP32),
        concurrent=False,
    )
    answers = model.run({"input": np.ones((3, 2), np.float32)})

    assert asked == [2, 3]  # once to find out what it gives
    assert answers["twice"].tolist() == [2, 2, 2]


def test_an_absent_library_is_told_with_what_installs_it() -> None:
    with pytest.raises(FailedPreconditionError, match=r"pip install 'headrace\[xgboost\]'"):
        import_library("no_such_library", "xgboost")


def test_a_model_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="has no features"):
        _open(tmp_path, lambda rows: rows[:, 0], features=0)


def test_a_model_of_more_features_than_anybody_sends_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="at most"):
        _open(tmp_path, lambda rows: rows[:, 0], features=tabular.MAX_FEATURES + 1)


def test_a_model_that_does_not_predict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="does not predict: no trees"):
        _open(tmp_path, _fail)


def test_an_answer_without_a_row_for_each_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="returns 'prediction'"):
        _open(tmp_path, lambda rows: rows[:1, 0])


def test_values_that_the_model_cannot_take_are_the_callers_fault(tmp_path: Path) -> None:
    model = _open(tmp_path, _picky)

    with pytest.raises(InvalidArgumentError, match="missing or infinite"):
        model.run({"input": np.full((1, 2), np.nan, np.float32)})


def test_a_failure_on_plain_values_is_the_models(tmp_path: Path) -> None:
    model = _open(tmp_path, _picky)

    with pytest.raises(RuntimeFailedError, match="no such rows"):
        model.run({"input": np.ones((1, 2), np.float32)})


def test_a_closed_model_says_so(tmp_path: Path) -> None:
    model = _open(tmp_path, lambda rows: rows[:, 0])
    model.close()

    with pytest.raises(RuntimeFailedError, match="closed"):
        model.run({"input": np.ones((1, 2), np.float32)})


def test_classes_that_are_text_come_as_bytes() -> None:
    assert as_label(np.array(["no", "yes"])).tolist() == [b"no", b"yes"]
    assert as_label(np.array([1, 2], np.int32)).dtype == np.int64
    assert as_label(np.array([True])).dtype == np.bool_


def _open(
    folder: Path, answer: Callable[[Array], Array], features: int = 2
) -> tabular.TabularModel:
    return open_tabular(
        folder / "model",
        OutputLayout(predict=lambda rows: rows, outputs={"prediction": answer}),
        TableInputs.of_matrix(folder / "model", features, Datatype.FP32),
        concurrent=False,
    )


def _fail(rows: Array) -> Array:
    del rows
    msg = "no trees"
    raise OSError(msg)


def _picky(rows: Array) -> Array:
    if rows.any():
        msg = "no such rows"
        raise ValueError(msg)
    return rows[:, 0]
