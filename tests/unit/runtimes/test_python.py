import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headrace.core import InvalidArgumentError, RuntimeFailedError, UnsupportedModelError
from headrace.runtimes import LoadOptions, Model
from headrace.runtimes.python import PythonRuntime
from headrace.testing import models

Write = Callable[[str], Path]
X = np.ones((2, 2), np.float32)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(source: str) -> Path:
        path = tmp_path / "model.py"
        path.write_text(source)
        return path

    return put


def load(path: Path) -> Model:
    return PythonRuntime().load(path, LoadOptions())


def model_source(body: str, *, extra: str = "") -> str:
    return f"""\
import numpy as np
from headrace.core import InvalidArgumentError

class Mine:
    inputs = {{"x": ("FP32", [-1, 2])}}
    outputs = {{"y": ("FP32", [-1, 2])}}
    batched = True
    {extra}

    def infer(self, inputs):
        x = inputs["x"]
        {body}
"""


def test_a_model_answers_with_what_it_declares(write: Write) -> None:
    model = load(write(models.python_double()))

    assert model.signature.batched
    assert not model.concurrent
    assert model.run({"x": X})["y"].tolist() == [[2, 2], [2, 2]]


def test_load_gets_the_directory_and_close_is_called_once(write: Write, tmp_path: Path) -> None:
    source = model_source(
        "return {'y': x + self.weight}",
        extra="""
    def load(self, path):
        self.weight = np.load(path / "weight.npy")

    def close(self):
        print("closed")
""",
    )
    np.save(tmp_path / "weight.npy", np.float32(4))
    model = load(write(source).parent)

    assert model.run({"x": X})["y"].tolist() == [[5, 5], [5, 5]]


def test_close_is_called_once_and_its_failure_is_logged(
    write: Write, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = model_source("return {'y': x}", extra="def close(self): print('closed'); 1 / 0")
    model = load(write(source))
    model.close()
    model.close()

    assert capsys.readouterr().out == "closed\n"
    assert "close() failed" in caplog.text
    with pytest.raises(RuntimeFailedError, match="closed"):
        model.run({"x": X})


def test_files_beside_it_can_be_imported_and_do_not_stay(write: Write, tmp_path: Path) -> None:
    source = "import my_numbers\n" + model_source("return {'y': x * my_numbers.TWO}")
    for number in (2, 3):
        (tmp_path / "my_numbers.py").write_text(f"TWO = np.float32({number})", encoding="utf-8")
        (tmp_path / "my_numbers.py").write_text(f"import numpy as np\nTWO = np.float32({number})")
        model = load(write(source))
        assert model.run({"x": X})["y"].max() == number
        model.close()

    assert "my_numbers" not in sys.modules
    assert str(tmp_path) not in sys.path
    assert not (tmp_path / "__pycache__").exists()


def test_a_second_instance_keeps_its_imports_when_the_first_closes(
    write: Write, tmp_path: Path
) -> None:
    (tmp_path / "late.py").write_text("NUMBER = 7")
    source = model_source("import late; return {'y': x * np.float32(late.NUMBER)}")
    first, second = load(write(source)), load(write(source))
    first.close()

    assert second.run({"x": X})["y"].max() == 7
    second.close()


def test_dataclasses_work_in_a_model_file(write: Write) -> None:
    source = """\
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Mine:
    size: int = 3
    inputs = {"x": ("FP32", [2])}
    outputs = {"y": ("FP32", [2])}

    def infer(self, inputs):
        return {"y": inputs["x"] * self.size}
"""
    model = load(write(source))

    assert not model.signature.batched
    assert model.run({"x": X[0]})["y"].tolist() == [3, 3]


def test_the_class_to_serve_can_be_named(write: Write) -> None:
    two = models.python_double() + models.python_double().replace("Double", "Other")

    with pytest.raises(
        UnsupportedModelError, match=r"\(Double, Other\); choose one with `MODEL = Double`"
    ):
        load(write(two))
    assert load(write(two + "MODEL = Other\n")).signature.batched
    with pytest.raises(UnsupportedModelError, match="MODEL is of the type int"):
        load(write(two + "MODEL = 3\n"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("x = 1\ndef f(:\n", r"SyntaxError \(model.py, line 2\)"),
        ("import no_such_module", r"ModuleNotFoundError \(model.py, line 1\)"),
        ("raise SystemExit(3)", r"SystemExit \(model.py, line 1\)"),
        ("\0", "cannot be run: (SyntaxError|ValueError)"),
        ("x = 1", "holds no model: define a function `predict`"),
        ("class A:\n    inputs = outputs = {}", "holds no model: define a function `predict`"),
        ("class A: pass\nMODEL = A", "class A has no method `infer"),
        (model_source("pass").replace("[-1, 2]", "'?'"), "write it as"),
        (model_source("pass").replace("FP32", "FLOAT"), "the datatype 'FLOAT'; use one of BOOL"),
        (model_source("pass").replace("[-1, 2]", "[-1, 2.5]"), "use whole numbers"),
        (model_source("pass").replace("[-1, 2]", "[-2]"), "use whole numbers"),
        (model_source("pass").replace('"x"', "'a b'"), "tensor name 'a b' is not allowed"),
        (model_source("pass").replace("[-1, 2]", "[3, 2]"), r"must be -1; .* \[3, 2\]"),
        (model_source("pass").replace("batched = True", "batched = 1"), "use True or False"),
        (model_source("pass").replace("inputs = {", "x = {"), r"Mine.inputs must map each"),
        (model_source("pass", extra="def load(self, path): 1 / 0"), r"ZeroDivision.*line 8"),
        (model_source("pass", extra="def __init__(self, a): pass"), "TypeError"),
        (
            model_source("pass", extra="def load(self, p): raise InvalidArgumentError('own')"),
            "own",
        ),
        ("from headrace.core import UnsupportedModelError as E\nraise E('no')", "no"),
    ],
)
def test_a_file_that_is_no_model_is_refused_with_the_reason(
    write: Write, source: str, reason: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        PythonRuntime().load(write(source), LoadOptions())


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no such file"):
        load(tmp_path / "nothing.py")
    with pytest.raises(UnsupportedModelError, match=r"holds no model.py"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return x", "returned ndarray, not a dict"),
        ("return {}", "returned no 'y', which `outputs` declares"),
        ("return {'y': x, 'z': x}", "returned 'z', which `outputs` does not declare"),
        ("return {'y': x.tolist()}", "output 'y' is a list, not a NumPy array"),
        ("return {'y': x.astype(np.float64)}", r"float64, but FP32 .*astype\(np.float32\)"),
        ("return {'y': x[:1]}", "output 'y' has 1 rows for 2 rows of input"),
        ("return {'y': np.array(x.sum())}", "output 'y' has no rows for 2 rows"),
        ("return {'y': np.hstack([x, x])}", r"the shape \[2, 4\], but \[-1, 2\] is declared"),
    ],
)
def test_an_answer_that_is_not_as_declared_names_the_mistake(
    write: Write, body: str, reason: str
) -> None:
    with pytest.raises(RuntimeFailedError, match=reason):
        load(write(model_source(body))).run({"x": X})


def test_the_users_exception_is_the_cause_and_its_line_is_named(write: Write) -> None:
    with pytest.raises(
        RuntimeFailedError, match=r"ValueError: bad \(model.py, line 12\)"
    ) as caught:
        load(write(model_source("raise ValueError('bad')"))).run({"x": X})

    assert isinstance(caught.value.__cause__, ValueError)


def test_the_user_may_blame_the_caller(write: Write) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^too dark$"):
        load(write(model_source("raise InvalidArgumentError('too dark')"))).run({"x": X})


def test_a_view_is_made_contiguous(write: Write) -> None:
    answer = load(write(model_source("return {'y': np.asfortranarray(x)}"))).run({"x": X})

    assert answer["y"].flags.c_contiguous


@pytest.mark.parametrize(
    "value", ["['a', 'ö']", "[b'a', 'ö'.encode()]", "['a', 'ö'], dtype=object"]
)
def test_text_becomes_bytes(write: Write, value: str) -> None:
    source = model_source(f"return {{'y': np.array({value})}}").replace(
        'outputs = {"y": ("FP32", [-1, 2])}', 'outputs = {"y": ("BYTES", [-1])}'
    )

    assert load(write(source)).run({"x": X})["y"].tolist() == [b"a", "ö".encode()]


@pytest.mark.parametrize(
    ("value", "reason"), [("[1, 2]", "int64"), ("[None, 1], dtype=object", "NoneType")]
)
def test_what_is_neither_text_nor_bytes_is_refused(write: Write, value: str, reason: str) -> None:
    source = model_source(f"return {{'y': np.array({value})}}").replace(
        'outputs = {"y": ("FP32", [-1, 2])}', 'outputs = {"y": ("BYTES", [-1])}'
    )

    with pytest.raises(RuntimeFailedError, match=reason):
        load(write(source)).run({"x": X})


def test_a_subset_of_the_outputs_comes_in_order(write: Write) -> None:
    source = model_source("return {'y': x, 'z': x}").replace(
        'outputs = {"y": ("FP32", [-1, 2])}',
        'outputs = {"y": ("FP32", [-1, 2]), "z": ("FP32", [-1, 2])}',
    )
    model = load(write(source))

    assert list(model.run({"x": X}, ["z", "y"])) == ["z", "y"]
    assert list(model.run({"x": X}, ["z"])) == ["z"]


def test_recognising_runs_nothing(write: Write) -> None:
    path = write("raise SystemExit")

    assert PythonRuntime().recognises(path)
    assert PythonRuntime().recognises(path.parent)
