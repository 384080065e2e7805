"""Limits in a spec: what they mean, and what is wrong between them."""

from typing import Any

import pytest

from headrace.core.spec.access import unused_tiers
from headrace.core.spec.parse import SpecError, parse_spec


def _places(**spec: Any) -> dict[str, str]:  # noqa: ANN401  # as people write it
    endpoints = spec.pop("endpoints", [{"name": "m", "model": "m:1", "access": ["key"]}])
    try:
        parse_spec({"version": 1, "endpoints": endpoints, **spec})
    except SpecError as error:
        return {mistake.place: mistake.message for mistake in error.mistakes}
    return {}


def _endpoint(max_body_bytes: int) -> list[dict[str, Any]]:
    return [{"name": "m", "model": "m:1", "limits": {"max_body_bytes": max_body_bytes}}]


def _tiers(*priorities: int) -> list[dict[str, Any]]:
    return [{"name": f"t{i}", "priority": priority} for i, priority in enumerate(priorities)]


def test_an_alias_is_unique_among_names_and_aliases() -> None:
    first = {"name": "a", "model": "m:1", "aliases": [{"name": "x"}, {"name": "y", "version": "2"}]}
    wrong = [{"name": "x"}, {"name": "a"}, {"name": "a:2"}, {"name": "z"}, {"name": "z"}]
    assert not _places(endpoints=[first, {"name": "b", "model": "m:1", "aliases": [{"name": "z"}]}])

    second = {"name": "b", "model": "m:1", "aliases": wrong}
    assert _places(endpoints=[first, second]) == {
        "endpoints[1].aliases[0].name": "'x' is already endpoints[0].aliases[0].name",
        "endpoints[1].aliases[1].name": "'a' calls the endpoint 'a'; choose another",
        "endpoints[1].aliases[2].name": "'a:2' calls the endpoint 'a'; choose another",
        "endpoints[1].aliases[4].name": "'z' is already endpoints[1].aliases[3].name",
    }
    assert "endpoints[0].aliases[0].name" in _places(
        endpoints=[{"name": "b", "model": "m:1", "aliases": [{"name": 'a"b'}]}]
    )


def test_right_limits_are_no_mistakes() -> None:
    assert not _places(
        gateway={"limits_listen": "127.0.0.1:9090", "max_body_bytes": 5000, "shared_limits": True},
        tiers=_tiers(1, 2, 3, 4, 4, 0, -1, -2, -3, -4),
        endpoints=[*_endpoint(5000), {"name": "n", "model": "m:1", "access": ["key"]}],
    )
    for address in ("unix:/run/limits.sock", "[::1]:9090"):
        assert not _places(gateway={"limits_service": address})


@pytest.mark.parametrize(
    ("spec", "place", "text"),
    [
        (
            {"tiers": [{"name": "a"}, {"name": "a"}]},
            "tiers[1].name",
            "already the name of tiers[0]",
        ),
        ({"tiers": _tiers(1, 2, 3, 4, 5)}, "tiers", "5 different priorities above 0"),
        ({"tiers": _tiers(-1, -2, -3, -4, -5)}, "tiers", "5 different priorities below 0"),
        (
            {"endpoints": _endpoint(5001), "gateway": {"max_body_bytes": 5000}},
            "endpoints[0].limits.max_body_bytes",
            "more than gateway.max_body_bytes (5000)",
        ),
        (
            {"endpoints": _endpoint(1 << 30)},
            "endpoints[0].limits.max_body_bytes",
            "raise gateway.max_body_bytes",
        ),
        ({"gateway": {"limits_service": "10.0.0.1:80"}}, "gateway.limits_service", "neither"),
        ({"gateway": {"limits_listen": "unix:here"}}, "gateway.limits_listen", "neither"),
        ({"gateway": {"limits_listen": "localhost:80"}}, "gateway.limits_listen", "neither"),
        ({"gateway": {"limits_listen": "127.0.0.1:x"}}, "gateway.limits_listen", "neither"),
        (
            {"gateway": {"limits_listen": "unix:/a", "limits_service": "unix:/b"}},
            "gateway.limits_listen",
            "cannot be combined",
        ),
    ],
)
def test_limits_that_do_not_go_together_are_told(
    spec: dict[str, Any], place: str, text: str
) -> None:
    assert text in _places(**spec)[place]


@pytest.mark.parametrize(
    "spec",
    [
        {"tiers": "gold", "gateway": 3, "endpoints": {"a": 1}},
        {"tiers": [3, {"name": 3, "priority": "x"}], "endpoints": [3, {"limits": 3}]},
        {"gateway": {"limits_service": 3, "max_body_bytes": "x"}, "endpoints": _endpoint(5000)},
    ],
)
def test_what_is_no_limit_at_all_is_told_as_such(spec: dict[str, Any]) -> None:
    assert _places(**spec)


@pytest.mark.parametrize(
    ("host", "access", "is_unused"),
    [
        (None, None, True),
        (None, "public", True),
        ("::1", None, True),
        ("0.0.0.0", None, False),  # noqa: S104  # text of a spec
        ("0.0.0.0", "public", True),  # noqa: S104  # as above
        (None, ["key"], False),
    ],
)
def test_tiers_apply_where_an_endpoint_identifies_its_callers(
    host: str | None,
    access: object,
    is_unused: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    entry = {"name": "m", "model": "m:1", **({"access": access} if access else {})}
    document = {"tiers": _tiers(0), "endpoints": [entry]}
    if host is not None:
        document["gateway"] = {"host": host}  # type: ignore[assignment]  # JSON

    assert ("no endpoint identifies its callers" in unused_tiers(document)) is is_unused
