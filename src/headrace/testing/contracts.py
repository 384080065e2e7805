"""Contract test suites for plug-ins, one for each kind, to be subclassed in their tests.

pytest.register_assert_rewrite("headrace.testing.contracts")  # in conftest.py: readable failures

from headrace.testing.contracts import RuntimeContract

class TestMine(RuntimeContract):
    @pytest.fixture
    def runtime(self):
        return MyRuntime()

    @pytest.fixture
    def model_path(self, tmp_path):
        return write_my_model(tmp_path / "model.mine")

    @pytest.fixture
    def broken_path(self, tmp_path):
        return write_half_of_my_model(tmp_path / "model.mine")
"""

# a contract suite consists of asserts

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from headrace.core import (
    VARIABLE,
    Array,
    Tensors,
    UnsupportedModelError,
    check_inputs,
    check_name,
    example_inputs,
)
from headrace.runtimes import LoadOptions, Model, Runtime, difference_ratio

_ROUNDING: Final = 1e-3
_THREADS: Final = 4


class RuntimeContract:
    """Contract suite of `headrace.runtimes.Runtime` and `Model`, run with one model.

    Subclasses define the fixtures `runtime`, `model_path` (any model of the format, batched if
    possible) and `broken_path` (a file that is recognised as the format by name but cannot be
    loaded). They override `variable` if the model has variable dimensions that must be larger than
    2, and `rounding` if rows of a batch may differ from rows that run alone by more than a
    thousandth of the largest value.
    """

    variable: int = 2
    rounding: float = _ROUNDING

    @pytest.fixture
    def runtime(self) -> Runtime:
        """Return the runtime under test."""
        raise NotImplementedError

    @pytest.fixture
    def model_path(self) -> Path:
        """Return the path of a model that the runtime serves."""
        raise NotImplementedError

    @pytest.fixture
    def broken_path(self) -> Path:
        """Return the path of a file or directory that looks like a model but is not one."""
        raise NotImplementedError

    @pytest.fixture
    def model(self, runtime: Runtime, model_path: Path) -> Iterator[Model]:
        """Yield the model at `model_path`, loaded on the CPU."""
        loaded = runtime.load(model_path, LoadOptions(device="cpu"))
        yield loaded
        loaded.close()

    def test_the_runtime_has_a_name(self, runtime: Runtime) -> None:
        """The name is part of settings and of stored versions."""
        assert check_name(runtime.name, kind="runtime") == runtime.name

    def test_a_model_is_recognised(self, runtime: Runtime, model_path: Path) -> None:
        """Detection finds the runtime for its own format."""
        assert runtime.recognises(model_path) is True

    def test_something_else_is_not_recognised(self, runtime: Runtime, tmp_path: Path) -> None:
        """Detection must not claim files of other formats, or fail on them."""
        directory = tmp_path / "something-else"
        directory.mkdir()
        file = directory / "table.unheard-of"
        file.write_bytes(b"1;2;3\n")

        assert runtime.recognises(file) is False
        assert runtime.recognises(directory) is False
        assert runtime.recognises(tmp_path / "missing.unheard-of") is False

    def test_loading_again_gives_the_same(
        self, runtime: Runtime, model_path: Path, model: Model
    ) -> None:
        """The served model has the same signature as the registered one."""
        again = runtime.load(model_path, LoadOptions(device="cpu"))

        assert again.signature == model.signature
        again.close()

    def test_the_signature_is_complete(self, model: Model) -> None:
        """Names are unique; a batched model has a variable axis 0 everywhere."""
        signature = model.signature
        for specs in (signature.inputs, signature.outputs):
            assert specs
            assert len({spec.name for spec in specs}) == len(specs)
            assert all(size >= VARIABLE for spec in specs for size in spec.shape)
            assert not signature.batched or all(spec.shape[:1] == (VARIABLE,) for spec in specs)

    def test_a_run_gives_the_declared_outputs(self, model: Model) -> None:
        """Names, order, datatypes and shapes are as declared; arrays are contiguous."""
        rows = 3 if model.signature.batched else 1
        answers = model.run(self._inputs(model, rows=rows))

        assert list(answers) == [spec.name for spec in model.signature.outputs]
        for spec in model.signature.outputs:
            array = answers[spec.name]
            assert isinstance(array, np.ndarray)
            assert array.dtype == spec.datatype.dtype
            assert spec.fits(array.shape)
            assert array.flags.c_contiguous
            assert not model.signature.batched or array.shape[0] == rows
            assert array.dtype.kind != "O" or all(type(item) is bytes for item in array.ravel())

    def test_outputs_come_as_they_are_asked_for(self, model: Model) -> None:
        """Requesting a subset returns it in the caller's order, with the same values."""
        inputs = self._inputs(model)
        every = model.run(inputs)
        names = [spec.name for spec in reversed(model.signature.outputs)]

        assert list(model.run(inputs, names)) == names
        for name in names:
            (answer,) = model.run(inputs, [name]).values()
            self._check_same(answer, every[name])

    def test_rows_answer_together_as_they_do_alone(self, model: Model) -> None:
        """Requests of several callers can share a run only if this holds."""
        if not model.signature.batched:
            pytest.skip("the model is not batched")
        parts = [self._inputs(model, rows=rows, seed=rows) for rows in (1, 2, 1)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        alone = [model.run(part) for part in parts]

        for name, answer in model.run(joined).items():
            self._check_same(answer, np.concatenate([part[name] for part in alone]))

    def test_a_run_changes_neither_its_inputs_nor_earlier_answers(self, model: Model) -> None:
        """Inputs may be views into a request; answers are read after the next run began."""
        inputs = self._inputs(model, seed=1)
        copies = {name: array.copy() for name, array in inputs.items()}
        first = model.run(inputs)
        first_copies = {name: array.copy() for name, array in first.items()}
        model.run(self._inputs(model, seed=2))

        for name, array in inputs.items():
            assert np.array_equal(array, copies[name])
        for name, array in first.items():
            self._check_same(array, first_copies[name])

    def test_read_only_inputs_are_taken(self, model: Model) -> None:
        """The tensors of a request are read-only views of its bytes."""
        inputs = self._inputs(model)
        for array in inputs.values():
            array.flags.writeable = False

        assert model.run(inputs)

    def test_two_instances_do_not_meet(
        self, runtime: Runtime, model_path: Path, model: Model
    ) -> None:
        """Closing one leaves the other running."""
        inputs = self._inputs(model)
        before = model.run(inputs)
        other = runtime.load(model_path, LoadOptions(device="cpu", intra_op_threads=2))
        other.run(inputs)
        other.close()

        for name, answer in model.run(inputs).items():
            self._check_same(answer, before[name])

    def test_closing_twice_is_harmless(self, runtime: Runtime, model_path: Path) -> None:
        """Stopping a replica may close a partly closed model again."""
        model = runtime.load(model_path, LoadOptions(device="cpu"))
        model.close()
        model.close()

    def test_threads_get_their_own_answers(self, model: Model) -> None:
        """A model that declares itself concurrent is called by several threads."""
        if not model.concurrent:
            pytest.skip("the model is not concurrent")
        requests = [self._inputs(model, seed=seed) for seed in range(4 * _THREADS)]
        separate = [model.run(request) for request in requests]
        with ThreadPoolExecutor(_THREADS) as pool:
            answers = list(pool.map(model.run, requests))

        for answer, expected in zip(answers, separate, strict=True):
            for name, array in answer.items():
                self._check_same(array, expected[name])

    def test_a_broken_model_is_refused_with_its_name(
        self, runtime: Runtime, broken_path: Path
    ) -> None:
        """Loading fails, with a reason that names the file."""
        assert runtime.recognises(broken_path) is True
        with pytest.raises(UnsupportedModelError, match=broken_path.name):
            runtime.load(broken_path, LoadOptions())

    def test_a_missing_model_is_refused(self, runtime: Runtime, model_path: Path) -> None:
        """The error is `UnsupportedModelError`, not one of the operating system."""
        with pytest.raises(UnsupportedModelError):
            runtime.load(model_path.with_name("missing" + model_path.suffix), LoadOptions())

    def _inputs(self, model: Model, *, rows: int = 1, seed: int = 0) -> Tensors:
        inputs = example_inputs(model.signature, rows=rows, variable=self.variable, seed=seed)
        check_inputs("model", model.signature, inputs)
        return inputs

    def _check_same(self, actual: Array, expected: Array) -> None:
        assert actual.shape == expected.shape
        assert difference_ratio(actual, expected) <= self.rounding
