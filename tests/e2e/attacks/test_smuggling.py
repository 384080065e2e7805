"""Requests that two parsers might read differently: each is one request here, or none.

The table says what the gateway and a lone replica answer. 200 means that the bytes are read as one
request and answered once; no row may ever be answered twice.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import pytest

from tests.e2e.attacks.harness import Door, Site
from tests.e2e.attacks.wire import LAST_CHUNK, Received, chunk, request, sized, talk
from tests.e2e.serving.raw import BODY, INFER

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.usefixtures("watched")]

CHUNKED: Final = "Transfer-Encoding: chunked"
INNER: Final = b"GET /v2/models/m HTTP/1.1\r\nHost: x\r\n\r\n"
WHOLE: Final = chunk(BODY) + LAST_CHUNK


@dataclass(frozen=True, slots=True)
class Attack:
    """Bytes, and the status that each door answers them with."""

    data: bytes
    gateway: int
    replica: int

    def status(self, door: Door) -> int:
        return self.gateway if door.name == "gateway" else self.replica


def both(data: bytes, status: int = 400) -> Attack:
    return Attack(data, status, status)


def transfer(*values: str) -> bytes:
    return request(*[f"Transfer-Encoding:{value}" for value in values], body=WHOLE)


def length(value: str) -> bytes:
    return request(f"Content-Length:{value}")


def at(path: str) -> bytes:
    return request(sized(), path=path)


FRAMING: Final[Mapping[str, Attack]] = {
    "CL.TE": both(request(sized(b"0\r\n\r\n" + INNER), CHUNKED, body=LAST_CHUNK + INNER)),
    "TE.CL": both(request(CHUNKED, "Content-Length: 4", body=WHOLE)),
    "two equal lengths": both(request(sized(), sized())),
    "two different lengths": both(request(sized(), "Content-Length: 1")),
    "a list of lengths": both(length(f" {len(BODY)}, {len(BODY)}")),
    "a length with a sign": both(length(f" +{len(BODY)}")),
    "a negative length": both(length(" -1")),
    "a hexadecimal length": both(length(f" 0x{len(BODY):x}")),
    "a length in two parts": both(length(f" {len(BODY)} 1")),
    "a length beyond 64 bits": both(length(" 99999999999999999999999")),
    "an empty length": both(length(" ")),
    "xchunked": both(transfer(" xchunked"), 501),
    "quoted chunked": both(transfer(' "chunked"'), 501),
    "gzip, chunked": both(transfer(" gzip, chunked"), 501),
    "chunked, gzip": Attack(transfer(" chunked, gzip"), 501, 400),
    "chunked, chunked": Attack(transfer(" chunked, chunked"), 501, 400),
    "chunked twice": Attack(transfer(" chunked", " chunked"), 501, 400),
    "chunked and identity": Attack(transfer(" chunked", " identity"), 501, 400),
    "chunked and cow": Attack(transfer(" chunked", " cow"), 501, 400),
    "identity and a length": both(request("Transfer-Encoding: identity", sized())),
    "vertical tab before chunked": both(transfer(" \x0bchunked")),
    "space before the colon of TE": both(request("Transfer-Encoding : chunked", body=WHOLE)),
    "space before the colon of CL": both(request(f"Content-Length : {len(BODY)}")),
    "chunked on a folded line": Attack(transfer("\r\n chunked"), 200, 400),
    "tab before chunked": both(transfer("\tchunked"), 200),
    "CHUNKED": both(transfer(" CHUNKED"), 200),
    "negative chunk": both(request(CHUNKED, body=b"-1\r\n")),
    "chunk beyond 64 bits": both(request(CHUNKED, body=b"fffffffffffffffff\r\n")),
    "chunk of 0x5": both(request(CHUNKED, body=b"0x5\r\nhello\r\n0\r\n\r\n")),
    "chunks by bare LF": both(request(CHUNKED, body=b"5\nhello\n0\n\n")),
    "LF in a chunk extension": both(
        request(CHUNKED, body=b"%x;a=b\n\r\n%b\r\n" % (len(BODY), BODY) + LAST_CHUNK)
    ),
    "chunk without an end": both(request(CHUNKED, body=b"%x\r\n%b0\r\n\r\n" % (len(BODY), BODY))),
    "a trailer that is a header": both(
        request(CHUNKED, body=chunk(BODY) + b"0\r\nInference-Header-Content-Length: 5\r\n\r\n"), 200
    ),
}
HEADERS: Final[Mapping[str, Attack]] = {
    "folded line": Attack(request("X-a: 1\r\n b", sized()), 200, 400),
    "bare LF in a value": Attack(request("X-a: 1\nX-b: 2", sized()), 200, 400),
    "bare CR in a value": Attack(request("X-a: 1\rX-b: 2", sized()), 200, 400),
    "space before the colon": both(request("X-a : 1", sized())),
    "NUL in a value": both(request("X-a: a\0b", sized())),
    "NUL in a name": both(request("X-\0a: b", sized())),
    "control character in a name": both(request("X-\x01a: b", sized())),
    "control character in a value": both(request("X-a: b\x01c", sized())),
    "DEL in a value": both(request("X-a: b\x7fc", sized())),
    "no name": both(request(": b", sized())),
    "no colon": both(request("abc", sized())),
    "first line folded": both(request(" X: a", sized())),
    # The replica has no use for either name, and never makes one of the other.
    "underscore": both(request("Content_Length: 1", sized()), 200),
    "underscore in ours": both(request("x_headrace_caller: root", sized()), 200),
    "two hosts": both(request("Host: y", sized())),
    "no host": both(b"POST %b HTTP/1.1\r\n%b\r\n\r\n%b" % (INFER.encode(), sized().encode(), BODY)),
    "two header lengths": both(
        request("Inference-Header-Content-Length: 5", f"Inference-Header-{sized()}", sized())
    ),
    "two encodings": Attack(
        request("Content-Encoding: gzip", "Content-Encoding: identity", sized()), 501, 400
    ),
    "101 headers": Attack(request(*[f"x-{i}: 1" for i in range(101)], sized()), 431, 200),
    "header of 100 kB": both(request("x: " + "a" * 100_000, sized()), 431),
    "header of 1 MB": both(request("x: " + "a" * 1_000_000, sized()), 431),
    "2 MB of headers": both(request(*[f"x-{i}: {'a' * 1000}" for i in range(2000)], sized()), 431),
}
PATHS: Final[Mapping[str, Attack]] = {
    "NUL": both(at("/v2/models/m\0/infer")),
    "escaped NUL": Attack(at("/v2/models/m%00/infer"), 400, 404),
    "a request split by CRLF": both(at("/v2/models/m HTTP/1.1\r\nX: y\r\n\r\nGET /v2")),
    "escaped CRLF": Attack(at("/v2/models/m%0d%0aX:y/infer"), 404, 404),
    "escaped request in the version": Attack(
        at("/v2/models/m/versions/1%20HTTP/1.1%0d%0a%0d%0aGET%20/v2/infer"), 404, 404
    ),
    "space": both(at("/v2/models/m /infer")),
    "high byte": both(at("/v2/models/m\xff/infer")),
    "fragment": Attack(at("/v2/models/m/infer#x"), 400, 404),
    "climbing out": both(at("/v2/../../../etc/passwd"), 404),
    "climbing to a model": Attack(at("/v2/health/../models/m/infer"), 200, 404),
    "%2e": Attack(at("/v2/health/%2e%2e/models/m/infer"), 200, 404),
    "%2f": Attack(at("/v2/health/%2f..%2fmodels/m/infer"), 400, 404),
    "%2f alone": Attack(at("/v2%2fmodels%2fm%2finfer"), 400, 200),
    "%5c": Attack(at("/v2/models%5cm/infer"), 400, 404),
    "backslash": Attack(at("/v2\\models\\m\\infer"), 200, 404),
    "double encoding": both(at("/v2/health/%252e%252e/models/m/infer"), 404),
    "two slashes": Attack(at("//v2//models//m//infer"), 200, 404),
    "semicolon": Attack(at("/v2/health;/../models/m/infer"), 200, 404),
    "overlong UTF-8": both(at("/v2/health/%c0%ae%c0%ae/models/m/infer"), 404),
    "70 kB": Attack(at("/v2/" + "a" * 70_000), 431, 404),
    "absolute with another host": Attack(at(f"http://evil{INFER}"), 200, 404),
    "file: URL": Attack(at("file:///etc/passwd"), 400, 404),
    "TRACE": both(request(method="TRACE", body=b""), 405),
    "post in lower case": both(request(sized(), method="post")),
    "P@ST": both(request(sized(), method="P@ST")),
    "HTTP/1.10": both(request(sized()).replace(b"HTTP/1.1", b"HTTP/1.10")),
}


@pytest.fixture(scope="module")
def received(site: Site) -> Mapping[tuple[str, str], Received]:
    """What came back, by door and attack: asked all at once, for each waits until it is quiet."""
    rows = {**FRAMING, **HEADERS, **PATHS}
    wanted = [(door, name) for door in (site.gateway, site.replica) for name in rows]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda one: talk(one[0], rows[one[1]].data, quiet_s=1.0), wanted))
    return {(door.name, name): got for (door, name), got in zip(wanted, found, strict=True)}


@pytest.mark.parametrize("name", FRAMING)
def test_where_a_body_ends_is_never_in_doubt(
    door: Door, name: str, received: Mapping[tuple[str, str], Received]
) -> None:
    assert received[door.name, name].statuses == [FRAMING[name].status(door)]


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_may_be_read_in_two_ways_are_refused(
    door: Door, name: str, received: Mapping[tuple[str, str], Received]
) -> None:
    assert received[door.name, name].statuses == [HEADERS[name].status(door)]


@pytest.mark.parametrize("name", PATHS)
def test_a_path_is_what_it_means_or_nothing(
    door: Door, name: str, received: Mapping[tuple[str, str], Received]
) -> None:
    got = received[door.name, name]

    assert got.statuses[0] == PATHS[name].status(door), got.data[-300:]
    assert b"root:" not in got.data


def test_nobody_gets_a_tunnel(door: Door) -> None:
    got = talk(door, request(method="CONNECT", path="evil:80", body=b""))

    assert got.statuses == [404]


def test_a_refusal_ends_the_connection_so_that_nothing_after_it_is_read(door: Door) -> None:
    """Else what follows a refused head would be taken for a request."""
    smuggled = request(sized(), CHUNKED, body=LAST_CHUNK) + INNER * 3

    got = talk(door, smuggled, quiet_s=2.0)

    assert got.statuses == [400]
    assert got.closed
