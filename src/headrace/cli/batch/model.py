"""Model of a batch run and its sandbox.

The control plane starts runs this way. A first process, as this user, resolves the model and its
settings, and becomes a second one, which can read no other file of the home than the model's, and
runs it.

An endpoint determines features, class names and model as for its replicas, so that a row has the
same result in a job.
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import hashlib
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import urlsplit

import msgspec

from headrace.control.base.settings import resolve_url
from headrace.control.local.sandbox import KernelProbe, Sandbox, SandboxPurpose, files_of, launched
from headrace.core import (
    CodeNotAllowedError,
    FailedPreconditionError,
    FeatureLookup,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    ReplicaSettings,
)
from headrace.core.files import make_private_dir
from headrace.core.variables import filled_in, url_filled_in
from headrace.jobs.manifest import OutputFolder
from headrace.jobs.messages import JobModel
from headrace.jobs.prepare import check_run_id
from headrace.jobs.sources.source import is_url, list_files
from headrace.jobs.sources.sql import SQLITE, is_database
from headrace.registry import Registry, read_content

if TYPE_CHECKING:
    from headrace.cli.base.connection import CommandTarget
    from headrace.cli.batch.commands import RunOptions
    from headrace.core.spec.parse import SystemSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Model of a run and its settings."""

    job_model: JobModel
    """Description in the run's record."""
    settings: ReplicaSettings
    """Settings to load the model."""
    network: bool = False
    """Whether the model may open connections, as the endpoint's replicas may."""


def choose_model(options: "RunOptions", target: "CommandTarget") -> Chosen:
    """Return the model of `--model`: an endpoint of `--file`, a path, or a running one.

    `NAME@VERSION` is `NAME:VERSION`. An option declares the rows of a path or a version
    independent; for an endpoint, its spec does.

    Raises:
        NotFoundError: No such file, version or endpoint exists.
        CodeNotAllowedError: The model would run its author's code.
    """
    if not options.model:
        raise InvalidArgumentError("no model: pass --model NAME[:VERSION], PATH or ENDPOINT")
    home, allow_code = target.home, options.allow_code
    path = Path(options.model)
    name = options.model if path.exists() else options.model.replace("@", ":")
    if options.file is not None:
        from headrace.cli.base.spec_file import read_spec

        spec = read_spec(options.file)
        return _of_endpoint(name, spec, str(options.file), home=home, allow_code=allow_code)
    if path.exists():
        selected = _of_path(path, runtime=options.runtime, allow_code=allow_code)
    else:
        from headrace.core.spec.parse import parse_spec

        try:
            document: Any = target.management().get("/api/v1/spec")["spec"]
        except HeadraceError:
            document = None
        running = parse_spec(document, in_force=document) if document else None
        if running is not None and any(entry.name == name for entry in running.endpoints):
            return _of_endpoint(name, running, "what runs", home=home, allow_code=allow_code)
        selected = _of_version(name, home=home, allow_code=allow_code)
    if not options.rows_independent:
        return selected
    batching = msgspec.structs.replace(selected.settings.batching, rows_independent=True)
    return replace(selected, settings=msgspec.structs.replace(selected.settings, batching=batching))


def _of_path(path: Path, *, runtime: str, allow_code: bool) -> Chosen:
    from headrace.runtimes import detect_runtime, get_runtime
    from headrace.runtimes.plugins import code_of_model, runs_code

    plugin = get_runtime(runtime) if runtime else detect_runtime(path)
    if runs_code(plugin, path) and not allow_code:
        raise CodeNotAllowedError(str(path), plugin.name, code_of_model(plugin, path))
    digest = str(read_content(path).digest)
    settings = ReplicaSettings(
        model_name=path.stem,
        model_version="",
        path=str(path.absolute()),
        runtime=plugin.name,
        sha256=digest if path.is_file() else "",
    )
    # A file has no version: its content identifies it.
    return _chosen(str(path.absolute()), digest[:19], digest, settings)


def _of_version(name: str, *, home: Path, allow_code: bool) -> Chosen:
    from headrace.cli.base.offline import stored_model

    try:
        version, path = stored_model(name, home)
    except (NotFoundError, InvalidArgumentError) as error:
        msg = f"no file, directory or running endpoint '{name}', and {error}"
        raise NotFoundError(msg) from None
    if version.executes_code and not allow_code:
        raise CodeNotAllowedError(version.reference, version.runtime)
    settings = ReplicaSettings(
        model_name=version.name,
        model_version=version.version,
        path=str(path),
        runtime=version.runtime,
        sha256=str(version.digest).removeprefix("sha256:") if path.is_file() else "",
        labels={output: list(names) for output, names in version.labels.items()},
    )
    return _chosen(version.reference, version.version, str(version.digest), settings)


def _of_endpoint(
    name: str, spec: "SystemSpec", location: str, *, home: Path, allow_code: bool
) -> Chosen:
    """Return the version with the most requests, or that of `NAME:VERSION`.

    Raises:
        NotFoundError: The endpoint or version does not exist.
        SpecError: The endpoint's model cannot be served.
    """
    endpoint, _, version = name.partition(":")
    entries = tuple(entry for entry in spec.endpoints if entry.name == endpoint)
    if not entries:
        names = ", ".join(entry.name for entry in spec.endpoints) or "none"
        raise NotFoundError(f"{location} has no endpoint '{endpoint}'; there are: {names}")
    from headrace.cli.base.offline import resolver

    alone = spec.model_copy(update={"endpoints": entries})
    with resolver(alone, home, allow_code=allow_code) as pins:
        (desired,) = pins.resolve()
    arms = [arm for arm in desired.arms if not version or arm.revision.version == version]
    if not arms:
        names = ", ".join(arm.revision.version for arm in desired.arms)
        raise NotFoundError(f"endpoint '{endpoint}' has no version {version}; there are: {names}")
    revision = max(arms, key=lambda arm: arm.weight).revision
    if revision.upstream is not None:
        msg = (
            f"endpoint '{endpoint}' is an upstream that Headrace does not manage "
            f"({revision.model}); pass --model with a model instead"
        )
        raise InvalidArgumentError(msg)
    if ":" in revision.model and not Path(revision.model).exists():
        digest = str(Registry(home).get(revision.model).digest)
    else:
        digest = str(read_content(Path(revision.settings.path)).digest)
    settings = msgspec.structs.replace(revision.settings, max_body_bytes=0)
    selected = _chosen(f"{endpoint}={revision.model}", revision.version, digest, settings)
    return replace(selected, network=revision.network)


def _chosen(reference: str, version: str, digest: str, settings: ReplicaSettings) -> Chosen:
    def digest_of(value: object) -> str:
        return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()[:32]

    lookup, features = settings.features, ""
    if not isinstance(lookup, msgspec.UnsetType):
        features = digest_of((lookup.service, lookup.online_store, lookup.inputs))
    job_model = JobModel(
        reference=reference,
        version=version,
        digest=digest,
        runtime=settings.runtime,
        features=features,
        labels=digest_of(settings.labels) if settings.labels else "",
    )
    return Chosen(
        job_model=job_model, settings=msgspec.structs.replace(settings, model_version=version)
    )


_CHOSEN: Final = "chosen.json"
_LOCAL: Final = frozenset({"file", "local"})
_ALL_MAY_ENTER: Final = stat.S_IROTH | stat.S_IXOTH


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Files that a run reads."""

    folder: Path | None = None
    """Local directory of the files."""
    files: tuple[Path, ...] = ()
    """Local files."""
    network: bool = False
    """Whether the input is on another host."""


def inputs_of(source: str, environment: Mapping[str, str] | None = None) -> Inputs:
    """Return the inputs of `--input`: local files, or a network address.

    Raises:
        FailedPreconditionError: A variable that it names is not there.
        InvalidArgumentError: The files do not exist.
    """
    is_elsewhere = is_url(source) or is_database(source)
    fill_in = url_filled_in if is_elsewhere else filled_in
    whole = fill_in(source, description="the input", environment=environment)
    if whole.startswith(SQLITE):
        file = Path(whole.removeprefix(SQLITE)).absolute()
        return Inputs(folder=file.parent, files=(file,))
    if is_url(whole):
        parts = urlsplit(whole)
        if parts.scheme not in _LOCAL:
            return Inputs(network=True)
        whole = parts.path
    files = tuple(Path(name).absolute() for name in list_files(whole))
    folder = Path(whole).absolute()
    while has_magic(str(folder)):
        folder = folder.parent
    return Inputs(folder=folder, files=files)


def sandbox_user_obstacle(inputs: Inputs) -> str:
    """Return why only this user can read an input, not a user per run; empty if that can."""
    folder = inputs.folder
    for file in inputs.files:
        try:
            inner = [parent for parent in file.parents if folder and parent.is_relative_to(folder)]
            closed = [parent for parent in inner if ~parent.stat().st_mode & _ALL_MAY_ENTER]
            if not file.stat().st_mode & stat.S_IROTH:
                closed.append(file)
        except OSError as error:
            return f"{file} cannot be read: {error.strerror}"
        if closed:
            return f"other users cannot read {closed[-1]}"
        with file.open("rb") as opened:
            head = opened.read(20)
        if head.startswith(b"SQLite format 3\0") and head[18:] == b"\2\2":  # its format, 1.3.3
            return f"{file} is in WAL mode, which requires write access for readers"
    return ""


def exec_in_sandbox(
    options: "RunOptions", target: "CommandTarget", *, serial: int, workers: int
) -> NoReturn:
    """Replace this process by the sandboxed process that runs the model.

    Args:
        serial: Number of its user, if this process is root.

    Raises:
        HeadraceError: The process cannot be sandboxed.
        OSError: Folders cannot be created, or the process cannot be started.
    """
    from headrace.control.base.home import Home
    from headrace.control.jobs.process import report_name
    from headrace.control.local.online_stores import OnlineStores
    from headrace.core.confine import give_all
    from headrace.core.processes import python_module

    inputs = inputs_of(options.source)
    selected = choose_model(options, target)
    run_id = check_run_id(options.run_id)
    home = Home(target.home.resolve())
    sandbox = Sandbox(
        hide=(home.root, home.socket_dir()),
        reports=home.records,
        kernel_features=cache(lambda: KernelProbe().result()),
    )
    own = make_private_dir(home.job_run(run_id))
    chosen_file = own / _CHOSEN
    chosen_file.write_bytes(msgspec.json.encode(selected))
    chosen_file.chmod(0o644)  # its folder is private
    output = options.output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    OutputFolder(output).check_own()  # before its content belongs to another user
    keep = files_of(Path(selected.settings.path))
    features = selected.settings.features
    if isinstance(features, FeatureLookup):
        # Not closed: closing the last connection would remove files that readers need.
        store = OnlineStores(home.root, *sandbox.hide).prepare(
            resolve_url(features.online_store),
            for_others=sandbox.user(SandboxPurpose.JOB) is not None,
        )
        keep += [] if store is None else [store]
    spec = sandbox.spec(
        own=[own, output],
        keep=[*keep, *filter(None, [inputs.folder])],
        network=selected.network or inputs.network,
        serial=SandboxPurpose(serial),
        report=sandbox.report_of(report_name(run_id)),
    )
    spec["attached"] = True
    if spec["uid"] is not None:
        reason = _own_user_obstacle(output, spec["uid"]) or sandbox_user_obstacle(inputs)
        spec["whole"] = [str(output)]
        if reason:
            give_all(str(output), os.getuid(), os.getgid())
            message = (
                f"the job would run as user {spec['uid']}, and {reason}: let others read the input "
                "(`chmod -R o+rX`), or run headrace as another user than root"
            )
            raise FailedPreconditionError(message)
    processes = spec["limits"]["processes"]
    if processes is not None:
        spec["limits"]["processes"] = processes + 2 * workers
    os.environ["TMPDIR"] = str(own)
    arguments = [word for word in sys.argv[1:] if not word.startswith("--confined=")]
    command = launched(spec, python_module("headrace.cli", *arguments, f"--chosen={chosen_file}"))
    sys.stderr.flush()
    os.execv(command[0], command)  # noqa: S606  # what this is for


def _own_user_obstacle(output: Path, uid: int) -> str:
    """Return why a folder cannot belong to the user that writes it; empty if it can.

    Raises:
        FailedPreconditionError: The folder is a link, whose target must keep its owner.
    """
    if output.is_symlink():
        message = f"the output {output} is a symbolic link; pass the directory that it points to"
        raise FailedPreconditionError(message)
    try:
        os.chown(output, uid, uid, follow_symlinks=False)
    except OSError as error:
        return f"{output} cannot be given to user {uid}: {error.strerror}"
    return ""
