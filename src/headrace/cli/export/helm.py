"""`headrace export helm`: the Helm chart with values for a spec.

A record in the folder lists the exported files. Exported files that are no longer needed are
removed; files that a user changed or added are never lost: they stay, or are renamed to NAME.orig
if their path is needed.
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import contextlib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.options import Home, file_option, option, setting
from headrace.cli.base.output import say
from headrace.cli.export.options import AllowLoss, check_artifacts
from headrace.core import NotFoundError
from headrace.core.files import move

if TYPE_CHECKING:
    from headrace.control.model.desired import DesiredEndpoint

RECORD: Final = ".headrace-export.json"
_ASIDE: Final = ".orig"


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """Digests (SHA-256) of the exported files, by paths within the folder."""

    files: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """Existing files that an export removes, keeps or renames."""

    removed: tuple[str, ...]
    """Files that are unchanged since an earlier export, and not part of this one."""
    edited: tuple[str, ...]
    """Files that were changed since an earlier export, and are not part of this one: they stay."""
    moved: tuple[str, ...]
    """Files that no export wrote, or that were changed since: renamed, as this export writes their
    paths."""


def plan(
    recorded: Mapping[str, str], there: Mapping[str, str], files: Mapping[str, str]
) -> FilePlan:
    """Return what happens to the files in a folder; all arguments are digests by path.

    Args:
        recorded: Files of the previous export; empty if unknown.
        there: Files in the folder.
        files: Files to write.
    """
    vanished = sorted((recorded.keys() - files.keys()) & there.keys())
    removed = tuple(path for path in vanished if there[path] == recorded[path])
    moved = (
        path
        for path in sorted(files.keys() & there.keys())
        if there[path] not in (files[path], recorded.get(path))
    )
    edited = tuple(path for path in vanished if path not in removed)
    return FilePlan(removed=removed, edited=edited, moved=tuple(moved))


def write_over(folder: Path, files: Mapping[str, bytes]) -> list[str]:
    """Write `files` to `folder`, which may have an earlier export; return notes for the user.

    Args:
        files: Contents by path within the folder. Other files there are left alone.
    """
    recorded = _recorded(folder)
    digests = {path: _digest(content) for path, content in files.items()}
    there = {
        path: _digest((folder / path).read_bytes())
        for path in {*(recorded or {}), *files}
        if (folder / path).is_file()
    }
    todo = plan(recorded or {}, there, digests)
    notes = [
        (
            f"{path} was not written by an export, or was changed: renamed to "
            f"{_move_aside(folder, path)}"
        )
        for path in todo.moved
    ]
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    for path in todo.removed:
        (folder / path).unlink()
        for parent in PurePosixPath(path).parents[:-1]:
            if any((folder / parent).iterdir()):
                break
            (folder / parent).rmdir()
    if todo.removed:
        notes.append(f"removed, not part of this export: {', '.join(todo.removed)}")
    notes += [
        f"{path} is not part of this export and was changed: kept; delete it if it is not needed"
        for path in todo.edited
    ]
    if recorded is None:
        # Unknown templates: Helm would create objects from them.
        there_now = {
            path.relative_to(folder).as_posix()
            for path in folder.glob("templates/**/*")
            if path.is_file() and path.suffix != _ASIDE
        }
        if others := ", ".join(sorted(there_now - files.keys())):
            notes.append(
                f"not of this export, and left alone: {others}; delete what you did not add"
            )
    (folder / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(_Record(files=digests))))
    return notes


def _recorded(folder: Path) -> dict[str, str] | None:
    """Return the record of the previous export; None without one."""
    try:
        text = (folder / RECORD).read_bytes()
    except FileNotFoundError:
        return None
    try:
        record = msgspec.json.decode(text, type=_Record)
    except msgspec.MsgspecError:
        return None
    # The record may have been written by another user: no file outside the folder is changed.
    root = folder.resolve()
    files = {}
    for path, digest in record.files.items():
        parts = PurePosixPath(path)
        is_odd = not path or "\0" in path or parts.is_absolute() or ".." in parts.parts
        if not is_odd and (folder / path).parent.resolve().is_relative_to(root):
            files[path] = digest
    return files


def _move_aside(folder: Path, path: str) -> str:
    """Rename a file to an unused name; return that name."""
    number = 1
    while (aside := folder / f"{path}{f'.{number}' if number > 1 else ''}{_ASIDE}").exists():
        number += 1
    move(folder / path, aside)
    return aside.relative_to(folder).as_posix()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class ChartMode(StrEnum):
    """Creator of the objects of versions."""

    DRIVER = "driver"
    STATIC = "static"


class Jobs(StrEnum):
    """Component that runs jobs."""

    CRONJOBS = "cronjobs"
    CONTROL = "control"


class Streams(StrEnum):
    """Component that runs streams."""

    DEPLOYMENTS = "deployments"
    CONTROL = "control"


def helm(
    spec_file: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", exists=True, dir_okay=False, hidden=True)
    ] = None,
    *,
    file: Annotated[
        Path | None,
        file_option(
            "The spec file; without it, the chart with its default values.", "--file", "-f"
        ),
    ] = None,
    output: Annotated[
        Path,
        option(
            "Output directory for the chart; created if it does not exist.",
            "--output",
            "-o",
            file_okay=False,
        ),
    ],
    mode: Annotated[
        ChartMode,
        option(
            "driver: the control plane creates the objects of versions; static: the chart does, "
            "for clusters without a control plane."
        ),
    ] = ChartMode.DRIVER,
    artifacts: Annotated[
        str, setting("Artifact store that pods fetch models from.", metavar="URL")
    ] = "",
    jobs: Annotated[
        Jobs, option("cronjobs, or control: the control plane runs jobs.")
    ] = Jobs.CRONJOBS,
    streams: Annotated[
        Streams, option("deployments, or control: the control plane runs streams.")
    ] = Streams.DEPLOYMENTS,
    mount: Annotated[
        list[str] | None,
        option(
            "Secret, ConfigMap or claim that contains the spec's files at that path; may be "
            "repeated.",
            metavar="KIND:NAME=/PATH",
        ),
    ] = None,
    lag_records: Annotated[
        int | None,
        option(
            "Records of lag per stream worker before KEDA adds a worker.",
            min=1,
            shown="ten batches",
        ),
    ] = None,
    nats_monitoring: Annotated[
        str, option("URL where KEDA reads NATS monitoring data.", metavar="HOST:PORT")
    ] = "",
    keda_authentication: Annotated[
        str, option("TriggerAuthentication with which KEDA connects to brokers.", metavar="NAME")
    ] = "",
    allow_loss: AllowLoss = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Export the Helm chart with values for a spec.

    Settings that the chart cannot express are reported as errors with their location in the spec.
    Models of jobs and streams, and with --mode static of endpoints, are read from the registry of
    --home.

    For example:

        headrace export helm -f headrace.yaml -o chart --artifacts s3://models/prod

        helm upgrade --install headrace ./chart -n models --set agentTls.certManager.enabled=true
    """
    from headrace.deploy.helm_spec import HelmExport, HelmMode, HelmOptions, Mount
    from headrace.deploy.helm_values import chart_folder, chart_with, check_folder

    if file is not None and spec_file is not None:
        raise typer.BadParameter("pass the spec file only once", param_hint="--file")
    file = file or spec_file
    check_artifacts(artifacts)
    check_folder(output)
    options = HelmOptions(
        mode=HelmMode(mode),
        artifacts=artifacts,
        mounts=tuple(map(Mount.parsed, mount or ())),
        separate_jobs=jobs is Jobs.CRONJOBS,
        separate_streams=streams is Streams.DEPLOYMENTS,
        lag_records=lag_records,
        nats_monitoring=nats_monitoring,
        keda_authentication=keda_authentication,
        allowed=tuple(allow_loss or ()),
    )
    if file is None:
        export = HelmExport(
            values={"artifacts": {"url": artifacts}, "workloads": {"mode": mode.value}}
        )
    else:
        from headrace.cli.base.spec_file import read_spec
        from headrace.cli.export.facts import pinned_endpoints, serves_file
        from headrace.core.spec.parse import is_model_path
        from headrace.deploy.helm_spec import ArtifactFile, worker_models
        from headrace.deploy.helm_values import helm_values
        from headrace.registry import Registry

        spec = read_spec(file)
        stored: dict[str, ArtifactFile] = {}
        registry = Registry(home)
        for _, reference in worker_models(spec):
            if not is_model_path(reference):
                with contextlib.suppress(NotFoundError):  # reported later with its location
                    version = registry.get(reference)
                    stored[reference] = ArtifactFile(
                        digest=version.digest, filename=version.filename
                    )
        endpoints: tuple[DesiredEndpoint, ...] = ()
        if options.mode is HelmMode.STATIC and not any(map(serves_file, spec.endpoints)):
            endpoints = pinned_endpoints(spec, home)
        export = helm_values(spec, options, stored=stored, endpoints=endpoints)
    notes = write_over(output, chart_with(export.values, chart_folder()))
    say(f"{output}: the chart; look at its values.yaml")
    for note in (*notes, *export.notes):
        say(f"  {note}")
