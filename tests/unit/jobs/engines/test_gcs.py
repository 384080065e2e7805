"""What the head of a Ray cluster answers, before its own library is asked to connect."""

import grpc
import pytest

from headrace.jobs.engines.gcs import ASKS, has_token, why_refused


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_what_is_silent_is_not_ray(code: grpc.StatusCode) -> None:
    told = {why_refused(code, "head:6379", shows_token=shows) for shows in (True, False)}

    assert told == {"head:6379: what listens there does not answer as Ray does"}


def test_a_token_is_asked_for_where_none_is_shown() -> None:
    refused = grpc.StatusCode.UNAUTHENTICATED

    assert why_refused(refused, "head:6379", shows_token=False) == ASKS
    assert why_refused(refused, "head:6379", shows_token=True) == ""


def test_a_head_that_knows_another_method_is_one() -> None:
    assert why_refused(grpc.StatusCode.UNIMPLEMENTED, "head:6379", shows_token=False) == ""


def test_whether_a_token_is_shown_is_as_ray_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for mode in ("token", "TOKEN", "disabled", ""):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        shown[mode] = has_token()

    assert shown == {"token": True, "TOKEN": True, "disabled": False, "": False}
