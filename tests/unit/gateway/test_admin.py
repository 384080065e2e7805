from pathlib import Path

import pytest

from headrace.gateway import Admin, GatewayUnavailableError
from headrace.gateway.admin import parse_answer


def test_a_plain_answer_is_status_and_body() -> None:
    assert parse_answer(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi") == (200, "hi")


def test_a_chunked_answer_is_joined() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    assert parse_answer(head + b"3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n") == (
        200,
        "abc0123456789",
    )


def test_what_is_no_answer_has_status_0() -> None:
    assert parse_answer(b"") == (0, "")


@pytest.mark.anyio
async def test_a_missing_socket_is_an_unavailable_gateway(tmp_path: Path) -> None:
    with pytest.raises(GatewayUnavailableError, match="does not answer"):
        await Admin(tmp_path / "no.sock").get("/ready")
