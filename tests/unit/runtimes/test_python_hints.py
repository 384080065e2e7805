from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import headrace
from headrace.core import (
    InvalidArgumentError,
    RuntimeFailedError,
    UnsupportedModelError,
    example_inputs,
)
from headrace.runtimes import LoadOptions, generated_inputs, inspect_model
from headrace.runtimes.base import Model
from headrace.runtimes.python import PythonRuntime

Load = Callable[[str], Model]
IMPORTS = """\
from typing import Annotated, Any, TypedDict
import numpy as np
import numpy.typing as npt

"""


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def put(source: str) -> Model:
        path = tmp_path / "model.py"
        path.write_text(IMPORTS + source)
        return PythonRuntime().load(path, LoadOptions())

    return put


def tensors(model: Model) -> list[str]:
    signature = model.signature
    return [
        f"{s.name} {s.datatype} {list(s.shape)}" for s in (*signature.inputs, *signature.outputs)
    ]


def texts(*values: str) -> np.ndarray:
    array = np.empty(len(values), np.object_)
    array[:] = [value.encode() for value in values]
    return array


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        ("x: float) -> int", ["x FP64 [-1]", "output INT64 [-1]"]),
        ("x: str, n: int) -> bool", ["x BYTES [-1]", "n INT64 [-1]", "output BOOL [-1]"]),
        ("x: np.float32) -> np.uint8", ["x FP32 [-1]", "output UINT8 [-1]"]),
        (
            "x: list[float], y: list[list[int]]) -> list[str]",
            ["x FP64 [-1, -1]", "y INT64 [-1, -1, -1]", "output BYTES [-1, -1]"],
        ),
        ("x: bytes, scale: float = 2.0) -> float", ["x BYTES [-1]", "output FP64 [-1]"]),
        ("x: float) -> Pair", ["x FP64 [-1]", "low FP64 [-1]", "high FP64 [-1]"]),
    ],
)
def test_hints_of_plain_values_describe_one_row(
    load: Load, hints: str, expected: list[str]
) -> None:
    pair = "class Pair(TypedDict):\n    low: float\n    high: float\n\n"
    model = load(f"{pair}def predict({hints}: ...\n")

    assert tensors(model) == expected
    assert model.signature.batched
    assert model.signature.row_reason == "predict takes one row"


@pytest.mark.parametrize(
    ("hints", "expected"),
    [
        (
            (
                "x: np.ndarray[tuple[int, int], np.dtype[np.float32]]) "
                "-> np.ndarray[tuple[int], np.dtype[np.int64]]"
            ),
            ["x FP32 [-1, -1]", "output INT64 [-1]"],
        ),
        (
            'x: Annotated[np.ndarray, ("FP32", [-1, 4])]) -> Annotated[Any, ("FP64", (-1, 3))]',
            ["x FP32 [-1, 4]", "output FP64 [-1, 3]"],
        ),
    ],
)
def test_hints_of_arrays_describe_all_rows(load: Load, hints: str, expected: list[str]) -> None:
    model = load(f"def predict({hints}: ...\n")

    assert tensors(model) == expected
    assert not model.signature.batched
    assert load(f"def predict({hints}: ...\npredict.batched = True\n").signature.batched


def test_a_function_of_one_row_is_called_for_each(load: Load) -> None:
    model = load(
        "def predict(name: str, ages: list[int]) -> str:\n"
        "    assert type(name) is str and type(ages) is list\n"
        "    return f'{name} {sum(ages)}'\n"
    )

    answer = model.run({"name": texts("Ada", "Bö"), "ages": np.array([[1, 2], [3, 4]])})

    assert answer["output"].tolist() == [b"Ada 3", "Bö 7".encode()]
    with pytest.raises(InvalidArgumentError, match="input 'name' is not UTF-8 text"):
        model.run({"name": np.array([b"\xff"], np.object_), "ages": np.array([[1]])})


def test_a_function_of_arrays_is_called_once(load: Load) -> None:
    model = load(
        'def score(x: Annotated[np.ndarray, ("FP32", [-1, 2])]) -> '
        'Annotated[np.ndarray, ("FP32", [-1])]:\n'
        "    return x.sum(axis=1).astype(np.float64)\n"
    )

    answer = model.run({"x": np.array([[1, 2], [3, 4]], np.float32)})

    assert answer["output"].dtype == np.float32
    assert answer["output"].tolist() == [3, 7]


def test_an_example_shows_what_the_hints_leave_open(load: Load) -> None:
    model = load(
        "EXAMPLE = {'x': [[1.0, 2.0, 3.0]], 'word': ['a']}\n"
        "def predict(x, word: npt.NDArray[np.str_]):\n"
        "    return {'total': x.sum(axis=1), 'loud': np.char.upper(word.astype(str))}\n"
    )

    assert tensors(model) == [
        "x FP64 [-1, 3]",
        "word BYTES [-1]",
        "total FP64 [-1]",
        "loud BYTES [-1]",
    ]
    answer = model.run({"x": np.ones((2, 3)), "word": texts("a", "b")})
    assert answer["total"].tolist() == [3, 3]
    assert answer["loud"].tolist() == [b"A", b"B"]


def test_a_class_with_hints_is_created_and_loaded_once(load: Load) -> None:
    model = load(
        "class Scale:\n"
        "    concurrent = True\n"
        "    def load(self, path):\n"
        "        self.factor = len(path.name) * 0 + 3\n"
        "    def predict(self, x: float) -> float:\n"
        "        return x * self.factor\n"
    )

    assert model.run({"x": np.array([1.0, 2.0])})["output"].tolist() == [3, 6]
    assert model.concurrent
    model.close()


def test_of_several_functions_predict_is_the_model(load: Load) -> None:
    helper = "def helper(x: float) -> float: return x\n"

    assert load(f"{helper}def predict(y: float) -> float: ...\n").signature.input("y")
    assert load(f"{helper}def _own(y: float) -> float: ...\n").signature.input("x")
    assert load(f"{helper}def other(y: float) -> float: ...\nMODEL = other\n").signature.input("y")
    with pytest.raises(
        UnsupportedModelError, match=r"several models \(helper, other\); choose one"
    ):
        load(f"{helper}def other(y: float) -> float: ...\n")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("async def predict(x: float) -> float: ...", "is `async`"),
        ("def predict(*x: float) -> float: ...", "must have named arguments"),
        ("def predict() -> float: ...", "must have named arguments"),
        ("def predict(x: set[int]) -> float: ...", "the type hint set.* is not supported"),
        ("def predict(x: 'Missing') -> float: ...", "its type hints cannot be read: NameError"),
        ("def predict(x) -> float: ...", r"hint of 'x' leaves .* open; .* EXAMPLE = {\"x\": "),
        ("def predict(x: npt.NDArray[np.float32]) -> float: ...", "hint of 'x' leaves"),
        ("def predict(x: float): ...", "leave the outputs open; write the result's type"),
        (
            'def predict(x: float, y: Annotated[Any, ("FP32", [-1])]) -> float: ...',
            "mixes arguments of one row with arrays of all rows",
        ),
        (
            'def predict(x: Annotated[Any, ("FP32", [-1])]) -> float: ...',
            "takes all rows, but returns one row",
        ),
        ("EXAMPLE = {'x': ['a']}\ndef predict(x: float): ...", "example: .*'x' has <U1 values"),
        ("EXAMPLE = {'y': [1.0]}\ndef predict(x: float): return x", "example: unexpected inf"),
    ],
)
def test_hints_that_declare_no_model_are_refused(load: Load, source: str, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        load(f"{source}\n")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return 'a'", "'output' has <U1 values, not INT64"),
        ("return 1.5", "'output' has float64 values, not INT64"),
        ("return None", "'output' has object values, not INT64"),
        ("return [1] if x else [1, 2]", "rows of 'output' have different lengths"),
        ("return 1 / 0", r"ZeroDivisionError: .* \(model.py, line 5\)"),
    ],
)
def test_a_result_that_is_not_as_hinted_names_the_mistake(
    load: Load, body: str, reason: str
) -> None:
    model = load(f"def predict(x: int) -> int: {body}\n")

    with pytest.raises(RuntimeFailedError, match=reason):
        model.run({"x": np.array([0, 1])})


EXACTING = """\
class Exacting:
    inputs = {"word": ("BYTES", [-1])}
    outputs = {"n": ("INT64", [-1])}
    batched = True
    example = {"word": ["good", "bad"]}

    def infer(self, inputs):
        known = {b"good": 1, b"bad": 2}
        return {"n": np.array([known[word] for word in inputs["word"].tolist()])}
"""


def test_the_example_of_a_model_is_its_first_request(load: Load, tmp_path: Path) -> None:
    model = load(EXACTING)

    assert generated_inputs(model, rows=3)["word"].tolist() == [b"good", b"bad", b"good"]
    assert model.signature.example == {"word": ["good", "bad"]}
    generated = example_inputs(model.signature, rows=3)
    assert generated["word"].tolist() == [b"good", b"bad", b"good"]
    first_run = inspect_model(tmp_path / "model.py", allow_code=True).first_run
    assert first_run is not None
    assert first_run.error == ""


def test_an_example_that_is_not_text_stays_in_the_process(load: Load) -> None:
    model = load(EXACTING.replace('["good", "bad"]', r'[b"\xff\x00"]'))

    assert generated_inputs(model, rows=2)["word"].tolist() == [b"\xff\x00", b"\xff\x00"]
    assert not model.signature.example


def test_an_example_that_the_declaration_refuses_is_a_mistake(load: Load) -> None:
    for example in ('{"word": [["good"]]}', '{"other": ["good"]}', "3"):
        with pytest.raises(UnsupportedModelError, match="example: "):
            load(EXACTING.replace('{"word": ["good", "bad"]}', example))


MARKED = """\
import headrace

def first(x: float) -> float:
    return x

@headrace.model(example={"x": [4.0]}, concurrent=True)
def second(x: float) -> float:
    return helper(x)

def helper(x: float) -> float:
    return 2 * x
"""


def test_of_several_functions_the_decorated_one_is_the_model(load: Load) -> None:
    model = load(MARKED)

    answer = model.run({"x": np.array([1.5])})
    assert answer["output"].tolist() == [3.0]
    assert model.concurrent
    assert generated_inputs(model)["x"].tolist() == [4.0]


def test_several_decorated_models_are_a_mistake(load: Load) -> None:
    with pytest.raises(UnsupportedModelError, match=r"several models \(first, second\)"):
        load(MARKED.replace("def first", "@headrace.model\ndef first"))


def test_a_decorated_class_takes_precedence_over_a_function(load: Load) -> None:
    source = """\
import headrace

def predict(x: float) -> float:
    return x

@headrace.model(batched=True)
class Total:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"total": ("FP32", [-1])}

    def infer(self, inputs):
        return {"total": inputs["x"].sum(axis=1)}
"""
    model = load(source)

    assert tensors(model) == ["x FP32 [-1, 2]", "total FP32 [-1]"]
    assert model.signature.batched


def test_a_decorated_function_is_still_a_function() -> None:
    @headrace.model
    def double(x: float) -> float:
        return 2 * x

    assert double(2.0) == 4.0
