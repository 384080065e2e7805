import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.gateway.statistics import (
    ArmStatistics,
    TokenUse,
    is_abandoned,
    is_error,
    is_rejection,
    read_all,
    read_splits,
    read_tokens,
)
from tests.unit.gateway.arbitrary import names, versions

roles = st.sampled_from(["", "~baseline"])
codes = st.sampled_from([0, 200, 302, 400, 404, 422, 429, 499, 500, 503, 504])
grpc_codes = st.sampled_from(["", *map(str, range(17))])
bins = st.dictionaries(st.sampled_from([100, 1100, 25000]), st.integers(1, 1000), max_size=3)


def _answer(*histograms: tuple[str, dict[int, int]]) -> bytes:
    details = [
        {
            "name": name,
            "totals": [{"lower_bound": k, "width": k // 10, "count": v} for k, v in found.items()],
            "intervals": [],
        }
        for name, found in histograms
    ]
    supported = {"supported_percentiles": [0, 50], "details": details}
    return json.dumps({"stats": [{"name": "x", "value": 3}, {"histograms": supported}]}).encode()


def _name(
    endpoint: str,
    key: str,
    code: int,
    grpc: str,
    *,
    unit: str = "us",
    route: str = "",
    group: str = "headrace_arm",
) -> str:
    return f"{group}.{unit}.arm.{endpoint}~{key}.route.{route or endpoint}.code.{code}.grpc.{grpc}"


@given(
    st.lists(
        st.tuples(names, versions, roles, codes, grpc_codes, bins),
        max_size=8,
        unique_by=lambda x: x[:5],
    )
)
def test_every_request_is_counted_once_by_its_arm_and_how_it_ended(found: list[Any]) -> None:
    histograms = [
        (_name(name, version + role, code, grpc), counts)
        for name, version, role, code, grpc, counts in found
    ]

    arms, total = read_splits(_answer(*histograms), {name for name, *_ in found})

    requests: Counter[tuple[str, str]] = Counter()
    for name, version, role, _, _, counts in found:
        requests[name, version + role] += sum(counts.values())
    assert {arm: one.requests for arm, one in arms.items()} == dict(requests)
    assert total == requests.total()
    for one in arms.values():
        assert sum(one.latency.values()) == one.requests
        assert one.errors + one.rejections <= one.requests


def test_the_two_units_of_time_are_both_seconds_in_the_end() -> None:
    answer = _answer(
        (_name("m", "1", 200, ""), {25000: 2, 100: 1}),
        (_name("m", "1", 0, "", unit="ms"), {100: 3}),
    )

    arms, _ = read_splits(answer, {"m"})

    one = arms["m", "1"]
    assert one.latency == {(0.0001, 0.00001): 1, (0.025, 0.0025): 2, (0.1, 0.01): 3}
    assert (one.requests, one.errors, one.rejections) == (6, 0, 0)


def test_the_same_bucket_of_two_statuses_is_one() -> None:
    answer = _answer((_name("m", "1", 200, ""), {1100: 2}), (_name("m", "1", 500, ""), {1100: 5}))

    arms, _ = read_splits(answer, {"m"})

    assert list(arms["m", "1"].latency.values()) == [7]
    assert arms["m", "1"].errors == 5


def test_a_failure_that_a_fallback_made_up_for_is_an_error_of_the_arm_alone() -> None:
    answer = _answer(
        (_name("m", "1~openai", 200, ""), {100: 2}),
        (_name("m", "1~openai", 503, "", unit="failed"), {100: 3}),
        (_name("n", "4~openai", 200, "", route="m"), {100: 3}),
        (_name("m", "1~fallback", 503, ""), {100: 1}),
        (_name("m", "~fallback", 503, ""), {100: 1}),
    )

    of_split, _ = read_splits(answer, {"m", "n"})
    of_all, total = read_all(answer, {"m", "n"})

    assert (of_split["m", "1"].requests, of_split["m", "1"].errors) == (6, 4)
    assert ("n", "4") not in of_split
    assert (of_all["m", "1"].requests, of_all["m", ""].requests, total) == (3, 4, 10)


def test_requests_that_name_their_version_and_other_endpoints_are_left_out() -> None:
    answer = _answer(
        (_name("m", "1", 503, "", route="m~1"), {100: 1}),
        (_name("n", "1", 200, ""), {100: 1}),
        ("headrace_arm.us.arm.replicas.route.server.code.200.grpc.", {100: 1}),
        (_name("a.route.b", "2~baseline", 200, ""), {100: 1}),
    )

    arms, total = read_splits(answer, {"m", "a.route.b"})

    assert set(arms) == {("a.route.b", "2~baseline")}
    assert total == 4


def test_all_requests_are_those_of_splits_and_the_rest() -> None:
    rest = "headrace_rest"
    answer = _answer(
        (_name("m", "1", 200, ""), {100: 1}),
        (_name("m", "1", 503, "", unit="dead"), {100: 2}),
        (_name("m", "1", 503, "", group=rest), {100: 2}),
        (_name("m", "1", 200, "", group=rest, route="m~1"), {100: 4}),
        (_name("m", "1", 0, "", group=rest, unit="ms"), {100: 8}),
        (f"{rest}.us.arm.-.route.m.code.503.grpc.", {100: 16}),
        (f"{rest}.us.arm.replicas.route.server.code.200.grpc.", {100: 32}),
        (_name("n", "1", 200, "", group=rest), {100: 64}),
        (_name("a.route.b", "2~baseline", 200, "", group=rest), {100: 128}),
    )

    arms, total = read_all(answer, {"m", "a.route.b"})

    assert total == 257
    assert {arm: one.requests for arm, one in arms.items()} == {
        ("m", "1"): 15,
        ("m", ""): 16,
        ("a.route.b", "2~baseline"): 128,
    }
    assert (arms["m", "1"].errors, arms["m", "1"].abandoned) == (2, 8)


def test_tokens_of_a_split_are_counted_beside_its_requests() -> None:
    read, total = read_splits(
        _answer(
            (_name("a", "2~openai", 200, ""), {25000: 3}),
            (_name("a", "2~openai", 200, "", unit="token"), {25000: 2}),
            (_name("a", "2~openai", 200, "", unit="length"), {30: 2, 110: 1}),
        ),
        {"a"},
    )

    assert total == 8
    arm = read["a", "2"]
    assert arm.requests == 3
    assert arm.per_token == {(0.025, 0.0025): 2}
    assert arm.output_tokens == {(30.0, 3.0): 2, (110.0, 11.0): 1}
    assert arm.plus(arm).since(arm) == arm
    assert ArmStatistics(requests=3).since(arm) == ArmStatistics(requests=3)


def test_a_dead_arms_requests_are_its_splits_too() -> None:
    answer = _answer((_name("m", "1", 503, "", unit="dead"), {100: 2}))

    assert read_splits(answer, {"m"})[0]["m", "1"].errors == 2


@given(codes, grpc_codes)
def test_a_request_ended_in_one_way(code: int, grpc: str) -> None:
    ways = [is_error(code, grpc), is_rejection(code, grpc)]

    assert ways.count(True) <= 1
    assert not (is_abandoned(code, "") and any([is_error(code, ""), is_rejection(code, "")]))


def test_an_envoy_that_counted_nothing_has_no_arms() -> None:
    assert read_splits(b'{"stats":[]}', {"m"}) == ({}, 0)


@pytest.mark.parametrize(
    ("code", "grpc", "kind"),
    [
        (200, "", "answer"),
        (304, "", "answer"),
        (0, "", "answer"),  # the caller left
        (499, "", "answer"),
        (400, "", "rejection"),
        (404, "", "rejection"),
        (429, "", "error"),
        (500, "", "error"),
        (504, "", "error"),
        (200, "0", "answer"),
        (200, "1", "answer"),
        *((200, str(status), "error") for status in (2, 4, 8, 12, 13, 14, 15)),
        *((200, str(status), "rejection") for status in (3, 5, 6, 7, 9, 10, 11, 16)),
        (503, "0", "error"),
    ],
)
def test_an_answer_is_an_error_or_a_rejection_or_neither(code: int, grpc: str, kind: str) -> None:
    assert (is_error(code, grpc), is_rejection(code, grpc)) == (
        kind == "error",
        kind == "rejection",
    )


def test_tokens_of_arms_with_a_role_are_those_of_their_version() -> None:
    prefix = "headrace_tokens"
    counted = read_tokens(
        {
            f"{prefix}.input.arm.a+b~2.credential.key:x.y": 7,
            f"{prefix}.input.arm.a+b~2~baseline.credential.key:x.y": "5",
            f"{prefix}.input.arm.a+b~2~openai.credential.-": 1,
            f"{prefix}.unknown.arm.a+b~2.credential.": 1,
            f"{prefix}.other": 3,
        }
    )

    assert counted == (
        TokenUse(endpoint="a.b", version="2", input=1, unknown=1),
        TokenUse(endpoint="a.b", version="2", credential="key:x.y", input=12),
    )
