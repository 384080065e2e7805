import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import ReplicaSettings
from headrace.serving.connection import Connection
from headrace.serving.exchange import Exchange
from headrace.serving.heads import learn
from headrace.serving.server import HttpServer

IDS = ("20e0ddbc-c373-4da7-987e-858a96baea9d", "00000000-0000-4000-8000-000000000001")

Seen = tuple[bytes, bytes, dict[bytes, bytes], bytes, bool]


@dataclass
class Recording:
    """Notes every request, and answers it."""

    seen: list[Seen] = field(default_factory=list)

    def handle(self, exchange: Exchange) -> None:
        body = bytes(exchange.body)
        headers = dict(exchange.headers)
        self.seen.append((exchange.method, exchange.path, headers, body, exchange.keep_alive))
        exchange.headers[b"x-mine"] = b"1"  # a handler's own, which no other request may see
        exchange.send_json(b"{}")

    def cancel(self, ticket: object) -> None:
        del ticket


@dataclass
class Wire(asyncio.Transport):
    written: bytes = b""
    is_closed: bool = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed

    def can_write_eof(self) -> bool:
        return False


class Side:
    """A connection whose bytes the test sends."""

    def __init__(self, **settings: int) -> None:
        told = ReplicaSettings(model_name="m", model_version="1", path="m", **settings)  # type: ignore[arg-type]  # numbers only
        self.app = Recording()
        self.server = HttpServer(self.app, told)
        self.wire = Wire()
        self.connection = Connection(self.server)
        self.connection.connection_made(self.wire)

    def send(self, raw: bytes) -> None:
        self.connection.data_received(raw)


def a_request(
    body: bytes = b"{}",
    *,
    path: str = "/v2/models/m/infer",
    extra: tuple[str, ...] = (),
    request_id: str = "",
    pair_id: str = "",
    length: str | None = None,
) -> bytes:
    named = [f"x-request-id: {request_id}"] if request_id else []
    named += [f"x-headrace-split: r1\r\nx-headrace-pair: {pair_id}"] if pair_id else []
    size = str(len(body)) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "host: a", f"content-length: {size}", *extra, *named]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def parsed(*requests: bytes) -> list[Seen]:
    """As the parser alone reads them: every request on a connection that knows no head."""
    seen = []
    for raw in requests:
        side = Side()
        side.send(raw)
        seen += side.app.seen
    return seen


bodies = st.binary(max_size=200) | st.just(b"\r\n\r\n") | st.just(b"0\r\n\r\n")
headers = st.sampled_from(
    [
        (),
        ("Connection: keep-alive",),
        ("connection: close",),
        ("Expect: 100-continue",),
        ("x-trap: content-length: 3",),
        ("X-Request-Id: short",),
        (f"X-Headrace-Pair: {IDS[0]}",),
        ("transfer-encoding: chunked",),
        ("upgrade: h2c",),
    ]
)
requests = st.builds(
    a_request,
    bodies,
    path=st.sampled_from(["/v2/models/m/infer", "/v2/models/m/infer?a=b", "/metrics"]),
    extra=headers,
    request_id=st.sampled_from(["", *IDS, "x" * 36, "A" * 36]),
    pair_id=st.sampled_from(["", *IDS, "x" * 36]),
    length=st.sampled_from([None, None, None, "00002", "+2", " 2", "2 ", "99999"]),
)


@given(st.lists(requests, max_size=6))
def test_known_heads_change_nothing_of_what_is_read(sent: list[bytes]) -> None:
    whole, bit_by_bit = Side(), Side()
    for raw in sent:
        whole.send(raw)
        for at in range(len(raw)):
            bit_by_bit.send(raw[at : at + 1])

    assert whole.app.seen == bit_by_bit.app.seen
    assert whole.wire.written == bit_by_bit.wire.written
    assert whole.wire.is_closed == bit_by_bit.wire.is_closed
    assert whole.server.body_bytes == bit_by_bit.server.body_bytes


@given(
    bodies,
    st.sampled_from(IDS),
    st.sampled_from(["", *IDS]),
    st.binary(max_size=120),
    st.integers(0, 400),
)
def test_a_changed_byte_is_read_as_the_parser_reads_it(
    body: bytes, request_id: str, pair_id: str, put: bytes, at: int
) -> None:
    first = a_request(body, request_id=request_id, pair_id=pair_id)
    at = min(at, len(first))
    changed = first[:at] + put + first[at + len(put) :]
    knowing, fresh = Side(), Side()
    knowing.send(first)
    knowing.send(changed)
    fresh.send(changed)

    assert knowing.app.seen[1:] == fresh.app.seen
    assert knowing.wire.is_closed == fresh.wire.is_closed


@pytest.mark.parametrize("request_ids", [IDS, ("", "")])
@pytest.mark.parametrize("pair_ids", [IDS[::-1], ("", "")])
def test_a_known_head_is_not_parsed_again(
    monkeypatch: pytest.MonkeyPatch, request_ids: tuple[str, str], pair_ids: tuple[str, str]
) -> None:
    side = Side()
    side.send(a_request(b"12", request_id=request_ids[0], pair_id=pair_ids[0]))
    monkeypatch.setattr(Connection, "_feed", lambda _self, data: pytest.fail(f"parsed {data!r}"))

    side.send(a_request(b"1234567890", request_id=request_ids[1], pair_id=pair_ids[1]))

    (_, later) = side.app.seen
    assert later[2][b"content-length"] == b"10"
    assert later[2].get(b"x-request-id", b"") == request_ids[1].encode()
    assert later[2].get(b"x-headrace-pair", b"") == pair_ids[1].encode()
    assert later[3] == b"1234567890"
    assert b"x-mine" not in later[2]


def test_a_body_over_the_limit_is_refused_also_behind_a_known_head() -> None:
    side = Side(max_body_bytes=10)
    side.send(a_request(b"1"))
    side.send(a_request(b"1" * 11))

    assert len(side.app.seen) == 1
    assert b"HTTP/1.1 413 " in side.wire.written


def test_callers_that_take_turns_are_learnt_ever_less(monkeypatch: pytest.MonkeyPatch) -> None:
    learnt = []

    def note(*told: object) -> object:
        learnt.append(told)
        return learn(*told)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr("headrace.serving.connection.learn", note)
    side = Side()
    for turn in range(64):
        side.send(a_request(b"1", path=f"/{turn % 2}"))

    assert len(side.app.seen) == 64
    assert len(learnt) < 10


@pytest.mark.parametrize(
    "extra", [("transfer-encoding: chunked",), ("expect: 100-continue",), ("upgrade: x",)]
)
def test_heads_of_more_than_a_plain_body_are_not_learnt(extra: tuple[str, ...]) -> None:
    raw = a_request(b"{}", extra=extra)
    named = {extra[0].split(":")[0].encode(): b"", b"content-length": b"2"}
    assert learn(raw, b"POST", b"/v2/models/m/infer", named, 2) is None


def test_two_requests_in_one_are_not_taken_for_one_head() -> None:
    both = a_request(b"{}") + a_request(b"[]")
    side = Side()
    side.send(both)
    side.send(both)

    bodies_seen = [seen[3] for seen in side.app.seen]
    assert bodies_seen == [b"{}", b"[]", b"{}", b"[]"]


def test_a_body_that_begins_like_the_end_of_a_head_is_read_whole_each_time() -> None:
    raw = a_request(b"\r\nAB") + b"\r\n"  # a line break between requests is allowed
    side = Side()
    for _ in range(3):
        side.send(raw)

    assert [seen[3] for seen in side.app.seen] == [b"\r\nAB"] * 3


def test_of_two_ids_in_a_row_the_last_counts_each_time() -> None:
    def twice(first: str) -> bytes:
        return a_request(b"1", extra=(f"x-request-id: {first}",), request_id=IDS[0])

    side = Side()
    side.send(twice(IDS[0]))
    side.send(twice(IDS[1]))

    assert [seen[2][b"x-request-id"] for seen in side.app.seen] == [IDS[0].encode()] * 2


@pytest.mark.parametrize("stray", [b"\r\n", b"\r", b"\r\nPOST", b"\r\n" * 40, b"P", b"\n"])
@pytest.mark.parametrize("request_id", ["", IDS[0]])
def test_what_comes_between_requests_is_none(stray: bytes, request_id: str) -> None:
    first, later = a_request(b"1", request_id=request_id), a_request(b"22", request_id=request_id)
    knowing, bit_by_bit = Side(), Side()
    for raw in (first, stray, later):
        knowing.send(raw)
        for at in range(len(raw)):
            bit_by_bit.send(raw[at : at + 1])

    assert knowing.app.seen == bit_by_bit.app.seen
    assert knowing.wire.written == bit_by_bit.wire.written
