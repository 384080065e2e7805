"""Facts for an export: a spec file or a running system, with facts of the registry."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from headrace.cli.base.model_store import ModelStore
from headrace.cli.base.offline import resolver
from headrace.core import HeadraceError, InvalidArgumentError
from headrace.deploy import Artifact, LiveEndpoint, VersionShare

if TYPE_CHECKING:
    from headrace.control.model.desired import DesiredEndpoint
    from headrace.core.spec.parse import EndpointSpec, SystemSpec

_SHOWN: Final = 8
"""Number of characters of a revision's id in its objects' names."""


def pinned_endpoints(spec: "SystemSpec", home: Path) -> "tuple[DesiredEndpoint, ...]":
    """Return the endpoints of `spec`, as the registry of `home` pins them.

    Raises:
        SpecError: With every model that is missing, damaged or cannot be served.
    """
    alone = spec.model_copy(update={"streams": ()})
    with resolver(alone, home.resolve()) as pins:
        return pins.resolve()


def revisions_in(spec: "SystemSpec", home: Path) -> dict[tuple[str, str], str]:
    """Return ids of the revisions that a control plane would run, by endpoint and version.

    Endpoints whose models are files, or are not in the registry, have no ids here: a user would
    push these models first.
    """
    ids = {}
    for endpoint in spec.endpoints:
        if serves_file(endpoint):
            continue
        try:
            pinned = pinned_endpoints(spec.model_copy(update={"endpoints": (endpoint,)}), home)
        except HeadraceError:
            continue  # an export reports which Services have unknown names
        for desired in pinned:
            for arm in desired.arms:
                if arm.revision.upstream is None:
                    ids[str(desired.name), arm.revision.version] = arm.revision.id
    return ids


def serves_file(endpoint: "EndpointSpec") -> bool:
    """Whether an endpoint serves a local file."""
    from headrace.core.spec.parse import is_model_path

    return any(row.model and is_model_path(row.model) for row in endpoint.split())


def observed_of(view: Mapping[str, Any]) -> LiveEndpoint:
    """Return an endpoint's state, from the management API.

    A rollout's fresh copies of the old version (`baseline`) count as that version. A revision has
    an id if its replicas have the names of the driver's pods.
    """
    shares: dict[str, VersionShare] = {}
    for revision in view["status"]["revisions"]:
        if not (revision["desired_replicas"] or revision["weight"] or revision["desired_weight"]):
            continue  # listed until its last replica has exited
        version, weight = revision["version"], revision["weight"]
        before = shares.get(version)
        replicas = max(revision["desired_replicas"], 1)
        # The driver names a Deployment INSTANCE-ENDPOINT-VERSION-ID, and a cluster its pods after
        # it; local processes have other names.
        identity = str(revision.get("id", ""))
        within = f"-{version}-{identity[:_SHOWN]}-"
        in_pods = any(within in replica["name"] for replica in revision.get("replicas", ()))
        shares[version] = VersionShare(
            version=version,
            weight=weight + (before.weight if before else 0),
            model="" if "://" in revision["model"] else revision["model"],
            replicas=max(replicas, before.replicas) if before else replicas,
            revision=(before.revision if before else "") or (identity if in_pods else ""),
        )
    mirror, percent = "", 0
    rollout = view.get("rollout")
    if rollout is not None and not rollout["over"] and rollout["to_version"] in shares:
        percent = rollout["mirror_percent"]
        mirror = rollout["to_version"] if percent else ""
    return LiveEndpoint(shares=tuple(shares.values()), mirror=mirror, mirror_percent=percent)


def artifacts_of(models: "set[str]", store: ModelStore) -> dict[str, Artifact]:
    """Return facts of models from the registry, or from a file; an export selects from them."""
    from headrace.core import ModelSignature
    from headrace.core.encoders import encoder_task
    from headrace.core.spec.parse import is_model_path
    from headrace.runtimes import detect_runtime, runs_code

    artifacts: dict[str, Artifact] = {}
    for model in models:
        try:
            if is_model_path(model):
                path = Path(model)
                runtime = detect_runtime(path)
                artifacts[model] = Artifact(
                    filename=path.name, runtime=runtime.name, runs_code=runs_code(runtime, path)
                )
                continue
            version = store.get(model)
        except HeadraceError:
            continue
        signature = msgspec.convert(version["signature"], ModelSignature)
        # The digest of a directory covers a list of files, which a replica cannot verify.
        is_lone = len(version["files"]) == 1 and not version["files"][0]["path"]
        artifacts[model] = Artifact(
            filename=version["filename"],
            version=version["version"],
            digest=version["digest"],
            runtime=version["runtime"],
            runs_code=version["runs_code"],
            sha256=version["digest"].removeprefix("sha256:") if is_lone else "",
            labels={output: tuple(names) for output, names in version["labels"].items()},
            encodes=encoder_task(signature) is not None,
        )
    return artifacts


def key_sets_of(spec: "SystemSpec") -> dict[str, str]:
    """Return the public keys of identity providers that are given as files.

    Raises:
        InvalidArgumentError: A file cannot be read.
    """
    key_sets = {}
    for jwt in spec.auth.jwt:
        if not jwt.jwks_file:
            continue
        try:
            key_sets[jwt.name] = Path(jwt.jwks_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            msg = f"auth.jwt {jwt.name!r}: cannot read {jwt.jwks_file}: {error}"
            raise InvalidArgumentError(msg) from error
    return key_sets
