"""Which model does a job run? A path, a version of the registry, or what an endpoint serves.

An endpoint gives its features, class names and model as its replicas get them, so that a row has
the same answer in a job.
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import contextlib
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.core import (
    CodeNotAllowedError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    ReplicaSettings,
)
from headrace.jobs.messages import JobModel

if TYPE_CHECKING:
    from headrace.core.spec import SystemSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What runs a job: what is written down of it, and how it is loaded.

    `network`: it may open connections, as the endpoint's replicas may.
    """

    told: JobModel
    settings: ReplicaSettings
    network: bool = False


def choose_model(
    target: str,
    *,
    file: Path | None,
    server: str | None,
    home: Path,
    runtime: str,
    allow_code: bool,
    rows_independent: bool = False,
) -> Chosen:
    """What `target` names: an endpoint of `file`, else a path, an endpoint that runs, or a version.

    `NAME@VERSION` is `NAME:VERSION`.

    Args:
        rows_independent: Declared of a path or a version; an endpoint's spec says it itself.

    Raises:
        NotFoundError: There is none of these.
        CodeNotAllowedError: It would run its author's code.
    """
    if not target:
        raise InvalidArgumentError("no model is named: --model NAME[:VERSION], PATH or ENDPOINT")
    path = Path(target)
    name = target if path.exists() else target.replace("@", ":")
    if file is not None:
        from headrace.cli.spec import read_spec

        return _of_endpoint(name, read_spec(file), str(file), home=home, allow_code=allow_code)
    if path.exists():
        chosen = _of_path(path, runtime=runtime, allow_code=allow_code)
        return _declared(chosen) if rows_independent else chosen
    running = _running_spec(server, home)
    if running is not None and any(one.name == name for one in running.endpoints):
        return _of_endpoint(name, running, "what runs", home=home, allow_code=allow_code)
    chosen = _of_version(name, home=home, allow_code=allow_code)
    return _declared(chosen) if rows_independent else chosen


def _declared(chosen: Chosen) -> Chosen:
    """`chosen`, of whose rows the caller declares that they do not influence each other."""
    batching = msgspec.structs.replace(chosen.settings.batching, rows_independent=True)
    return replace(chosen, settings=msgspec.structs.replace(chosen.settings, batching=batching))


def _of_path(path: Path, *, runtime: str, allow_code: bool) -> Chosen:
    from headrace.registry import read_content
    from headrace.runtimes import detect_runtime, get_runtime
    from headrace.runtimes.plugins import code_of_model, runs_code

    found = get_runtime(runtime) if runtime else detect_runtime(path)
    if runs_code(found, path) and not allow_code:
        raise CodeNotAllowedError(str(path), found.name, code_of_model(found, path))
    digest = str(read_content(path).digest)
    settings = ReplicaSettings(
        model_name=path.stem,
        model_version="",
        path=str(path.absolute()),
        runtime=found.name,
        sha256=digest if path.is_file() else "",
    )
    # A file has no version: what tells one from another is its content.
    return _chosen(str(path.absolute()), digest[:19], digest, settings)


def _of_version(name: str, *, home: Path, allow_code: bool) -> Chosen:
    from headrace.cli.home_registry import stored_model

    try:
        version, path = stored_model(name, home)
    except (NotFoundError, InvalidArgumentError) as error:
        msg = f"there is no file, directory or running endpoint '{name}', and {error}"
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
    name: str, spec: "SystemSpec", where: str, *, home: Path, allow_code: bool
) -> Chosen:
    """The version with the most of the endpoint's requests, or the one that `NAME:VERSION` names.

    Raises:
        NotFoundError: There is no such endpoint or version.
        SpecError: Its model cannot be served.
    """
    from headrace.control.resolve import Resolver
    from headrace.control.sandboxed import SandboxedInspector
    from headrace.registry import Registry

    endpoint, _, version = name.partition(":")
    lines = [one for one in spec.endpoints if one.name == endpoint]
    if not lines:
        known = ", ".join(one.name for one in spec.endpoints) or "none"
        raise NotFoundError(f"{where} has no endpoint '{endpoint}'; there are: {known}")
    with contextlib.closing(SandboxedInspector.of_home(home)) as inspect:
        registry = Registry(home, inspect)
        resolver = Resolver(
            registry=registry,
            inspect=inspect,
            spec=spec.model_copy(update={"endpoints": tuple(lines)}),
            max_body_bytes=1,
            allow_code=allow_code,
        )
        (desired,) = resolver.resolve()
    arms = [arm for arm in desired.arms if not version or arm.revision.version == version]
    if not arms:
        known = ", ".join(arm.revision.version for arm in desired.arms)
        raise NotFoundError(f"endpoint '{endpoint}' has no version {version}; there are: {known}")
    revision = max(arms, key=lambda arm: arm.weight).revision
    if revision.upstream is not None:
        msg = f"endpoint '{endpoint}' is someone else's server ({revision.model}): name a model"
        raise InvalidArgumentError(msg)
    if ":" in revision.model and not Path(revision.model).exists():
        digest = str(registry.get(revision.model).digest)
    else:
        from headrace.registry import read_content

        digest = str(read_content(Path(revision.settings.path)).digest)
    settings = msgspec.structs.replace(revision.settings, max_body_bytes=0)
    return replace(
        _chosen(f"{endpoint}={revision.model}", revision.version, digest, settings),
        network=revision.network,
    )


def _running_spec(server: str | None, home: Path) -> "SystemSpec | None":
    """What runs on the home, or at the server; None if nothing does."""
    from headrace.cli.connection import find_target
    from headrace.core.spec import parse_spec

    try:
        document: Any = find_target(server, home).management().get("/api/v1/spec")["spec"]
    except HeadraceError:
        return None
    return parse_spec(document, in_force=document) if document else None


def _chosen(reference: str, version: str, digest: str, settings: ReplicaSettings) -> Chosen:
    features, labels = "", ""
    if not isinstance(settings.features, msgspec.UnsetType):
        made = settings.features
        features = _digest((made.service, made.online_store, made.inputs))
    if settings.labels:
        labels = _digest(settings.labels)
    told = JobModel(
        reference=reference,
        version=version,
        digest=digest,
        runtime=settings.runtime,
        features=features,
        labels=labels,
    )
    return Chosen(told=told, settings=msgspec.structs.replace(settings, model_version=version))


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()[:32]
