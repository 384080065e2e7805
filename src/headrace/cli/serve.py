"""`headrace serve`: one replica alone on TCP, in this process."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import (
    DEFAULT_HOME,
    NULLS_OPTION,
    AllowCode,
    Host,
    LogFormat,
    LogFormatOption,
    LogLevel,
    RowsIndependent,
    UnreadHome,
    check_log_level,
    setting,
)
from headrace.core import (
    BatchingSpec,
    CodeNotAllowedError,
    InvalidArgumentError,
    NotFoundError,
    Nulls,
    ReplicaSettings,
)
from headrace.core.devices import Device

if TYPE_CHECKING:
    from headrace.registry import ModelVersion

HTTP_PORT = 8000
METRICS_PORT = 8002
_NAMED = 8
"""How many files a message names."""


def serve(
    model: Annotated[
        str, typer.Argument(help="A model file or directory, or NAME[:VERSION] of the registry.")
    ],
    *,
    name: Annotated[
        str | None, typer.Option(help="What callers call it.", show_default="the file's name")
    ] = None,
    host: Host = None,
    http_port: Annotated[
        int,
        typer.Option(
            "--port", "--http-port", envvar="HEADRACE_HTTP_PORT", min=0, max=65535, help="For HTTP."
        ),
    ] = HTTP_PORT,
    grpc_port: Annotated[
        int | None,
        setting("grpc-port", "Also serve gRPC, streaming included.", shown="off"),
    ] = None,
    metrics_port: Annotated[
        int,
        setting("metrics-port", "For Prometheus; the HTTP port serves /metrics too."),
    ] = METRICS_PORT,
    max_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Rows.", show_default="32")
    ] = None,
    rows_independent: RowsIndependent = False,
    nulls: Annotated[Nulls, NULLS_OPTION] = Nulls.NAN,
    device: Annotated[
        Device,
        typer.Option(
            envvar="HEADRACE_DEVICE",
            help="What has to run the model; only `auto` falls back to the CPU.",
        ),
    ] = Device.AUTO,
    allow_code: AllowCode = False,
    log_format: LogFormatOption = None,
    log_level: LogLevel = "info",
    home: UnreadHome = DEFAULT_HOME,
) -> None:
    """Serve one model alone, without gateway and supervision: for containers, or in Triton's place.

    It asks nobody for a key.

    For example:

        headrace serve model.onnx --host 0.0.0.0

        headrace serve fraud:3 --grpc-port 8001
    """
    from msgspec import UNSET
    from msgspec.structs import replace

    from headrace.observe import configure_logging
    from headrace.serving.replica import run

    batching = BatchingSpec(
        max_batch_size=max_batch_size or BatchingSpec().max_batch_size,
        rows_independent=rows_independent or UNSET,
    )
    settings = replica_settings(
        model,
        name=name,
        home=home,
        host=host or "127.0.0.1",
        port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        batching=batching,
        log_format=str(log_format or LogFormat.TEXT),
        device=device,
    )
    if nulls is Nulls.ERROR:
        settings = replace(settings, nulls=nulls)
    if not allow_code:
        _refuse_code(model, settings)
    configure_logging(
        log_format="json" if log_format is LogFormat.JSON else "text",
        level=check_log_level(log_level),
    )
    raise typer.Exit(run(settings))


def _refuse_code(model: str, settings: "ReplicaSettings") -> None:
    """Raise CodeNotAllowedError if loading the model would run code of its author's."""
    from headrace.runtimes import code_of_model, detect_runtime, get_runtime, runs_code

    path = Path(settings.path)
    runtime = get_runtime(settings.runtime) if settings.runtime else detect_runtime(path)
    if runs_code(runtime, path):
        raise CodeNotAllowedError(model, runtime.name, code_of_model(runtime, path))


def replica_settings(
    model: str,
    *,
    name: str | None,
    home: Path,
    host: str,
    port: int,
    grpc_port: int | None,
    metrics_port: int,
    batching: "BatchingSpec",
    log_format: str,
    device: Device = Device.AUTO,
) -> "ReplicaSettings":
    """What the replica is told; `model` is a path, or a reference if no such path exists."""
    from headrace.cli.up.start import name_from

    path = Path(model)
    version, runtime = "1", ""
    labels: dict[str, list[str]] = {}
    if not path.exists():
        stored, path = _stored(model, home)
        version, runtime = stored.version, stored.runtime
        name = name or stored.name
        labels = {output: list(names) for output, names in stored.labels.items()}
    return ReplicaSettings(
        model_name=name or name_from(path),
        model_version=version,
        path=str(path.absolute()),
        runtime=runtime,
        host=host,
        port=port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        batching=batching,
        log_format=log_format,
        labels=labels,
        device=device,
    )


def _stored(reference: str, home: Path) -> "tuple[ModelVersion, Path]":
    """A version of the registry, checked against its digest, and where it lies."""
    from headrace.cli.models.store import stored_model

    if "/" in reference:  # no name of the registry has one
        raise NotFoundError(_not_there(Path(reference)))
    try:
        return stored_model(reference, home)
    except (NotFoundError, InvalidArgumentError) as error:
        msg = f"there is no file or directory '{reference}', and {error}"
        raise NotFoundError(msg) from None


def _not_there(path: Path) -> str:
    """That there is no such path, and what is there in its place."""
    folder = path.parent
    try:
        names = sorted(one.name for one in folder.iterdir())
    except FileNotFoundError:
        seen = f"there is no directory '{folder}' either"
    except OSError as error:
        seen = f"'{folder}': {error.strerror}"
    else:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        seen = f"'{folder}' has {', '.join(names[:_NAMED])}{more}" if names else _empty(folder)
    return f"there is no file or directory '{path}'; {seen}"


def _empty(folder: Path) -> str:
    return f"'{folder}' is empty: a container sees what is mounted, as by `-v \"$PWD:{folder}:ro\"`"
