"""Endpoints, settings and route tables for tests of pure configuration."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from headrace.core.spec.access import EndpointAccess, EndpointLimitsSpec, LimitSpec
from headrace.core.spec.rollout import StickySpec
from headrace.core.spec.upstream import UpstreamProtocol, UpstreamSpec
from headrace.gateway import (
    EndpointRoute,
    EnvoySettings,
    MirrorTarget,
    RevisionTarget,
    Snapshot,
)

# Few letters, so that names are often prefixes of each other.
names = st.from_regex(r"[am1][am1._-]{0,3}", fullmatch=True)
versions = st.integers(1, 12).map(str)
addresses = st.sampled_from([f"unix:/run/{i}.sock" for i in range(5)] + ["127.0.0.1:9000"])
_replicas = st.lists(addresses, max_size=3, unique=True).map(tuple)


upstreams = st.builds(
    UpstreamSpec,
    url=st.sampled_from(["http://10.0.0.9:8000/pre", "http://models.example", "grpc://[::1]:9"]),
    protocol=st.sampled_from(UpstreamProtocol),
    model=st.sampled_from(["", "other"]),
    health_path=st.sampled_from(["", "/up", None]),
)
stickies = st.sampled_from(
    [
        StickySpec(header="x-user"),
        StickySpec(cookie="uid", salt="s"),
        StickySpec(claim="sub"),
    ]
)


accesses = st.sampled_from(
    [
        None,
        EndpointAccess(public=True),
        EndpointAccess(any_of=("key",)),
        EndpointAccess(any_of=("jwt:corp", "certificate")),
    ]
)


_sets = st.sampled_from(
    [
        LimitSpec(),
        LimitSpec(requests_per_s=0.5),
        LimitSpec(requests_per_s=1e6, burst=1),
        LimitSpec(rows_per_s=10.0),
        LimitSpec(max_concurrent=1, requests_per_day=10),
        LimitSpec(tokens_per_minute=100.0, tokens_per_day=10),
    ]
)
limits = st.builds(
    EndpointLimitsSpec,
    total=_sets,
    per_caller=_sets,
    max_body_bytes=st.none() | st.integers(1024, 1 << 30),
)


@st.composite
def _targets(draw: st.DrawFn, version: str, role: str, weight: int) -> RevisionTarget:
    upstream = draw(st.none() | upstreams) if draw(st.integers(0, 3)) == 0 else None
    replicas = () if upstream else draw(_replicas)
    has_sockets = not upstream and all(address.startswith("unix:") for address in replicas)
    return RevisionTarget(
        version=version,
        role=role,
        replicas=replicas,
        weight=weight,
        upstream=upstream,
        openai=has_sockets and draw(st.booleans()),
        encodes=not upstream and draw(st.booleans()),
    )


@st.composite
def endpoint_routes(draw: st.DrawFn, name: str) -> EndpointRoute:
    keys = st.tuples(versions, st.sampled_from(["", "", "baseline"]))
    chosen = draw(st.lists(keys, max_size=3, unique=True))
    cuts = sorted(draw(st.integers(0, 100)) for _ in chosen[1:])
    edges = [0, *cuts, 100]
    revisions = tuple(
        draw(_targets(version, role, edges[i + 1] - edges[i]))
        for i, (version, role) in enumerate(chosen)
    )
    mirrors = st.builds(
        MirrorTarget,
        key=st.sampled_from([arm.key for arm in revisions] or ["none"]),
        percent=st.integers(0, 100),
    )
    return EndpointRoute(
        name=name,
        arms=revisions,
        timeout_s=draw(st.none() | st.floats(0.001, 1000)),
        sticky=draw(st.none() | stickies),
        mirror=draw(st.none() | mirrors) if revisions else None,
        split_id=draw(st.sampled_from(["", "r-1"])),
        held=draw(st.booleans()),
        access=draw(accesses),
        limits=draw(limits),
        slo_latency_s=draw(st.none() | st.just(0.25)),
        fallback=draw(st.none() | names),
    )


@st.composite
def endpoint_lists(draw: st.DrawFn) -> list[EndpointRoute]:
    chosen = draw(st.lists(names, max_size=4, unique=True))
    return [draw(endpoint_routes(name)) for name in chosen]


def gateway_settings(**changes: Any) -> EnvoySettings:  # noqa: ANN401  # any field's type
    return EnvoySettings(**{"run_dir": Path("/run/headrace"), **changes})


def plain(resource: object) -> Any:  # noqa: ANN401  # tests read into it
    """As Envoy reads it: through JSON."""
    return json.loads(json.dumps(resource))


def routes_of(snapshot: Snapshot) -> list[dict[str, Any]]:
    (host,) = plain(snapshot.routes)["virtual_hosts"]
    found: list[dict[str, Any]] = host["routes"]
    return found


def clusters_named(action: Mapping[str, Any]) -> Iterator[str]:
    """The clusters that may answer."""
    route = action.get("route", {})
    if "cluster" in route:
        yield route["cluster"]
    for cluster in route.get("weighted_clusters", {}).get("clusters", []):
        yield cluster["name"]


def mirrors_named(action: Mapping[str, Any]) -> Iterator[str]:
    """The clusters that get copies."""
    for policy in action.get("route", {}).get("request_mirror_policies", []):
        yield policy["cluster"]


def first_match(
    snapshot: Snapshot, path: str, headers: Mapping[str, str] | None = None, *, grpc: bool = False
) -> dict[str, Any]:
    """The route that Envoy would take: the slow, obvious way."""
    for route in routes_of(snapshot):
        match = route["match"]
        if _path_fits(match, path) and ("grpc" not in match or grpc):
            wanted = match.get("headers", [])
            sent = {":method": "GET", **(headers or {})}
            if all(_header_fits(header, sent) for header in wanted):
                return route
    msg = f"no route for {path}"
    raise AssertionError(msg)


def _path_fits(match: Mapping[str, Any], path: str) -> bool:
    match match:
        case {"path": exact}:
            return bool(path == exact)
        case {"path_separated_prefix": prefix}:
            return path == prefix or path.startswith(f"{prefix}/")
        case {"prefix": prefix}:
            return path.startswith(prefix)
        case {"safe_regex": {"regex": pattern}}:
            return re.fullmatch(pattern, path) is not None
        case _:
            msg = f"unknown match {match}"
            raise AssertionError(msg)


def _header_fits(wanted: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
    if "present_match" in wanted:
        return bool((wanted["name"] in headers) == wanted["present_match"])
    value = headers.get(wanted["name"])
    match wanted["string_match"]:
        case {"exact": exact}:
            return bool(value == exact)
        case {"contains": part}:
            return value is not None and part in value
        case {"safe_regex": {"regex": regex}}:
            return value is not None and re.fullmatch(regex, value) is not None
        case other:
            msg = f"unknown match {other}"
            raise AssertionError(msg)
