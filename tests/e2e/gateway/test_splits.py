"""Callers who stay where they are, splits that know nothing of each other, copies for a shadow."""

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc.aio import InferenceServerClient, InferInput

from headrace.core.spec.rollout import StickySpec
from headrace.gateway import EndpointRoute, MirrorTarget, RevisionTarget
from tests.e2e.gateway.lab import Lab, StandIn, arms, client, grpc_target, split

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
USERS = [f"user-{i}" for i in range(400)]
HEADER = StickySpec(header="x-user", salt="one")
PATH = "/v2/models/m/infer"


def _token(claims: Mapping[str, Any]) -> str:
    parts = ({"alg": "none"}, claims)
    encoded = [base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in parts]
    return f"Bearer {encoded[0]}.{encoded[1]}.c2ln"


def _keys(sticky: StickySpec, user: str) -> dict[str, str]:
    if sticky.header:
        return {sticky.header: user}
    if sticky.cookie:
        return {"cookie": f"theme=dark; {sticky.cookie}={user}; x{sticky.cookie}=other"}
    return {"authorization": _token({"nested": {sticky.claim: "other"}, sticky.claim: user})}


async def _grpc_arm(triton: InferenceServerClient, headers: Mapping[str, str]) -> str:
    tensor = InferInput("x", [1], "FP32")
    tensor.set_data_from_numpy(np.zeros(1, np.float32))
    result = await triton.infer("m", [tensor], headers=dict(headers))
    return str(result.get_response().model_version)


@pytest.mark.parametrize(
    "sticky",
    [
        HEADER,
        pytest.param(StickySpec(cookie="uid", salt="one"), marks=pytest.mark.long),
        pytest.param(StickySpec(claim="sub", salt="one"), marks=pytest.mark.long),
    ],
    ids=["header", "cookie", "claim"],
)
async def test_callers_stay_and_a_growing_version_sends_nobody_back(
    lab: Lab, sticky: StickySpec
) -> None:
    new, old = lab.replica("new"), lab.replica("old")

    def at(weight: int) -> EndpointRoute:
        return replace(split("m", ("2", weight, new), ("1", 100 - weight, old)), sticky=sticky)

    gateway = await lab.start(at(10))
    keys = [_keys(sticky, user) for user in USERS]
    first, again = await arms(gateway, PATH, keys), await arms(gateway, PATH, keys)
    async with InferenceServerClient(grpc_target(gateway)) as triton:
        over_grpc = [await _grpc_arm(triton, key) for key in keys[:100]]
    await lab.publish(gateway, at(50))
    later = await arms(gateway, PATH, keys)

    assert first == again
    assert over_grpc == first[:100]
    assert 0.05 < first.count("new") / len(USERS) < 0.16
    assert 0.40 < later.count("new") / len(USERS) < 0.60
    assert ("new", "old") not in set(zip(first, later, strict=True))


async def test_two_splits_on_one_key_agree_as_often_as_chance(lab: Lab) -> None:
    new, old = lab.replica("new"), lab.replica("old")
    one = replace(split("m", ("2", 50, new), ("1", 50, old)), sticky=HEADER)
    two = replace(one, name="n", sticky=StickySpec(header="x-user", salt="two"))
    back = replace(one, name="o", sticky=StickySpec(header="x-user", salt="a\\0b\\1"))
    gateway = await lab.start(one, two, back)
    keys = [{"x-user": user} for user in USERS]

    seen = [await arms(gateway, f"/v2/models/{name}/infer", keys) for name in "mno"]

    for first, second in ((0, 1), (0, 2), (1, 2)):
        agreed = sum(a == b for a, b in zip(seen[first], seen[second], strict=True))
        assert 0.40 < agreed / len(USERS) < 0.60


@pytest.mark.parametrize(
    "sticky",
    [pytest.param(HEADER, marks=pytest.mark.long), StickySpec(claim="sub")],
    ids=["header", "claim"],
)
async def test_callers_without_a_key_are_split_at_random(lab: Lab, sticky: StickySpec) -> None:
    new, old = lab.replica("new"), lab.replica("old")
    route = replace(split("m", ("2", 25, new), ("1", 75, old)), sticky=sticky, split_id="r1")
    gateway = await lab.start(route)

    for headers in (
        {},
        {"x-user": ""},
        {"x-headrace-unit": "forged"},
        {"cookie": "theme=dark"},
        {"authorization": "Bearer nonsense"},
        {"authorization": "Basic dXNlcjpwYXNz"},
        {"authorization": _token({"sub": None})},
        {"authorization": _token({"other": {"sub": "x"}})},
        {"authorization": "Bearer e30.!!!.c2ln"},
    ):
        seen = await arms(gateway, PATH, [headers] * 150)
        assert 0.1 < seen.count("new") / 150 < 0.42, headers  # 4 standard deviations
    assert all("x-headrace-unit" not in request["headers"] for request in new.seen())


@pytest.mark.long
async def test_callers_of_a_dead_arm_go_to_the_last_one_and_nobody_else_moves(lab: Lab) -> None:
    a, b, c = lab.replica("a"), lab.replica("b"), lab.replica("c")
    whole = replace(split("m", ("3", 20, a), ("2", 20, b), ("1", 60, c)), sticky=HEADER)
    dead = replace(whole.arms[0], replicas=())
    gateway = await lab.start(whole)
    keys = [{"x-user": user} for user in USERS]

    before = await arms(gateway, PATH, keys)
    await lab.publish(gateway, replace(whole, arms=(dead, *whole.arms[1:])))
    after = await arms(gateway, PATH, keys)

    assert set(zip(before, after, strict=True)) == {("a", "c"), ("b", "b"), ("c", "c")}


async def test_arms_of_one_version_are_apart_and_no_path_names_the_baseline(lab: Lab) -> None:
    fresh, stable = lab.replica("fresh"), lab.replica("stable")
    route = EndpointRoute(
        name="m",
        arms=(
            RevisionTarget(version="1", replicas=(fresh.address,), weight=50, role="baseline"),
            RevisionTarget(version="1", replicas=(stable.address,), weight=50),
        ),
    )
    gateway = await lab.start(route)

    split_arms = await arms(gateway, PATH, [{}] * 60)
    pinned = await arms(gateway, "/v2/models/m/versions/1/infer", [{}] * 20)

    assert set(split_arms) == {"fresh", "stable"}
    assert set(pinned) == {"stable"}


@pytest.mark.parametrize(
    ("sticky", "unit"),
    [
        (None, None),
        (HEADER, "Ünï"),
        (StickySpec(cookie="uid"), "a-b_c"),
        (StickySpec(claim="sub"), "me@x"),
        (StickySpec(claim="n"), "42"),
        (StickySpec(claim="big"), "12345678901234567000"),
        (StickySpec(claim="escaped"), "%C3%9Cn%C3%AF"),
    ],
    ids=str,
)
async def test_replicas_learn_the_split_and_the_unit_and_callers_cannot_say_it(
    lab: Lab, sticky: StickySpec | None, unit: str | None
) -> None:
    new, old = lab.replica("new"), lab.replica("old")
    route = replace(split("m", ("2", 50, new), ("1", 50, old)), sticky=sticky, split_id="m-r1")
    gateway = await lab.start(route)
    forged = {"x-headrace-split": "no", "x-headrace-unit": "no", "x-headrace-shadow": "1"}
    keys: dict[str, Any] = {"x-user": "Ünï".encode("latin-1"), "cookie": "uid=a-b_c"}
    claims = {"sub": "me@x", "n": 42, "big": 12345678901234567000, "escaped": "Ünï"}
    keys["authorization"] = _token(claims)

    async with client(gateway) as http:
        await http.post(PATH, headers={**keys, **forged}, content=b"x")
        await http.post("/v2/models/m/versions/1/infer", headers={**keys, **forged}, content=b"x")
    async with InferenceServerClient(grpc_target(gateway)) as triton:
        del keys["x-user"]
        await _grpc_arm(triton, {**keys, **forged})

    seen = [request["headers"] for request in (*new.seen(), *old.seen())]
    assert not any("x-headrace-shadow" in headers for headers in seen)
    marked = [h for h in seen if "x-headrace-split" in h]
    assert {h["x-headrace-split"] for h in marked} == {"m-r1"}
    assert len(marked) == 2
    if sticky is None or not sticky.header:
        assert {h.get("x-headrace-unit") for h in marked} == {unit}


async def test_a_single_arm_with_a_split_id_is_marked_too(lab: Lab) -> None:
    one = lab.replica("1")
    gateway = await lab.start(replace(split("m", ("1", 100, one)), sticky=HEADER, split_id="r9"))

    async with client(gateway) as http:
        await http.get(PATH, headers={"x-user": "anna"})
        await http.get("/v1/models/m:predict")

    assert [
        (h["headers"].get("x-headrace-split"), h["headers"].get("x-headrace-unit"))
        for h in one.seen()
    ] == [("r9", "anna"), ("r9", None)]


def _mirrored(one: StandIn, shadow: str, percent: int) -> EndpointRoute:
    return EndpointRoute(
        name="m",
        arms=(
            RevisionTarget(version="1", replicas=(one.address,), weight=100),
            RevisionTarget(version="2", replicas=(shadow,), weight=0),
        ),
        timeout_s=2.0,
        mirror=MirrorTarget(key="2", percent=percent),
        split_id="r1",
    )


async def test_a_shadow_gets_marked_copies_over_http_and_grpc(lab: Lab) -> None:
    one, shadow = lab.replica("1"), lab.replica("2")
    gateway = await lab.start(_mirrored(one, shadow.address, 100))

    async with client(gateway) as http:
        for _ in range(2):
            headers = {"x-request-id": "id-1", "x-headrace-pair": "forged"}
            await http.get(PATH, headers=headers)
        await http.post(PATH, content=b"hello" * 1000)
        await http.get("/v2/models/m/versions/1/infer")
    async with InferenceServerClient(grpc_target(gateway)) as triton:
        assert await _grpc_arm(triton, {"x-request-id": "id-3"}) == "1"

    primary = one.seen()
    copies = _wait_for(shadow, 4)
    assert len(primary) == 5
    assert {c["headers"]["x-headrace-shadow"] for c in copies} == {"1"}
    assert not any("x-headrace-shadow" in p["headers"] for p in primary)
    assert {c["headers"]["x-headrace-split"] for c in copies} == {"r1"}
    ids = {p["headers"]["x-request-id"] for p in primary if "versions" not in p["path"]}
    assert {c["headers"]["x-request-id"] for c in copies} == ids
    pairs = [p["headers"].get("x-headrace-pair") for p in primary]
    assert pairs[3] is None, "the request by its version's path is not copied"
    assert len(set(pairs)) == 5, "no two requests have the same id, also with one x-request-id"
    assert "forged" not in pairs
    assert {c["headers"]["x-headrace-pair"] for c in copies} == {*pairs} - {None}
    assert {c["headers"]["host"] for c in copies} <= {p["headers"]["host"] for p in primary}
    assert 5000 in {c["bytes"] for c in copies}


def _wait_for(replica: StandIn, count: int) -> list[Any]:
    until = time.monotonic() + 5
    while len(seen := replica.seen()) < count and time.monotonic() < until:
        time.sleep(0.01)
    return seen


async def test_about_the_wanted_share_is_copied(lab: Lab) -> None:
    one, shadow = lab.replica("1"), lab.replica("2")
    gateway = await lab.start(_mirrored(one, shadow.address, 25))

    await arms(gateway, PATH, [{}] * 400)

    assert 60 < len(_wait_for(shadow, 60)) < 140


@pytest.mark.parametrize(
    "fault",
    [
        "dead",
        "hangs",
        pytest.param("fails", marks=pytest.mark.long),
        pytest.param("ends", marks=pytest.mark.long),
    ],
)
async def test_a_bad_shadow_neither_delays_nor_fails_an_answer(lab: Lab, fault: str) -> None:
    one, shadow = lab.replica("1"), lab.replica("2")
    gateway = await lab.start(_mirrored(one, shadow.address, 100))
    if fault == "dead":
        shadow.kill()
    elif fault == "hangs":
        shadow.process.send_signal(19)
    query = "?status=500" if fault == "fails" else ""

    async with client(gateway) as http:
        began = time.monotonic()
        for i in range(100):
            if fault == "ends" and i == 50:
                shadow.kill()
            answer = await http.get(f"{PATH}{query}")
            assert answer.json()["replica"] == "1"
        took_s = time.monotonic() - began

    assert took_s < 15.0  # a quarter of a second for each would be 25
    assert len(one.seen()) == 100
