"""Pulsar's admin API, answered here, says how far groups are, and who does not answer is named."""

from collections.abc import Callable

import httpx
import pytest

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from headrace.streaming.brokers.pulsar.admin import PulsarAdmin
from headrace.streaming.brokers.pulsar.messages import entry_offset
from headrace.streaming.records import PartitionLag

TOPIC = "persistent://public/default/t"
NOW_S = 1_000.0


def admin(handler: Callable[[httpx.Request], httpx.Response], *urls: str) -> PulsarAdmin:
    transport = httpx.MockTransport(handler)
    return PulsarAdmin(urls or ("http://one:8080",), token=lambda: "secret", transport=transport)


def subscriptions(records: int, oldest_ms: int) -> dict[str, object]:
    """As Pulsar 4.0.7 answers, without most of it."""
    group = {"msgBacklog": records, "earliestMsgPublishTimeInBacklog": oldest_ms, "type": "Shared"}
    return {"subscriptions": {"g": group}, "msgInCounter": 9}


def test_a_backlog_is_told_by_partition_with_the_age_of_its_oldest_record() -> None:
    def answered(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/admin/v2/persistent/public/default/t/partitioned-stats"
        assert request.url.params["getPreciseBacklog"] == "true"
        told = {f"{TOPIC}-partition-0": subscriptions(7, 990_000), f"{TOPIC}-partition-1": {}}
        return httpx.Response(200, json={**subscriptions(7, 990_000), "partitions": told})

    found = admin(answered).backlogs(TOPIC, "g", is_partitioned=True)

    assert {name: one.lag(NOW_S) for name, one in found.items()} == {
        f"{TOPIC}-partition-0": PartitionLag(records=7, seconds=10.0)
    }


@pytest.mark.parametrize(
    ("records", "oldest_ms", "seconds"), [(0, -1, 0.0), (0, 5, 0.0), (3, 0, None), (3, 10**9, 0.0)]
)
def test_an_age_that_nobody_knows_is_not_made_up(
    records: int, oldest_ms: int, seconds: float | None
) -> None:
    told = subscriptions(records, oldest_ms)
    found = admin(lambda _: httpx.Response(200, json=told)).backlogs(
        TOPIC, "g", is_partitioned=False
    )

    assert found[TOPIC].lag(NOW_S) == PartitionLag(records=records, seconds=seconds)


def test_a_position_is_behind_what_was_acknowledged() -> None:
    cursors = {"g%2Fx+y": {"markDeletePosition": "7:4"}, "new": {"markDeletePosition": "8:-1"}}
    asked = admin(lambda _: httpx.Response(200, json={"cursors": cursors}))

    assert asked.position(TOPIC, "g/x y") == (7, 5)
    assert asked.position(TOPIC, "new") == (8, 0)
    assert asked.position(TOPIC, "nobody") is None
    assert entry_offset(7, 5) < entry_offset(8, 0)


def test_the_token_goes_to_the_broker_that_owns_a_topic_and_the_next_is_asked_for_one_away() -> (
    None
):
    heard: list[tuple[str, str]] = []

    def answered(request: httpx.Request) -> httpx.Response:
        heard.append((request.url.host, request.headers["authorization"]))
        match request.url.host:
            case "away":
                raise httpx.ConnectError("refused")
            case "one":
                owner = str(request.url.copy_with(host="owner"))
                return httpx.Response(307, headers={"location": owner})
        return httpx.Response(200, json={"cursors": {}})

    assert admin(answered, "http://away:8080", "http://one:8080").position(TOPIC, "g") is None
    assert heard == [(host, "Bearer secret") for host in ("away", "one", "owner")]
    with pytest.raises(UnavailableError, match=r"http://away:8080 does not answer.*\?admin="):
        admin(answered, "http://away:8080").position(TOPIC, "g")


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, FailedPreconditionError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (500, UnavailableError),
        (200, UnavailableError),
    ],
)
def test_an_answer_that_is_none_has_its_meaning(status: int, kind: type[HeadraceError]) -> None:
    with pytest.raises(kind, match="admin API"):
        admin(lambda _: httpx.Response(status, text="<html>")).position(TOPIC, "g")


def test_a_topic_that_exists_need_not_be_created() -> None:
    admin(lambda _: httpx.Response(409)).create_partitions(TOPIC, 3)
