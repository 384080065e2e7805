"""Conversion of a model for `headrace models push --convert onnx`, with its lineage.

Converted on this machine, whose libraries trained the model, also where the control plane is
elsewhere: only what came of it is sent.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headrace.cli.model_store import Pushed
from headrace.cli.output import progress
from headrace.cli.read_inputs import read_inputs, with_batch_axis
from headrace.cli.read_table import read_tensors
from headrace.control.conversion import converted_model, source_signature
from headrace.control.sandbox import Sandbox
from headrace.core import (
    Array,
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    check_inputs,
)
from headrace.optimize.convert_process import ConvertRequest
from headrace.optimize.sources import source_runtime
from headrace.registry import read_content


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How to compare. `data`: a file of rows to compare with; the rest as `convert` takes it."""

    data: Path | None
    tolerance: float | None
    max_changed_ratio: float
    no_missing: bool


@contextmanager
def converted(pushed: Pushed, wish: Wish, home: Path) -> Iterator[Pushed]:
    """The ONNX model that was made of `pushed`; its file is gone afterwards.

    Args:
        home: Hidden from what is converted.

    Raises:
        HeadraceError: It cannot be converted, or its answers differ too much.
    """
    path = pushed.path.absolute()
    runtime = source_runtime(path, pushed.runtime)
    request = ConvertRequest(
        path=str(path),
        runtime=runtime,
        allow_code=pushed.allow_code,
        tolerance=wish.tolerance,
        max_changed_ratio=wish.max_changed_ratio,
        no_missing=wish.no_missing,
    )
    digest = read_content(path).digest
    sandbox = Sandbox.of_home(home)
    with ExitStack() as stack:
        with progress(f"converting {pushed.path} and comparing"):
            rows = None
            if wish.data is not None:
                rows = _given(wish.data, source_signature(sandbox, request))
            filename = f"{path.stem or 'model'}.onnx"
            made, conversion = stack.enter_context(
                converted_model(sandbox, request, filename=filename, rows=rows)
            )
        yield Pushed(
            path=made,
            runtime="onnx",
            source=pushed.source or str(path),
            metadata=conversion.metadata(digest=digest, runtime=runtime, filename=path.name),
        )


def difference_text(metadata: Mapping[str, str]) -> str:
    """What was compared, and how far the answers to given rows are apart, for people."""
    by = f"converted by {metadata['converter']}, computes in {metadata['converter_computes']}"
    beside = metadata.get("differs_beside_thresholds")
    fine = (
        f"; {beside} rows with values that FP32 cannot tell from a threshold get another answer"
        if beside
        else ""
    )
    if metadata["tested_on_data"] == "no":
        return (
            f"{by}: not tested on data (--convert-data FILE compares rows of yours); on "
            f"{metadata['compared_inputs']} it answers within the tolerance of "
            f"{metadata['tolerance']}{fine}"
        )
    return (
        f"{by}: on {metadata['tested_on_data']} answers differ by up to "
        f"{metadata['largest_relative_difference']} of their value "
        f"({metadata['largest_absolute_difference']} absolute), "
        f"{float(metadata['changed_class_ratio']):.2%} of the rows get another class{fine}"
    )


def _given(file: Path, signature: ModelSignature) -> Tensors:
    """The rows of a file, as the model takes them.

    Raises:
        InvalidArgumentError: They do not fit the model.
    """
    if file.suffix.lower() == ".json":
        read = with_batch_axis(read_inputs(file.read_bytes(), signature), signature)
    else:
        read, _ = read_tensors(file, signature)
    given = {spec.name: _tensor(file, spec.name, spec.datatype, read) for spec in signature.inputs}
    try:
        check_inputs(file.name, signature, given)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{file} does not fit the model: {error}") from error
    return given


def _tensor(file: Path, name: str, datatype: Datatype, read: Mapping[str, object]) -> Array:
    if datatype is Datatype.BYTES:
        msg = f"input '{name}' takes text, and only rows of numbers can be compared with"
        raise InvalidArgumentError(msg)
    if name not in read:
        raise InvalidArgumentError(f"{file} has no values for the input '{name}'")
    try:
        return np.ascontiguousarray(np.asarray(read[name]).astype(datatype.dtype))
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidArgumentError(f"{file}: input '{name}' takes {datatype}: {error}") from None
