"""`headrace models`: the registry of model versions."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Mapping
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.models import files
from headrace.cli.models.files import Wish, converted, difference_text, signed_text
from headrace.cli.models.store import Pushed, model_store
from headrace.cli.options import (
    AllowCode,
    Artifacts,
    CommandGroup,
    ControlPlane,
    Json,
    StateUrl,
)
from headrace.cli.output import Column, progress, say, show_document, table, write_json
from headrace.core.text import bytes_text, duration_text

if TYPE_CHECKING:
    from headrace.core import FirstRun, ModelSignature
    from headrace.registry import ModelVersion, VersionSignature


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


app = CommandGroup(help="Keep model versions: push, list, show, fetch, sign, rm, gc.")
app.command("fetch")(files.fetch)
app.command("keygen")(files.keygen)
app.command("sign")(files.sign)
app.command("verify")(files.verify)


class ConvertTo(StrEnum):
    """What a model can be converted to."""

    ONNX = "onnx"


_Reference = Annotated[
    str, typer.Argument(metavar="NAME:VERSION", help="Which version.", show_default=False)
]


@app.command()
def push(
    name: Annotated[str, typer.Argument(help="The model's name.")],
    path: Annotated[Path, typer.Argument(help="A model file or directory.", exists=True)],
    *,
    runtime: Annotated[
        str, typer.Option(help="onnx, xgboost, python and so on.", show_default="told by the file")
    ] = "",
    source: Annotated[str, typer.Option(help="Where it comes from: a commit, a run, a URL.")] = "",
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Training data (.csv, .parquet, .npz) to compare requests with for drift; only a "
            "sketch of it is stored.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    reference_time: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="The column of its rows' times, as `headrace drift reference set --time` takes.",
        ),
    ] = "",
    convert: Annotated[
        ConvertTo | None,
        typer.Option(
            help="Convert it first, and compare the answers with its own library's; models of "
            "XGBoost, LightGBM, CatBoost, scikit-learn, PyTorch, TensorFlow and TFLite.",
            show_default="no",
        ),
    ] = None,
    convert_data: Annotated[
        Path | None,
        typer.Option(
            help="Rows (.parquet, .csv, .npz, .npy, .json) to compare with, besides those that are "
            "made up.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    convert_tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="The largest relative difference of an answer that is taken for rounding.",
            show_default="1e-4 for one that computes in FP32, 1e-6 in FP64",
        ),
    ] = None,
    convert_max_changed: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The share of rows that may get another class.")
    ] = 0.001,
    convert_no_missing: Annotated[
        bool,
        typer.Option(
            "--convert-no-missing",
            help="No row ever lacks a value: do not compare answers to missing ones.",
        ),
    ] = False,
    allow_code: AllowCode = False,
    artifacts: Artifacts = "",
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """Store a model as the next version of NAME; the same content gives the same version.

    The format is told by the content. The model is loaded and run once, in a process that sees
    little, and what was found is shown: inputs and outputs, whether rows are batched, the time of
    one inference. One that runs its author's code, as a Python model does, needs --allow-code.

    For example:

        headrace models push fraud model.onnx --source git:4f442bb

        headrace models push fraud model.onnx --reference train.csv

        headrace models push fraud model.ubj --convert onnx --convert-data test.parquet

        headrace models push fraud model.onnx --server http://gpu-box:8080

        headrace models push fraud model.onnx --artifacts s3://models/prod
    """
    if reference_time and reference is None:
        msg = "it names a column of the training data; give that with --reference"
        raise typer.BadParameter(msg, param_hint="--reference-time")
    target = plane.target()
    store = model_store(target, artifacts=artifacts)
    given = Pushed(path=path, runtime=runtime, source=source, allow_code=allow_code)
    wish = Wish(
        data=convert_data,
        tolerance=convert_tolerance,
        max_changed_ratio=convert_max_changed,
        no_missing=convert_no_missing,
    )
    with nullcontext(given) if convert is None else converted(given, wish, plane.home) as pushed:
        text = f"checking and storing {path}"
        with nullcontext() if target.is_remote else progress(text):  # an upload shows its own
            version = store.push(name, pushed)
    if reference is not None:
        from headrace.cli.drift import sketch

        store.set_reference(
            version, sketch(reference, version.signature, time_column=reference_time)
        )
    if json:
        write_json(_document(version, store.signatures([version])[version.reference]))
        return
    _show_found(version)
    if convert is not None:
        say(difference_text(pushed.metadata))
    say(f"{version.reference} is stored; serve it with `model: {version.reference}`")


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Only this model.", show_default="all")] = None,
    *,
    artifacts: Artifacts = "",
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """List the stored versions; a damaged one is named on standard error."""
    store = model_store(plane.target(), artifacts=artifacts)
    versions, problems = store.list(name)
    signatures = store.signatures(versions)
    for problem in problems:
        say(f"damaged: {problem}")
    columns: dict[str, Column] = {
        "model": lambda version: version.reference,
        "runtime": lambda version: (
            f"{version.runtime}{' (runs code)' if version.executes_code else ''}"
        ),
        "batched": lambda version: "yes" if version.signature.batched else "no",
        "size": lambda version: bytes_text(version.size_bytes),
        "signatures": lambda version: str(len(signatures[version.reference]) or "-"),
        "pushed": lambda version: f"{version.created_at:%Y-%m-%d %H:%M}",
        "by": lambda version: version.created_by,
        "digest": lambda version: version.digest[:19],
    }
    document = [_document(version, signatures[version.reference]) for version in versions]
    empty = "no models yet; `headrace models push NAME PATH` stores one"
    show_document(document, versions, columns, json=json, empty=empty)


@app.command()
def show(
    reference: Annotated[str, typer.Argument(metavar="NAME[:VERSION]", help="Which version.")],
    *,
    artifacts: Artifacts = "",
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """Show a version's inputs, outputs and origin; without a number, the newest."""
    store = model_store(plane.target(), artifacts=artifacts)
    version = store.get(reference)
    signatures = store.signatures([version])[version.reference]
    if json:
        write_json(_document(version, signatures))
    else:
        _show(version, signatures)


@app.command()
def rm(
    reference: _Reference,
    *,
    state_url: StateUrl = "",
    artifacts: Artifacts = "",
    plane: ControlPlane,
) -> None:
    """Remove a version; refused while an endpoint uses it."""
    name, _, number = reference.partition(":")
    if not number:
        msg = f"'{reference}' names no version; write it as {name}:VERSION"
        raise typer.BadParameter(msg, param_hint="NAME:VERSION")
    store = model_store(plane.target(), state_url=state_url, artifacts=artifacts)
    store.remove(name, number)
    say(f"{reference} is removed; `headrace models gc` frees its space")


@app.command()
def gc(
    *,
    grace_hours: Annotated[
        float,
        typer.Option(
            min=1.0,
            help="How long a shared store keeps content after it was pushed last; a server "
            "elsewhere keeps it 24 hours.",
        ),
    ] = 24.0,
    artifacts: Artifacts = "",
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """Delete stored content that no version refers to.

    What a shared store (--artifacts) holds is kept for a while: another host may be about to push
    a version of it.
    """
    store = model_store(plane.target(), artifacts=artifacts)
    removed = store.gc(grace_hours * 3600)
    if json:
        write_json(removed)
        return
    count = len(removed["artifacts"]) + removed["temporary"]
    say(f"deleted {count} artifacts, freed {bytes_text(removed['freed_bytes'])}")


def _document(
    version: "ModelVersion", signatures: "tuple[VersionSignature, ...]"
) -> dict[str, Any]:
    """A version as JSON."""
    import msgspec

    return {
        **msgspec.to_builtins(version),
        "reference": version.reference,
        "runs_code": version.executes_code,
        "signatures": msgspec.to_builtins(signatures),
    }


def _show(version: "ModelVersion", signatures: "tuple[VersionSignature, ...]") -> None:
    from headrace.cli.output import show

    rows = [
        ("model", version.reference),
        ("runtime", version.runtime),
        ("runs code", "yes: its author's, when it is loaded" if version.executes_code else "no"),
        ("file", version.filename),
        ("size", bytes_text(version.size_bytes)),
        ("digest", version.digest),
        *(("signed", signed_text(signature)) for signature in signatures),
        ("pushed", f"{version.created_at:%Y-%m-%d %H:%M:%S} UTC by {version.created_by or '?'}"),
        ("source", version.source),
        *lineage_rows(version.metadata),
        *found_rows(version),
    ]
    show(table(rows))


def _show_found(version: "ModelVersion") -> None:
    """What a push found out, as the rows of `show` that matter then."""
    from headrace.cli.output import show

    rows = [
        ("model", version.reference),
        ("runtime", version.runtime + (" (runs code)" if version.executes_code else "")),
        ("size", bytes_text(version.size_bytes)),
        ("digest", version.digest),
        *lineage_rows(version.metadata),
        *found_rows(version),
    ]
    show(table(rows))
