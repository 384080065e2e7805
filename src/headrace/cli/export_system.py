"""What does a running system do? Its spec, and the weights that a rollout has just now."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headrace.deploy import Artifact, Observed, Share

if TYPE_CHECKING:
    from headrace.core.spec import SystemSpec

_SHOWN: Final = 8
"""How much of a revision's id is in its objects' names."""


def running_system(
    server: str | None, home: Path
) -> "tuple[SystemSpec, dict[str, Observed], dict[str, Artifact]]":
    """The applied spec, what each endpoint does, and what is known of its models."""
    from headrace.cli.connection import find_target
    from headrace.cli.export_facts import known
    from headrace.cli.model_store import model_store
    from headrace.core import HeadraceError
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
