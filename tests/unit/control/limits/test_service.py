"""What gateways are answered, as bytes; the store and the clock are played."""

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from headrace.control.limits.limiter import Limiter, Rules
from headrace.control.limits.service import LimitService, SecuredAddress
from headrace.control.model.records import QuotaUse
from headrace.control.state import home_url, open_store
from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.core.spec.access import EndpointLimitsSpec, LimitSpec
from headrace.protocol.grpc_wire import RLS_DESCRIPTOR_SET_PATH
from headrace.protocol.protos import (
    RLS_METHOD,
    RLS_SERVICE,
    RateLimitAnswer,
    RateLimitCodec,
    load_pool,
    message_of,
)
from tests.certificates import Authority, Files

pytestmark = pytest.mark.anyio

POOL = load_pool(RLS_DESCRIPTOR_SET_PATH)
REQUEST = message_of(POOL, "envoy.service.ratelimit.v3.RateLimitRequest")
RESPONSE = message_of(POOL, "envoy.service.ratelimit.v3.RateLimitResponse")
CODEC = RateLimitCodec()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class FakeClock:
    at: float = 100.0

    def monotonic(self) -> float:
        return self.at

    def now(self) -> float:
        return self.at


@dataclass
class FakeStore:
    """The part of a store that quotas need."""

    saved: list[QuotaUse] = field(default_factory=list)
    fails: bool = False
    refused: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def quotas(self, day: str) -> list[QuotaUse]:
        self._check()
        return [use for use in self.saved if use.day == day]

    async def add_quotas(self, uses: Sequence[QuotaUse]) -> list[QuotaUse]:
        self._check()
        self.saved += uses
        return list(uses)

    def close(self) -> None:
        pass

    def _check(self) -> None:
        if self.fails:
            self.refused.release()
            raise FailedPreconditionError("no disk")


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def a_service(store: FakeStore, limits: LimitSpec, **more: Any) -> LimitService:  # noqa: ANN401  # any field
    service = LimitService(
        limiter=Limiter(name="t"),
        store=store,  # type: ignore[arg-type]  # the part that is used
        clock=FakeClock(),
        addresses=more.pop("addresses", ()),
        secured=more.pop("secured", None),
    )
    service.set_rules(Rules(endpoints={"m": EndpointLimitsSpec(per_caller=limits)}))
    return service


def ask(service: LimitService, *descriptors: dict[str, str], hits: int | None = None) -> Any:  # noqa: ANN401  # protobuf's
    request = REQUEST(domain="headrace")
    for entries in descriptors:
        descriptor = request.descriptors.add()
        for key, value in entries.items():
            descriptor.entries.add(key=key, value=value)
        if hits is not None:
            descriptor.hits_addend.value = hits
    return RESPONSE.FromString(service.answer(CODEC, request.SerializeToString()))


def headers(pairs: Any) -> dict[str, str]:  # noqa: ANN401  # protobuf's
    return {pair.key: pair.value for pair in pairs}


ALICE = {"endpoint": "m", "caller": "alice", "masked_remote_address": "10.0.0.1/32"}


async def test_what_passes_is_told_what_is_left_and_what_does_not_when_to_come_back(
    store: FakeStore,
) -> None:
    service = a_service(store, LimitSpec(requests_per_s=0.5, burst=1, requests_per_day=100))

    first, second = ask(service, ALICE), ask(service, ALICE)

    assert first.overall_code == 1
    assert [status.code for status in first.statuses] == [1]
    assert not first.request_headers_to_add
    assert headers(first.response_headers_to_add) == {
        "x-ratelimit-limit": "1",
        "x-ratelimit-remaining": "0",
        "x-ratelimit-reset": "2",
    }
    assert second.overall_code == 2
    assert [status.code for status in second.statuses] == [2]
    assert headers(second.response_headers_to_add)["retry-after"] == "2"
    assert second.raw_body.decode() == (
        "too many requests: this caller has reached its requests_per_s (burst 1) of endpoint 'm'; "
        "retry in 2 s"
    )


async def test_a_request_is_under_way_until_its_end_is_told(store: FakeStore) -> None:
    service = a_service(store, LimitSpec(max_concurrent=1))

    lease = headers(ask(service, ALICE).request_headers_to_add)["x-headrace-lease"]
    refused = ask(service, ALICE)
    told = ask(service, {"lease": lease})
    again = ask(service, ALICE)

    assert refused.overall_code == 2
    assert not refused.request_headers_to_add
    assert "at once" in refused.raw_body.decode()
    assert told.overall_code == again.overall_code == 1


async def test_rows_are_told_with_the_end(store: FakeStore) -> None:
    service = a_service(store, LimitSpec(rows_per_s=10.0))
    lease = headers(ask(service, ALICE).request_headers_to_add)["x-headrace-lease"]

    ask(service, {"lease": lease}, {"rows_of": lease}, hits=50)

    refused = ask(service, ALICE)
    assert refused.overall_code == 2
    assert int(headers(refused.response_headers_to_add)["retry-after"]) >= 4


async def test_a_stranger_is_known_by_address_or_not_at_all(store: FakeStore) -> None:
    service = a_service(store, LimitSpec(requests_per_s=0.1))
    stranger = {"endpoint": "m", "masked_remote_address": "10.0.0.1/32"}

    codes = [ask(service, entries).overall_code for entries in (stranger, stranger, ALICE)]
    codes += [ask(service, {"endpoint": "m"}).overall_code for _ in range(2)]

    assert codes == [1, 2, 1, 1, 2]


async def test_a_tiers_refusal_names_the_tier_and_an_endpoints_the_endpoint(
    store: FakeStore,
) -> None:
    service = a_service(store, LimitSpec())
    daily = LimitSpec(requests_per_day=1)
    total = EndpointLimitsSpec(total=daily)
    service.set_rules(Rules(endpoints={"m": total}, tiers={"gold": daily}))
    gold = {"endpoint": "n", "caller": "alice", "tier": "gold"}

    texts = [ask(service, entries).raw_body.decode() for entries in (gold, gold, ALICE, ALICE)]

    assert texts[0] == texts[2] == ""
    assert "this caller has reached the requests_per_day (1) of tier 'gold'" in texts[1]
    assert "endpoint 'm' has reached its requests_per_day (1)" in texts[3]


async def test_what_is_no_question_is_refused(store: FakeStore) -> None:
    with pytest.raises(InvalidArgumentError):
        a_service(store, LimitSpec()).answer(CODEC, b"\xff")


async def test_hits_of_the_whole_question_are_those_of_each_descriptor() -> None:
    request = REQUEST(domain="d", hits_addend=7)
    request.descriptors.add().entries.add(key="a", value="b")

    question = CODEC.decode(request.SerializeToString())

    (descriptor,) = question.descriptors
    assert (question.domain, descriptor.entries, descriptor.hits) == ("d", {"a": "b"}, 7)
    assert CODEC.encode(RateLimitAnswer(is_allowed=True), descriptors=0) == b"\x08\x01"


async def test_quotas_are_saved_and_what_fails_is_saved_later(store: FakeStore) -> None:
    service = a_service(store, LimitSpec(requests_per_day=5))
    ask(service, ALICE)

    store.fails = True
    running = asyncio.create_task(service.run())
    async with asyncio.timeout(20):
        await store.refused.acquire()  # what was used cannot be read
        await store.refused.acquire()  # nor can it be stored
    store.fails = False
    running.cancel()
    await asyncio.wait({running})

    assert store.saved == [QuotaUse(day="1970-01-01", subject="caller:m:alice", used=1)]


async def test_an_address_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    real = open_store(home_url(tmp_path))
    service = LimitService(
        limiter=Limiter(name="t"),
        store=real,
        clock=FakeClock(),
        addresses=("unix:/nowhere/limits.sock",),
    )
    daily = EndpointLimitsSpec(total=LimitSpec(requests_per_day=1))
    service.set_rules(Rules(endpoints={"m": daily}))

    with pytest.raises(FailedPreconditionError, match="/nowhere"):
        await asyncio.wait_for(service.run(), 20)

    real.close()


def _display(files: Files, ca: Path) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        ca.read_bytes(), files.key.read_bytes(), files.certificate.read_bytes()
    )


async def _ask_over_tls(port: int, credentials: grpc.ChannelCredentials) -> bytes:
    request = REQUEST(domain="headrace").SerializeToString()
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        method = channel.unary_unary(f"/{RLS_SERVICE}/{RLS_METHOD}")
        answer: bytes = await method(request, timeout=10.0)
    return answer


async def test_a_gateway_whose_certificate_was_revoked_is_refused_and_others_are_not(
    store: FakeStore, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    own, lost, mine = authority.server("own"), authority.client("gw-1"), authority.client("gw-2")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    secured = SecuredAddress(
        address=f"127.0.0.1:{port}",
        pair=lambda: (own.key.read_bytes(), own.certificate.read_bytes()),
        authorities=authority.ca.read_bytes,
        refuses=lambda shown: shown.strip() == lost.certificate.read_bytes().strip(),
    )
    service = a_service(store, LimitSpec(requests_per_s=1.0), secured=secured)
    running = asyncio.ensure_future(service.run())
    await service.wait_listening()

    assert (
        RESPONSE.FromString(await _ask_over_tls(port, _display(mine, authority.ca))).overall_code
        == 1
    )
    with pytest.raises(grpc.aio.AioRpcError, match="revoked") as refused:
        await _ask_over_tls(port, _display(lost, authority.ca))

    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
