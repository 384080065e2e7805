"""Model that runs a PyTorch module, from any file format."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from headrace.core import (
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.runtimes.libraries import reason_of
from headrace.runtimes.tables.tabular import import_library

_DEVICES: Final = ("auto", "cuda", "cpu")
_AUTHORS: Final = ("builtins.ValueError", "builtins.AssertionError")
"""Exceptions with which scripted code refuses an input."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A loaded PyTorch file that maps named tensors to outputs."""

    call: Callable[[Mapping[str, Any]], object]
    inputs: tuple[TensorSpec, ...]
    """Inputs in the form that callers send."""
    casts: Mapping[str, object]
    """Datatype by input for conversion before the module."""
    device: str
    keeps_state: bool
    """Whether a run changes the module."""
    writes_inputs: bool
    """Whether a run changes its inputs."""
    loaded: object
    """The module or exported program that PyTorch loaded."""


class TorchModel:
    """A loaded module.

    `names`: output names for callers by the module's own names; None before the first run has shown
    them.
    """

    def __init__(self, program: Program, signature: ModelSignature, threads: int) -> None:
        self.signature = signature
        self.concurrent = not program.keeps_state
        self.names: dict[str, str] | None = None
        self._program: Program | None = program
        self._threads = threads
        self._torch, self._values = import_torch()

    @property
    def program(self) -> Program:
        """Program to run.

        Raises:
            RuntimeFailedError: The model is closed.
        """
        if self._program is None:
            raise RuntimeFailedError("the model is closed")
        return self._program

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch."""
        program = self.program
        torch = self._torch
        if torch.get_num_threads() != self._threads:
            # Per thread, so that models of one process use their own numbers of threads.
            torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                tensors = {}
                for spec in program.inputs:
                    tensor = self._values.as_tensor(inputs[spec.name], copy=program.writes_inputs)
                    cast = program.casts.get(spec.name)
                    if cast is not None or program.device != "cpu":
                        tensor = tensor.to(program.device, cast or tensor.dtype)
                    tensors[spec.name] = tensor
                answer = self._values.flatten(program.call(tensors))
                answers = self._named(program, answer, outputs)
                self._check(answers, inputs)
        except HeadraceError:
            raise
        except Exception as error:
            # Exceptions of operators and scripted code share no base class but Exception.
            raise run_error(error) from error
        return {name: answers[name] for name in outputs} if outputs else answers

    def close(self) -> None:
        """Release the module; may be called again."""
        self._program = None

    def _named(
        self, program: Program, answer: Mapping[str, object], outputs: Sequence[str] | None
    ) -> Tensors:
        names = self._names(answer)
        return {
            names[name]: self._values.as_array(name, value, copy=program.keeps_state)
            for name, value in answer.items()
            if not outputs or names[name] in outputs
        }

    def _names(self, answer: Mapping[str, object]) -> Mapping[str, str]:
        """Return the output names for callers by the module's own names."""
        declared = [spec.name for spec in self.signature.outputs]
        names = self.names
        if names is None:  # still being determined, or declared and never run
            names = dict(zip(answer, declared or answer, strict=False))
        if answer.keys() != names.keys() or (declared and len(declared) != len(answer)):
            expected = ", ".join(f"'{name}'" for name in names)
            received = ", ".join(f"'{name}'" for name in answer)
            raise RuntimeFailedError(f"the model returned {received}, but {expected} was expected")
        return names

    def _check(self, answers: Tensors, inputs: Tensors) -> None:
        """Raise RuntimeFailedError if the outputs do not match the signature."""
        rows = len(inputs[self.signature.inputs[0].name]) if self.signature.batched else None
        for spec in self.signature.outputs:
            array = answers.get(spec.name)
            if array is None:
                continue
            fits = spec.fits(array.shape) and rows in (None, *array.shape[:1])
            if array.dtype != spec.datatype.dtype or not fits:
                raise RuntimeFailedError(
                    f"the model returned '{spec.name}' as {array.dtype} with shape "
                    f"{list(array.shape)}, but {spec.datatype} with {list(spec.shape)} was "
                    "expected"
                )


def import_torch() -> "tuple[Any, Any]":
    """Return PyTorch, and the module that converts tensors.

    Raises:
        FailedPreconditionError: It is not installed; the message says how to install it.
    """
    torch = import_library("torch", "torch")
    from headrace.runtimes.torch import values as torch_values  # noqa: PLC0415  # imports PyTorch

    return torch, torch_values


def choose_device(torch: Any, requested: str) -> str:
    """Return CUDA if `requested` allows it and it is available, else the CPU.

    Raises:
        UnsupportedModelError: There is no device of this name.
    """
    if requested not in _DEVICES:
        msg = f"unknown device '{requested}'; use one of {', '.join(_DEVICES)}"
        raise UnsupportedModelError(msg)
    if requested == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if requested == "cuda":
        _log.warning("PyTorch finds no CUDA device; using the CPU")
    return "cpu"


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress PyTorch's warnings during loading, as operators cannot act on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def run_error(error: Exception) -> HeadraceError:
    """Return the error of a run, classified by cause: the caller or the model."""
    text = reason_of_torch(error)
    if text.startswith(_AUTHORS):
        return InvalidArgumentError(f"the model rejects it: {text.partition(': ')[2] or text}")
    if isinstance(error, AssertionError) and text.startswith("Guard failed"):
        return InvalidArgumentError(f"the program was not exported for this input: {text}")
    return RuntimeFailedError(f"the model failed: {text}")


def reason_of_torch(error: Exception) -> str:
    """Return PyTorch's message; for scripted code the last line, which has the cause."""
    text = str(error)
    if "TorchScript" in text and "Traceback" in text:
        text = [line for line in text.splitlines() if line.strip()][-1]
        text = text.removeprefix("RuntimeError: ")
    return reason_of(RuntimeError(text)) if text else type(error).__name__
