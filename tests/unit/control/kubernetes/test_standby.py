import json

import pytest

from headrace.control.kubernetes.election import LeaseTimes
from headrace.control.kubernetes.standby import lease_times, standby_answer


def answer(head: bytes, leader: str = "b_1f0c") -> tuple[int, dict[str, object]]:
    first, _, body = standby_answer(head, leader).partition(b"\r\n\r\n")
    return int(first.split()[1]), json.loads(body)


def test_a_standby_says_that_it_lives() -> None:
    assert answer(b"GET /api/v1/health HTTP/1.1\r\n\r\n") == (200, {"alive": True})


def test_a_standby_is_not_ready_and_says_who_leads() -> None:
    status, told = answer(b"GET /api/v1/health?leader HTTP/1.1\r\n\r\n")

    assert status == 503
    assert told == {"message": "this control plane is on standby: b leads"}


@pytest.mark.parametrize(
    "head", [b"POST /api/v1/apply HTTP/1.1", b"GET /api/v1/status HTTP/1.1", b"", b"\xff\xfe \x00"]
)
def test_all_else_is_told_to_come_again(head: bytes) -> None:
    assert answer(head, leader="") == (
        503,
        {"message": "this control plane is on standby: no control plane leads yet"},
    )


def test_the_usual_lease_has_the_usual_times() -> None:
    assert lease_times(15.0) == LeaseTimes(duration_s=15.0, margin_s=5.0, renew_s=2.0)
