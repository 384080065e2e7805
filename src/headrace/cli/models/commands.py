"""`headrace models`: the registry of model versions."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.hub_folders import is_pushed_hub_folder, push_model
from headrace.cli.base.model_store import model_store
from headrace.cli.base.offline import HomeModels, Pushed
from headrace.cli.base.options import (
    AllowCode,
    Artifacts,
    CommandGroup,
    ControlPlaneOptions,
    Json,
    StateUrl,
    argument,
    file_option,
    option,
)
from headrace.cli.base.output import (
    Column,
    progress,
    say,
    show_answer,
    show_document,
    table,
    write_json,
)
from headrace.cli.models import files
from headrace.cli.models.files import (
    ConversionOptions,
    converted,
    difference_text,
    numbered,
    signed_text,
)
from headrace.core.text import bytes_text, duration_text
from headrace.registry import ModelVersion, VersionSignature

app = CommandGroup(help="Manage model versions: push, list, show, fetch, sign, rm, gc.")
app.command("fetch")(files.fetch)
app.command("keygen")(files.keygen)
app.command("sign")(files.sign)
app.command("verify")(files.verify)


@app.command()
def push(
    name: Annotated[str, argument("The model's name.")],
    path: Annotated[
        str, argument("A model file or directory, or a URI.", metavar="PATH|URI", shown=False)
    ],
    *,
    runtime: Annotated[
        str, option("onnx, xgboost, python and so on.", shown="detected from the file")
    ] = "",
    source: Annotated[str, option("Origin of the model: a commit, a run, a URL.")] = "",
    reference: Annotated[
        Path | None,
        file_option(
            "Training data (.csv, .parquet, .npz) as drift reference; only bins and counts are "
            "stored."
        ),
    ] = None,
    reference_time: Annotated[
        str,
        option(
            "Timestamp column of the training data, as for `headrace drift reference set --time`.",
            metavar="COLUMN",
        ),
    ] = "",
    conversion: ConversionOptions,
    allow_code: AllowCode = False,
    artifacts: Artifacts = "",
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Store a model as the next version of NAME; the same content gives the same version.

    The format is detected from the content. The model is loaded and run once in a sandbox, and the
    command shows inputs, outputs, batching support and the time of one inference. Formats that
    execute code, such as Python models, need --allow-code. The weights of a Hugging Face folder
    are exported to ONNX, and PyTorch runs them if that fails; with --convert onnx it must succeed.

    A URI (s3://, gs://, az://, https://, file://, hf://, oci://, models:/ and runs:/ of MLflow) is
    downloaded here first; an interrupted download continues. `#sha256=HEX` at its end pins the
    content.

    For example:

        headrace models push fraud model.onnx --source git:4f442bb

        headrace models push fraud model.onnx --reference train.csv

        headrace models push fraud model.ubj --convert onnx --convert-data test.parquet

        headrace models push fraud model.onnx --server http://gpu-box:8080

        headrace models push fraud model.onnx --artifacts s3://models/prod

        headrace models push sentiment hf://distilbert/distilbert-base-uncased-finetuned-sst-2-english
    """
    from headrace.cli.base.output import show
    from headrace.cli.base.sources import RemoteModel, stored_from
    from headrace.core.model_uri import is_model_uri, parse_model_uri

    if reference_time and reference is None:
        msg = "names a column of the training data; pass that with --reference"
        raise typer.BadParameter(msg, param_hint="--reference-time")
    target = plane.target()
    store = model_store(target, artifacts=artifacts)
    summary = ""
    with ExitStack() as stack:
        if is_model_uri(path) and conversion.convert is None:
            document = stored_from(
                path,
                name,
                store,
                home=plane.home,
                runtime=runtime,
                allow_code=allow_code,
                source=source,
            )
        else:
            if is_model_uri(path):
                remote = RemoteModel(parse_model_uri(path), plane.home)
                fetched = remote.fetched(runtime=runtime, allow_code=allow_code, source=source)
                pushed = stack.enter_context(fetched)
            elif not Path(path).exists():
                msg = f"no file or directory '{path}'"
                raise typer.BadParameter(msg, param_hint="PATH")
            else:
                local = Path(path)
                pushed = Pushed(path=local, runtime=runtime, source=source, allow_code=allow_code)
            is_hub_folder = is_pushed_hub_folder(pushed)
            if conversion.convert is not None and not is_hub_folder:
                pushed = stack.enter_context(converted(pushed, conversion, plane.home))
                summary = difference_text(pushed.metadata)
            if isinstance(store, HomeModels) and not is_hub_folder:
                # An upload shows its own progress.
                stack.enter_context(progress(f"checking and storing {path}"))
            must_export = conversion.convert is not None
            document = push_model(store, name, pushed, plane.home, must_export=must_export)
    version = msgspec.convert(document, ModelVersion)
    if reference is not None:
        from headrace.cli.base.sketch import sketch

        drift_reference = sketch(reference, version.signature, time_column=reference_time)
        store.set_reference(version, drift_reference)
    if json:
        write_json(document)
        return
    show(table(_rows(document)))
    if summary:
        say(summary)
    flags = "" if plane.home == DEFAULT_HOME else f" --home {plane.home}"
    flags += " --allow-code" if version.executes_code else ""
    way = (
        f"`model: {version.reference}` in its spec"
        if target.is_remote
        else f"`headrace up {version.reference}{flags}`"
    )
    say(f"{version.reference} is stored; serve it with {way}")


@app.command("list")
def list_(
    name: Annotated[str | None, argument("Only this model.", shown="all")] = None,
    *,
    artifacts: Artifacts = "",
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """List stored versions; damaged versions are reported on standard error."""
    listed = model_store(plane.target(), artifacts=artifacts).list(name)
    for problem in listed["problems"]:
        say(f"damaged: {problem}")
    columns: dict[str, Column] = {
        "model": "reference",
        "runtime": lambda version: (
            f"{version['runtime']}{' (runs code)' if version['runs_code'] else ''}"
        ),
        "batched": lambda version: "yes" if version["signature"].get("batched") else "no",
        "size": lambda version: bytes_text(version["size_bytes"]),
        "signatures": lambda version: str(len(version["signatures"]) or "-"),
        "pushed": lambda version: version["created_at"][:16].replace("T", " "),
        "by": lambda version: version["created_by"],
        "digest": lambda version: version["digest"][:19],
    }
    empty = "no models yet; store one with `headrace models push NAME PATH`"
    show_document(listed["models"], listed["models"], columns, json=json, empty=empty)


@app.command()
def show(
    reference: Annotated[str, argument("Model version.", metavar="NAME[:VERSION]")],
    *,
    artifacts: Artifacts = "",
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Show a version's inputs, outputs and origin; without a number, the newest."""
    from headrace.cli.base.output import show

    document = model_store(plane.target(), artifacts=artifacts).get(reference)
    if json:
        write_json(document)
    else:
        show(table(_rows(document)))


@app.command()
def rm(
    reference: Annotated[str, argument("Model version.", metavar="NAME:VERSION", shown=False)],
    *,
    state_url: StateUrl = "",
    artifacts: Artifacts = "",
    plane: ControlPlaneOptions,
) -> None:
    """Remove a version; fails while an endpoint uses it."""
    store = model_store(plane.target(), state_url=state_url, artifacts=artifacts)
    store.remove(*numbered(reference))
    say(f"{reference} is removed; `headrace models gc` frees its space")


@app.command()
def gc(
    *,
    grace_hours: Annotated[
        float,
        option(
            "Retention of unreferenced content in a shared store, since it was last pushed.",
            min=1.0,
        ),
    ] = 24.0,
    artifacts: Artifacts = "",
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Delete stored content that no version refers to.

    A shared store (--artifacts) keeps recent content, since another host may be about to push a
    version that uses it.
    """
    removed = model_store(plane.target(), artifacts=artifacts).gc(grace_hours * 3600)
    count = len(removed["artifacts"]) + removed["temporary"]
    line = f"deleted {count} artifacts, freed {bytes_text(removed['freed_bytes'])}"
    show_answer(removed, line, json=json)


def _rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Return facts of a version: its file, origin, tensors and first inference."""
    from headrace.observe.row_checks import report_of

    version = msgspec.convert(document, ModelVersion)
    signatures = msgspec.convert(document["signatures"], list[VersionSignature])
    signature, run = version.signature, version.first_run
    if not signature.batched:
        batched = f"no, {report_of(signature).text}"
    else:
        batched = f"yes: {signature.row_reason}" if signature.row_reason else "yes"
    if run is None:
        inference = "not tested"
    elif run.run_s is None:
        inference = f"fails on generated inputs: {run.error}"
    else:
        inference = f"about {duration_text(run.run_s)} for one row, on one CPU thread"
    tensors = []
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs:
            sizes = ", ".join("any" if size < 0 else str(size) for size in spec.shape)
            tensors.append((kind, f"{spec.name}  {spec.datatype}  [{sizes}]"))
    return [
        ("model", version.reference),
        ("runtime", version.runtime),
        ("runs code", "yes, when the model is loaded" if version.executes_code else "no"),
        ("file", version.filename),
        ("size", bytes_text(version.size_bytes)),
        ("digest", version.digest),
        *(("signed", signed_text(signature)) for signature in signatures),
        ("pushed", f"{version.created_at:%Y-%m-%d %H:%M:%S} UTC by {version.created_by or '?'}"),
        ("source", version.source),
        *((key.replace("_", " "), value) for key, value in version.metadata.items()),
        ("batched", batched),
        *tensors,
        ("inference", inference),
    ]
