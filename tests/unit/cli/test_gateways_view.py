from typing import Any

from headrace.cli.status import gateway_lines, gateway_problems


def document(*gateways: dict[str, Any], reason: str = "") -> dict[str, Any]:
    defaults = {
        "standing": "current",
        "version": "abc",
        "behind_s": 0.0,
        "seen_s": 0.34,
        "ready": True,
        "reason": "",
        "url": "",
    }
    return {"gateway": {"reason": reason, "gateways": [defaults | one for one in gateways]}}


def test_who_follows_is_told_quietly() -> None:
    found = document({"name": "gw-1", "url": "https://one.lan"})

    assert gateway_lines(found) == [
        "gateway 'gw-1': current, version abc, last report 0.3 s ago, https://one.lan"
    ]
    assert gateway_problems(found) == []


def test_who_does_not_is_trouble() -> None:
    found = document(
        {"name": "a", "standing": "behind", "behind_s": 12.0, "reason": "port 8000 is in use"},
        {"name": "b", "standing": "lost", "seen_s": 61.0},
        {"name": "c", "standing": "refused", "reason": "no such filter"},
        {"name": "d", "ready": False},
    )

    assert gateway_problems(found) == [
        "gateway 'a': configuration outdated for 12 s: port 8000 is in use",
        "gateway 'b': no report for 61 s",
        "gateway 'c': rejected the newest version: no such filter",
        "gateway 'd': not ready",
    ]
    assert gateway_lines(found) == []


def test_having_none_is_trouble_too() -> None:
    found = document(reason="no gateway is connected")

    assert gateway_problems(found) == ["gateway: no gateway is connected"]
    assert gateway_problems({}) == []
