"""Facts about a model version, found when it was pushed, as rows for people."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Mapping
from typing import TYPE_CHECKING

from headrace.core.text import duration_text

if TYPE_CHECKING:
    from headrace.core import FirstRun, ModelSignature
    from headrace.registry import ModelVersion


def found_rows(version: "ModelVersion") -> list[tuple[str, str]]:
    """Its inputs and outputs, whether rows are batched, and how its first inference went."""
    signature = version.signature
    tensors = [
        *(("input", spec) for spec in signature.inputs),
        *(("output", spec) for spec in signature.outputs),
    ]
    return [
        ("batched", _batched_text(signature)),
        *((kind, f"{spec.name}  {spec.datatype}  {shape(spec.shape)}") for kind, spec in tensors),
        ("inference", _first_run_text(version.first_run)),
    ]


def _batched_text(signature: "ModelSignature") -> str:
    from headrace.observe.row_checks import report_of

    if not signature.batched:
        return f"no, {report_of(signature).text}"
    return f"yes: {signature.row_reason}" if signature.row_reason else "yes"


def lineage_rows(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """What was kept beside the version: where it was converted from, for one."""
    return [(key.replace("_", " "), value) for key, value in metadata.items()]


def shape(sizes: tuple[int, ...]) -> str:
    """A shape for people: `[any, 32]`."""
    return "[" + ", ".join("any" if size < 0 else str(size) for size in sizes) + "]"


def _first_run_text(run: "FirstRun | None") -> str:
    if run is None:
        return "was not tried"
    if run.run_s is None:
        return f"fails on made-up inputs: {run.error}"
    return f"about {duration_text(run.run_s)} for one row, on one CPU thread"
