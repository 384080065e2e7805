"""Facts that are exported: a spec file or a running system, with facts of the registry."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import typer

from headrace.cli.connection import find_target
from headrace.core import HeadraceError, InvalidArgumentError
from headrace.deploy import Artifact, Observed, Share

if TYPE_CHECKING:
    from headrace.control.desired.state import DesiredEndpoint
    from headrace.core.spec import EndpointSpec, SystemSpec
    from headrace.deploy import Facts


def pinned_endpoints(spec: "SystemSpec", home: Path) -> "tuple[DesiredEndpoint, ...]":
    """The endpoints of `spec`, as the registry of `home` pins them.

    Raises:
        SpecError: With every model that is missing, damaged or cannot be served.
    """
    from headrace.control.desired.resolve import Resolver
    from headrace.control.sandboxed.run import SandboxedInspector
    from headrace.registry import Registry

    with contextlib.closing(SandboxedInspector.of_home(home)) as inspect:
        resolver = Resolver(
            registry=Registry(home.resolve(), inspect),
            inspect=inspect,
            spec=spec.model_copy(update={"streams": ()}),
            max_body_bytes=spec.gateway.max_body_bytes,
        )
        return resolver.resolve()


def revisions_in(spec: "SystemSpec", home: Path) -> dict[tuple[str, str], str]:
    """Ids of the revisions that a control plane would run, by endpoint and version.

    Endpoints whose models are files, or are not in the registry, have none here: whoever serves
    them would push them first.
    """
    found = {}
    for endpoint in spec.endpoints:
        if _is_path(endpoint):
            continue
        alone = spec.model_copy(update={"endpoints": (endpoint,)})
        try:
            pinned = pinned_endpoints(alone, home)
        except HeadraceError:
            continue  # an export says of which Services it does not know the names
        for one in pinned:
            for arm in one.arms:
                if arm.revision.upstream is None:
                    found[str(one.name), arm.revision.version] = arm.revision.id
    return found


def has_files(spec: "SystemSpec") -> bool:
    """Whether an endpoint serves a file of this machine."""
    return any(map(_is_path, spec.endpoints))


def _is_path(endpoint: "EndpointSpec") -> bool:
    from headrace.core.spec import is_model_path

    return any(row.model and is_model_path(row.model) for row in endpoint.split())


_SHOWN: Final = 8
"""How much of a revision's id is in its objects' names."""


def running_system(
    server: str | None, home: Path
) -> "tuple[SystemSpec, dict[str, Observed], dict[str, Artifact]]":
    """The applied spec, what each endpoint does, and what is known of its models."""
    from headrace.cli.models.store import model_store
    from headrace.core.spec import parse_spec

    target = find_target(server, home)
    api, store = target.management(), model_store(target)
    spec = parse_spec(api.get("/api/v1/spec")["spec"])  # refuses secrets that were redacted
    views = api.get("/api/v1/endpoints")["endpoints"]
    observed = {view["name"]: observed_of(view) for view in views}
    artifacts = {}
    for model in {share.model for each in observed.values() for share in each.shares}:
        try:
            artifacts[model] = known(store.get(model))
        except HeadraceError:
            continue  # what an export has to know, it asks for by name
    return spec, observed, artifacts


def observed_of(view: Mapping[str, Any]) -> Observed:
    """What an endpoint does, as the management API tells it.

    A rollout's fresh copies of the old version (`baseline`) count as that version. A revision is
    known by its id where its replicas have the names of the driver's pods.
    """
    shares: dict[str, Share] = {}
    for revision in _wanted(view["status"]["revisions"]):
        version, weight = revision["version"], revision["weight"]
        before = shares.get(version)
        replicas = max(revision["desired_replicas"], 1)
        model = "" if "://" in revision["model"] else revision["model"]
        shares[version] = Share(
            version=version,
            weight=weight + (before.weight if before else 0),
            model=model,
            replicas=max(replicas, before.replicas) if before else replicas,
            revision=(before.revision if before else "") or _in_pods(revision),
        )
    mirror, percent = "", 0
    rollout = view.get("rollout")
    if rollout is not None and not rollout["over"] and rollout["to_version"] in shares:
        percent = rollout["mirror_percent"]
        mirror = rollout["to_version"] if percent else ""
    return Observed(shares=tuple(shares.values()), mirror=mirror, mirror_percent=percent)


def _in_pods(revision: Mapping[str, Any]) -> str:
    """The id of a revision that runs in pods; empty for processes of one machine, and of none."""
    known = str(revision.get("id", ""))
    # The driver calls a Deployment INSTANCE-ENDPOINT-VERSION-ID, and a cluster its pods after it.
    within = f"-{revision['version']}-{known[:_SHOWN]}-"
    is_seen = any(within in replica["name"] for replica in revision.get("replicas", ()))
    return known if known and is_seen else ""


def _wanted(revisions: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """Those that are to stay: others are listed until their last replica is gone."""
    return (r for r in revisions if r["desired_replicas"] or r["weight"] or r["desired_weight"])


def facts_for(
    file: Path | None,
    *,
    from_system: bool,
    server: str | None,
    home: Path,
    allow_loss: Sequence[str] | None,
    only: Sequence[str] | None,
    with_revisions: bool = False,
) -> "Facts":
    """The facts of a spec file, or of what runs.

    Args:
        with_revisions: Also what a control plane would run for the file, with models of this home.

    Raises:
        BadParameter: Neither or both were named.
        InvalidArgumentError: The spec lacks something.
    """
    from headrace.deploy import read_facts

    if (file is None) != from_system:
        msg = "name the spec: either --file FILE or --from-system"
        raise typer.BadParameter(msg, param_hint="--file")
    observed: dict[str, Observed] = {}
    revisions: dict[tuple[str, str], str] = {}
    if file is not None:
        from headrace.cli.spec import read_spec

        spec = read_spec(file)
        artifacts = _artifacts(spec, home)
        if with_revisions:
            revisions = revisions_in(spec, home)
    else:
        spec, observed, artifacts = running_system(server, home)
    return read_facts(
        spec,
        artifacts=artifacts,
        observed=observed,
        allowed=allow_loss or (),
        only=only or (),
        key_sets=_key_sets(spec),
        revisions=revisions,
    )


def _artifacts(spec: "SystemSpec", home: Path) -> "dict[str, Artifact]":
    """What the registry, or a file itself, tells of the models in a spec."""
    from headrace.core.spec import is_model_path
    from headrace.registry import Registry

    found: dict[str, Artifact] = {}
    for model in _models(spec):
        try:
            found[model] = (
                _of_file(Path(model)) if is_model_path(model) else known(Registry(home).get(model))
            )
        except HeadraceError:
            continue  # what an export has to know, it asks for by name
    return found


def known(version: Any) -> "Artifact":  # noqa: ANN401  # a ModelVersion, not imported for its name
    """What the registry says of a version."""
    return Artifact(
        filename=version.filename,
        version=version.version,
        digest=version.digest,
        runtime=version.runtime,
        runs_code=version.executes_code,
        sha256=_of_lone_file(version),
        labels=version.labels,
    )


def _of_lone_file(version: Any) -> str:  # noqa: ANN401  # a ModelVersion, not imported for its name
    """The file's digest, where the artifact is one; that of a directory covers a list of files."""
    is_alone = len(version.files) == 1 and not version.files[0].path
    return str(version.digest).removeprefix("sha256:") if is_alone else ""


def _of_file(path: Path) -> "Artifact":
    from headrace.runtimes import detect_runtime, runs_code

    runtime = detect_runtime(path)
    return Artifact(filename=path.name, runtime=runtime.name, runs_code=runs_code(runtime, path))


def _models(spec: "SystemSpec") -> list[str]:
    found = [row.model for endpoint in spec.endpoints for row in endpoint.split()]
    return list(dict.fromkeys(model for model in found if model))


def _key_sets(spec: "SystemSpec") -> dict[str, str]:
    """The public keys of identity providers that stand in files.

    Raises:
        InvalidArgumentError: A file cannot be read.
    """
    found = {}
    for jwt in spec.auth.jwt:
        if not jwt.jwks_file:
            continue
        try:
            found[jwt.name] = Path(jwt.jwks_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"auth.jwt {jwt.name!r}: cannot read {jwt.jwks_file}: {error}"
            raise InvalidArgumentError(msg) from error
    return found
