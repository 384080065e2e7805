"""Law: an accepted change by the operator of one endpoint refers to nothing outside his grants.

States are random, the changes go through the management API, and what was accepted is judged by
what stands in the spec afterwards: nothing here knows how the control plane decides.
"""

import itertools
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from headrace.control.plane.control_plane import ControlPlane
from headrace.features import apply_definitions
from tests.unit.control.api_client import client_of

pytestmark = pytest.mark.anyio

NUMBERS: Final = itertools.count(1)
"""Of the endpoints of an example: history and grants of one example say nothing in the next."""
FEATURES: Final = """
entities: [{name: customer, datatype: INT64}]
feature_views:
  - name: stats
    entities: [customer]
    source: {path: stats.parquet}
    features: [{name: age, datatype: FP32}, {name: size, datatype: FP32}]
feature_services: [{name: s, features: [stats]}]
"""
SERVICE: Final = {"service": "s", "inputs": {"x": ["age", "size"]}}
OURS, THEIRS, SPARE, LENT = "ours", "theirs", "spare", "lent"
"""Models by who has them: the operator pushed `ours` himself, under his endpoint's name; `theirs`
is served by the other endpoint; nothing serves `spare`; `lent` may be granted."""
GRANTS: Final = ("viewer:model/lent", "operator:model/lent", "viewer:features/s")

models = st.sampled_from([OURS, THEIRS, SPARE, LENT])
references = st.builds("{}{}".format, models, st.sampled_from(["", ":1", ":2"]))
paths = st.sampled_from(["HOME/admin-token", "HOME", "/etc/hosts", "FOLDER/m.onnx", "./m.onnx"])
hosts = st.sampled_from(["127.0.0.1", "[::1]", "169.254.169.254", "listed.invalid", "x.invalid"])
upstreams = st.builds(lambda host: {"url": f"http://{host}:80"}, hosts)
settings_of_entries = st.fixed_dictionaries(
    {},
    optional={
        "pool": st.sampled_from(["empty", "shared", None]),
        "network": st.booleans(),
        "allow_code": st.booleans(),
        "timeout_s": st.sampled_from([1.0, 2.0]),
        "features": st.sampled_from(
            [
                SERVICE,
                {**SERVICE, "online_store": "sqlite:////FOLDER/x.db"},
                {**SERVICE, "online_store": "sqlite:////nowhere/${PATH}/x.db"},
            ]
        ),
    },
)


def split(first: str, second: str) -> dict[str, Any]:
    halves = [{"model": first, "weight": 50}, {"model": second, "weight": 50}]
    return {"versions": halves}


sources = st.one_of(
    st.builds(lambda model: {"model": model}, st.one_of(references, paths)),
    st.builds(split, references, st.one_of(references, paths)),
    st.builds(lambda upstream: {"upstream": upstream}, upstreams),
)
entries = st.builds(lambda source, more: {**source, **more}, sources, settings_of_entries)
at_first = st.builds(
    lambda source, more: {**source, **more},
    st.one_of(
        st.builds(lambda model: {"model": model}, st.one_of(references, st.just("FOLDER/m.onnx"))),
        st.builds(split, st.sampled_from([OURS, THEIRS]), st.sampled_from([SPARE, LENT])),
        st.builds(lambda upstream: {"upstream": upstream}, upstreams),
    ),
    st.sampled_from([{}, {"pool": "shared"}, {"network": True}, {"features": SERVICE}]),
)
"""What an admin put at the operator's endpoint before."""
system_parts = st.sampled_from(
    [
        {"pools": [{"name": "shared", "replicas": 2}]},
        {"security": {"require_signature": False, "upstream_hosts": ["x.invalid"]}},
        {"auth": {"certificates": [{"name": "own", "dns": "*"}]}},
        {"jobs": [{"name": "j", "model": "theirs:1", "input": "/etc/*", "output": "o/{run_id}"}]},
        {"alerts": {"receivers": [{"name": "r", "webhook": {"url": "http://x.invalid/"}}]}},
        {"online_stores": [{"name": "own", "url": "redis://x.invalid/0"}]},
        {"tracing": {"collector": "http://x.invalid"}},
        {"tiers": [{"name": "gold"}]},
    ]
)


@dataclass(frozen=True, slots=True)
class Change:
    """One request of the operator: which way in, and what it says."""

    way: str
    entry: dict[str, Any]
    rest: dict[str, Any]
    model: str


changes = st.builds(
    Change,
    way=st.sampled_from(["put", "apply", "apply system", "apply theirs", "rollout", "undo"]),
    entry=entries,
    rest=system_parts,
    model=st.one_of(references, paths),
)


class House:
    """The control plane with models pushed, and the admin's client."""

    def __init__(self, plane: ControlPlane, admin: httpx.AsyncClient, folder: Path) -> None:
        self.plane = plane
        self.admin = admin
        self.folder = folder

    def written(self, document: Any, number: int) -> Any:  # noqa: ANN401  # JSON
        """`document` with names of this example, and real paths."""
        text = {"HOME": str(self.plane.home.root), "FOLDER": str(self.folder), OURS: f"sec{number}"}
        match document:
            case str():
                for word, value in text.items():
                    document = document.replace(word, value)
                return document
            case list() | tuple():
                return [self.written(item, number) for item in document]
            case dict():
                return {key: self.written(value, number) for key, value in document.items()}
        return document

    async def push(self, client: httpx.AsyncClient, name: str, content: str) -> None:
        binary = {"content-type": "application/octet-stream"}
        query = {"filename": "m.onnx"}
        pushed = await client.post(
            f"/models/{name}", params=query, content=content.encode(), headers=binary
        )
        assert pushed.status_code == 201, pushed.text

    async def operator(self, number: int, grants: frozenset[str]) -> dict[str, str]:
        """Headers of a new operator of `sec{number}`."""
        roles = [f"operator:sec{number}", *sorted(grants)]
        created = await self.admin.post("/tokens", json={"owner": f"user{number}", "roles": roles})
        assert created.status_code == 201, created.text
        return {"authorization": f"Bearer {created.json()['token']}"}

    async def spec(self) -> dict[str, Any]:
        document: dict[str, Any] = (await self.admin.get("/spec")).json()["spec"]
        return document


@pytest.fixture
async def house(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[House]:
    (tmp_path / "features.yaml").write_text(FEATURES)
    (tmp_path / "m.onnx").write_text("a model that lies here")
    apply_definitions(tmp_path / "features.yaml", plane.home.root)
    async with client_of(plane) as admin:
        house = House(plane, admin, tmp_path)
        for name in (THEIRS, SPARE, LENT):
            for version in (1, 2):
                await house.push(admin, name, f"{name} {version}")
        yield house


async def sent(house: House, number: int, change: Change, headers: Mapping[str, str]) -> int:
    """The status of the operator's request."""
    name, spec = f"sec{number}", await house.spec()
    entry = house.written(change.entry, number)
    others = [e for e in spec["endpoints"] if e["name"] != name]
    document = {**spec, "endpoints": [*others, {"name": name, **entry}]}
    path, body = f"/endpoints/{name}", entry
    match change.way:
        case "apply":
            path, body = "/apply", document
        case "apply system":
            path, body = "/apply", {**document, **change.rest}
        case "apply theirs":
            changed = [{**e, "timeout_s": 5.0} if e["name"][:3] != "sec" else e for e in others]
            path, body = "/apply", {**document, "endpoints": [*changed, {"name": name, **entry}]}
        case "rollout":
            path = f"/endpoints/{name}/rollout"
            body = {"model": house.written(change.model, number), "allow_code": True}
        case "undo":
            path, body = f"/endpoints/{name}/undo", {}
    method = "PUT" if change.way == "put" else "POST"
    answer = await house.admin.request(method, path, json=body, headers=dict(headers))
    return answer.status_code


def models_of(entry: Mapping[str, Any] | None) -> set[str]:
    """Names of the models that an entry refers to; a path stands for itself."""
    parts = [] if entry is None else [entry, *(entry.get("versions") or ())]
    texts = [part["model"] for part in parts if part.get("model")]
    return {text if "/" in text else text.partition(":")[0] for text in texts}


def hosts_of(entry: Mapping[str, Any] | None) -> set[str]:
    parts = [] if entry is None else [entry, *(entry.get("versions") or ())]
    return {part["upstream"]["url"] for part in parts if part.get("upstream")}


def entry_of(spec: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    return next((entry for entry in spec["endpoints"] if entry["name"] == name), None)


def outside(
    before: Mapping[str, Any], after: Mapping[str, Any], number: int, grants: frozenset[str]
) -> list[str]:
    """What the new state has in `sec{number}` that neither was there nor may be used."""
    name = f"sec{number}"
    old, new = entry_of(before, name), entry_of(after, name)
    if new is None or new == old:
        return []
    allowed = {name, *models_of(old)}
    allowed |= {LENT} if any(grant.endswith("model/lent") for grant in grants) else set()
    wrong = [f"model {model}" for model in models_of(new) - allowed]
    listed = {f"http://{h}:80" for h in before.get("security", {}).get("upstream_hosts", ())}
    wrong += [f"upstream {url}" for url in hosts_of(new) - hosts_of(old) - listed]
    was, pool = old or {}, new.get("pool")
    neighbours = [e for e in after["endpoints"] if e["name"] != name and e.get("pool") == pool]
    if pool and pool != was.get("pool") and neighbours:
        wrong.append(f"pool {pool}")
    if new.get("network") and not was.get("network"):
        wrong.append("network")
    features, had = new.get("features") or {}, was.get("features") or {}
    granted = {grant.rpartition("/")[2] for grant in grants if ":features/" in grant}
    if features.get("service") not in {None, had.get("service"), *granted}:
        wrong.append(f"features {features['service']}")
    if features.get("online_store") not in {None, had.get("online_store")}:
        wrong.append(f"store {features['online_store']}")
    return wrong


def rest_of(spec: Mapping[str, Any], number: int) -> dict[str, Any]:
    """All that is not the operator's."""
    own = f"sec{number}"
    entries = {e["name"]: e for e in spec["endpoints"] if e["name"] != own}
    return {**{k: v for k, v in spec.items() if k not in {"endpoints", "version"}}, "e": entries}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    first=st.one_of(st.none(), at_first),
    neighbour=st.sampled_from([{}, {"pool": "shared"}]),
    lists_hosts=st.booleans(),
    grants=st.frozensets(st.sampled_from(GRANTS)),
    change=changes,
)
async def test_an_accepted_change_refers_to_nothing_outside_of_the_grants(
    house: House,
    *,
    first: dict[str, Any] | None,
    neighbour: dict[str, str],
    lists_hosts: bool,
    grants: frozenset[str],
    change: Change,
) -> None:
    number = next(NUMBERS)
    headers = await house.operator(number, grants)
    await push_own(house, number, headers)
    own = [] if first is None else [{"name": f"sec{number}", **house.written(first, number)}]
    security = {"security": {"upstream_hosts": ["listed.invalid"]}} if lists_hosts else {}
    state = {
        "version": 1,
        **security,
        "pools": [{"name": "shared"}, {"name": "empty"}],
        "endpoints": [{"name": f"other{number}", "model": "theirs:1", **neighbour}, *own],
    }
    applied = await house.admin.post("/apply", json=state)
    assume(applied.status_code == 200)
    before = await house.spec()

    status = await sent(house, number, change, headers)
    after = await house.spec()

    if status >= 400:
        assert after == before
    assert rest_of(after, number) == rest_of(before, number)
    assert outside(before, after, number, grants) == []


async def push_own(house: House, number: int, headers: Mapping[str, str]) -> None:
    for version in (1, 2):
        pushed = await house.admin.post(
            f"/models/sec{number}",
            params={"filename": "m.onnx"},
            content=f"own {number} {version}".encode(),
            headers={"content-type": "application/octet-stream", **headers},
        )
        assert pushed.status_code == 201, pushed.text


@settings(
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(version=st.sampled_from(["", ":1", ":2"]), timeout_s=st.sampled_from([1.0, 2.0]))
async def test_a_change_within_the_grants_is_accepted(
    house: House, version: str, timeout_s: float
) -> None:
    number = next(NUMBERS)
    headers = await house.operator(number, frozenset())
    await push_own(house, number, headers)
    entry = {"model": f"sec{number}{version}", "timeout_s": timeout_s}

    put = await house.admin.put(f"/endpoints/sec{number}", json=entry, headers=headers)

    assert put.status_code in {200, 201}, put.text
